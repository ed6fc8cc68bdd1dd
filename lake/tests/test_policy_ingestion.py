"""Policies over real sockets: what comes is put where its policy says, kept for as long, and never dropped silently."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import requests
from clachan_lake.errors import RequestError, TakenError
from clachan_lake.format import PIECE_BYTES
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.remote import RemoteLake

from .making import TOKEN, Server, wait_for


def error(answer: requests.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def declare(server: Server, policy: str, **keys: Any) -> requests.Response:
    answer = server.session.put(f"{server.url}/policies/meta", params={"name": policy}, json=keys, timeout=20)
    assert answer.status_code in {200, 201}, answer.text
    return answer


def fluentd(server: Server, policy: str, tag: str, body: bytes) -> requests.Response:
    """As its Wendelin output sends it."""
    credentials = base64.b64encode(f"fluentd:{TOKEN}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/octet-stream"}
    url = f"{server.url}/portal_ingestion_policies/{policy}/ingest"
    return requests.post(url, body, params={"reference": tag}, headers=headers, timeout=20)


def letters(server: Server, policy: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get("/dead", policy=policy).json()["items"]
    return found


# -- declaring


def test_a_policy_is_declared_compared_and_deleted(server: Server) -> None:
    def put(dry_run: int = 0, **keys: Any) -> tuple[int, str, dict[str, Any]]:
        answer = server.session.put(
            f"{server.url}/policies/meta", params={"name": "site", "dry_run": dry_run}, json=keys, timeout=20
        )
        return answer.status_code, answer.headers["Clachan-Changed"], answer.json()

    status, changed, described = put(dry_run=1, title="A site")
    assert (status, changed, described["title"]) == (201, "true", "A site")
    assert server.get("/policies/meta", name="site").status_code == 404
    assert put(title="A site")[:2] == (201, "true")
    assert put(title="A site")[:2] == (200, "false")
    assert put(dry_run=1, title="Another")[:2] == (200, "true")
    assert server.get("/policies/meta", name="site").json()["title"] == "A site"
    status, changed, described = put(title="Another")
    assert (status, changed, described["policy"], described["revision"]) == (200, "true", "site", 2)
    assert described == server.get("/policies/meta", name="site").json()
    assert "site" in [item["policy"] for item in server.get("/policies", limit=500).json()["items"]]
    assert [item["policy"] for item in server.get("/policies", prefix="si").json()["items"]] == ["site"]
    assert server.post(b"x", "site", reference="site-data").status_code == 204
    assert server.session.delete(f"{server.url}/policies/meta?name=site", timeout=20).status_code == 204
    assert server.session.delete(f"{server.url}/policies/meta?name=site", timeout=20).status_code == 404
    assert error(server.post(b"x", "site", reference="site-data"))["message"].startswith(
        "policy: 'site', expected one of"
    )
    assert server.get("/streams/data", name="site-data").content == b"x"


@pytest.mark.parametrize(
    ("body", "message", "field"),
    [
        (b"[]", "body: list, expected a JSON object", None),
        (b"{", "body: Expecting property name", None),
        (b"[" * 100_000, "body: maximum recursion depth exceeded", None),
        (b'{"attrs": {"x": "\\ud800"}}', "body: half a character, '\\ud800', expected text", None),
        (b'{"attrs":' + b'{"x":' * 70 + b"1" + b"}" * 71, "body: nested more than 64 deep, expected less", None),
        (b'{"into": 5}', "policy wrong, key into: 5, expected stream or array", "into"),
        (b'{"pattern": "("}', "policy wrong, key pattern: '(', expected a regular expression of RE2", "pattern"),
    ],
)
def test_a_wrong_document_leaves_nothing(server: Server, body: bytes, message: str, field: str | None) -> None:
    answer = server.session.put(f"{server.url}/policies/meta?name=wrong", body, timeout=20)
    assert (answer.status_code, error(answer)["field"]) == (400, field)
    assert message in error(answer)["message"]
    assert server.get("/policies/meta", name="wrong").status_code == 404


@pytest.mark.slow
def test_what_the_settings_declare_stays_as_it_was_made_since(own_server: Server) -> None:
    own_server.start()
    assert own_server.get("/policies/meta", name="raw").json()["pattern"] == ".+"
    declare(own_server, "raw", title="Mine")
    with open_lake(own_server.socket, blobs=own_server.folder / "blobs", read_only=True) as lake:
        assert isinstance(lake, LocalLake)
        made = lake.documents("transformations")["wav"]
    assert (made["function"], made["on"], made["source"]["policy"]) == ("wav", "end", "wav")
    own_server.stop()
    own_server.start()
    described = own_server.get("/policies/meta", name="raw").json()
    assert (described["title"], described["revision"]) == ("Mine", 2)


def test_a_change_beside_the_server_holds_within_a_second(server: Server) -> None:
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
        assert isinstance(lake, LocalLake)
        with lake.transaction():
            lake.policies.declare("beside", name="beside/{tag}")
    wait_for(lambda: server.post(b"x", "beside", reference="a").status_code == 204, "the policy", 3)
    assert server.stream("beside/a")["policy"] == "beside"


# -- names and attributes


def test_names_and_attributes_are_made_of_the_tag(server: Server) -> None:
    declare(
        server,
        "named",
        pattern=r"(?P<site>[^.]+)\.(?P<sensor>.+)",
        name="{site}/{sensor}",
        attrs={"title": "{sensor} of {site}", "tags": ["{site}", "weather"], "owner": "met"},
    )
    assert server.post(b"1", "named", reference="north.wind").status_code == 204
    described = server.stream("north/wind")
    assert described["attrs"] == {"title": "wind of north", "tags": ["north", "weather"], "owner": "met"}
    declare(server, "named", pattern=r"(?P<site>[^.]+)\.(?P<sensor>.+)", name="{site}/{sensor}")
    server.post(b"2", "named", reference="north.wind")
    assert server.stream("north/wind")["attrs"] == described["attrs"]
    assert server.stream("north/wind")["size"] == 2


def test_what_is_in_a_tag_is_never_more_than_text(server: Server) -> None:
    declare(server, "text", name="text/{tag}", attrs={"title": "{tag}"})
    for tag in ("../../etc/passwd", "{{ 7*7 }}", "<script>alert(1)</script>", "{tag}", "%2e%2e%2f", "C:\\x", "'; --"):
        assert server.post(b"x", "text", reference=tag).status_code == 204
        assert server.stream(f"text/{tag}")["attrs"] == {"title": tag}
    for tag in ("a\nb", "a\0b", "\x1b[31mred", "\u202eright to left", "x" * 1100):
        answer = server.post(b"x", "text", reference=tag)
        assert answer.status_code == 400, tag
    assert error(server.post(b"x", "text", reference="\x1b[31mred"))["message"] == (
        "stream name: 'text/\\x1b[31mred', expected 1-1024 bytes of printable text"
    )
    assert not list(server.directory.rglob("passwd"))


def test_no_sender_makes_what_is_the_lakes_own(server: Server) -> None:
    answer = server.post(b"x", reference="~minmax/a/16")
    assert (answer.status_code, error(answer)["message"]) == (
        400,
        "stream name: '~minmax/a/16', expected none of the lake's own, which begin with ~",
    )
    for path in ("/streams/meta",):
        answer = server.session.put(f"{server.url}{path}", params={"name": "~x"}, json={}, timeout=20)
        assert answer.status_code == 400
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
        assert isinstance(lake, LocalLake)
        with lake.transaction():
            lake.streams.create("~own")
            lake.streams.create("~~")
            lake.streams.create("Ünicode")
            lake.arrays.create("~minmax/a/16", (0,), "<f8")
    for path, own in (("/streams", "~own"), ("/arrays", "~minmax/a/16")):
        assert own not in [item["name"] for item in server.get(path, limit=500).json()["items"]]
        assert own in [item["name"] for item in server.get(path, limit=500, hidden=1).json()["items"]]
        assert [item["name"] for item in server.get(path, hidden=1, prefix="~", limit=1).json()["items"]] == [own]
        assert server.get(path, prefix="~").json() == {"items": [], "cursor": None}
    assert "Ünicode" in [item["name"] for item in server.get("/streams", limit=500).json()["items"]]
    assert [item["name"] for item in server.get("/streams", cursor="~own").json()["items"]] == ["Ünicode"]


# -- tags that no policy accepts


def test_an_unmatched_tag_is_refused_by_name(server: Server) -> None:
    declare(server, "strict", pattern="sensor\\..+")
    answer = server.post(b"x", "strict", reference="other")
    assert (answer.status_code, error(answer)["field"]) == (400, "reference")
    assert error(answer)["message"] == (
        "reference: 'other', expected a tag that the pattern of policy strict matches: 'sensor\\\\..+'"
    )
    assert server.get("/streams/meta", name="other").status_code == 404
    assert letters(server, "strict") == []


@pytest.mark.parametrize("size", [9, PIECE_BYTES + 1])
def test_an_unmatched_tag_goes_to_the_dead_letters_and_back(server: Server, size: int) -> None:
    policy, body = f"lenient{size}", bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    declare(server, policy, pattern="sensor\\..+", unmatched="dead")
    answer = server.post(body, policy, reference="other\x07<b>", chunk_id="c1")
    assert answer.status_code == 204
    number = int(answer.headers["Clachan-Dead-Letter"])
    [letter] = letters(server, policy)
    assert (letter["number"], letter["kind"], letter["tag"]) == (number, "ingest", "other\x07<b>")
    assert (letter["length"], letter["chunk_id"], letter["policy"]) == (size, "c1", policy)
    assert letter["reason"].startswith("reference: 'other\\x07<b>', expected a tag that the pattern of policy")
    assert server.get("/dead/data", number=number).content == body
    assert server.get("/dead/meta", number=number).json() == letter

    def replay() -> requests.Response:
        return server.session.post(f"{server.url}/dead/replay?number={number}", timeout=20)

    again = replay()
    assert again.status_code == 409
    assert error(again)["message"].startswith(f"dead letter {number}: reference: ")
    assert letters(server, policy) == [letter]
    # a policy that takes it, but to a name that cannot be
    declare(server, policy, name="in/{tag}")
    again = replay()
    assert (again.status_code, letters(server, policy)) == (409, [letter])
    assert "expected 1-1024 bytes of printable text" in error(again)["message"]
    declare(server, policy, name=f"mended{size}")
    again = replay()
    assert again.status_code == 200
    assert again.json() == {"kind": "stream", "size": size, "new": True}
    assert letters(server, policy) == []
    assert server.get("/streams/data", name=f"mended{size}").content == body
    assert replay().status_code == 404
    # its id is known now
    assert server.post(body, policy, reference="x", chunk_id="c1").headers["Clachan-Repeat"] == "true"


def test_a_dead_letter_is_deleted_once(server: Server) -> None:
    declare(server, "gone", pattern="a", unmatched="dead")
    numbers = [int(server.post(b"x", "gone", reference="b").headers["Clachan-Dead-Letter"]) for _ in range(3)]
    assert numbers == sorted(set(numbers))
    url = f"{server.url}/dead/meta?number={numbers[-1]}"
    assert server.session.delete(url, timeout=20).status_code == 204
    later = int(server.post(b"y", "gone", reference="b").headers["Clachan-Dead-Letter"])
    assert later > numbers[-1]
    missing = server.session.delete(url, timeout=20)
    assert (missing.status_code, error(missing)["message"]) == (404, f"dead, {numbers[-1]}: none of this name")
    assert [letter["number"] for letter in letters(server, "gone")] == [*numbers[:2], later]
    first = server.get("/dead", policy="gone", limit=2).json()
    assert first["cursor"] == str(numbers[1])
    rest = server.get("/dead", policy="gone", limit=2, cursor=first["cursor"]).json()
    assert ([letter["number"] for letter in rest["items"]], rest["cursor"]) == ([later], None)
    assert error(server.get("/dead", cursor="x"))["field"] == "cursor"


@pytest.mark.slow
def test_the_dead_letters_have_a_quota_of_their_own(own_server: Server) -> None:
    own_server.settings["dead_mib"] = 1
    own_server.start()
    declare(own_server, "small", pattern="a", unmatched="dead")
    assert own_server.post(b"x" * 700_000, "small", reference="b").status_code == 204
    full = own_server.post(b"x" * 700_000, "small", reference="b")
    assert (full.status_code, full.headers["Retry-After"]) == (507, "60")
    assert error(full)["message"].startswith(
        "dead letters: 700000 bytes held and 700000 more, expected at most 1048576"
    )
    own_server.stop()
    own_server.start()
    assert own_server.post(b"x" * 700_000, "small", reference="b").status_code == 507
    [letter] = letters(own_server, "small")
    own_server.session.delete(f"{own_server.url}/dead/meta?number={letter['number']}", timeout=20)
    assert own_server.post(b"x" * 700_000, "small", reference="b").status_code == 204


def test_what_fluentd_would_repeat_for_ever_is_a_dead_letter(server: Server) -> None:
    declare(server, "fluent", pattern="[a-z.]+", into="stream")
    taken = fluentd(server, "fluent", "app.log", b"\x92")
    assert (taken.status_code, taken.headers["Clachan-Stream-Size"]) == (204, "1")
    for tag, reason in (
        ("fluent.info", "reference: 'fluent.info', expected a tag that the pattern of policy fluent matches"),
        ("App", "reference: 'App', expected a tag that the pattern of policy fluent matches"),
    ):
        answer = fluentd(server, "fluent", tag, b"body of " + tag.encode())
        assert answer.status_code == 204
        number = answer.headers["Clachan-Dead-Letter"]
        assert server.get("/dead/meta", number=number).json()["reason"].startswith(reason)
        assert server.get("/dead/meta", number=number).json()["content_type"] == "application/octet-stream"
        assert server.get("/dead/data", number=number).content == b"body of " + tag.encode()
    # the stream is another policy's: no repeat mends that
    server.post(b"x", reference="of.raw")
    answer = fluentd(server, "fluent", "of.raw", b"y")
    reason = server.get("/dead/meta", number=answer.headers["Clachan-Dead-Letter"]).json()["reason"]
    assert reason == "stream of.raw, policy: fluent, expected raw, which made it"
    # what a repeat may mend is refused
    assert fluentd(server, "none", "a", b"x").status_code == 404
    declare(server, "own_words", pattern=r"fluent\..+", name="words/{tag}")
    assert fluentd(server, "own_words", "fluent.info", b"x").headers["Clachan-Stream-Size"] == "1"


# -- arrays


def test_rows_become_an_array(server: Server) -> None:
    declare(
        server, "wind", pattern=r"wind\.(?P<site>.+)", name="wind of {site}", into="array", dtype="<i2", row_shape=[2],
        attrs={"units": "m/s", "site": "{site}"},
    )  # fmt: skip
    rows = np.arange(20, dtype="<i2").reshape(-1, 2)
    for number, part in enumerate((rows[:3], rows[3:3], rows[3:])):
        answer = server.post(part.tobytes(), "wind", reference="wind.north", chunk_id=str(number), final=1)
        assert answer.status_code == 204, answer.text
    assert answer.headers["Clachan-Array-Rows"] == "10"
    with open_lake(server.url, token=TOKEN) as lake:
        array = lake.arrays["wind of north"]
        assert np.array_equal(array[:], rows)
        assert dict(array.attrs) == {"units": "m/s", "site": "north"}
    # a repeat, an id that stands for others, part of a row, another place
    again = server.post(rows[:3].tobytes(), "wind", reference="wind.north", chunk_id="0")
    assert (again.headers["Clachan-Repeat"], again.headers["Clachan-Array-Rows"]) == ("true", "10")
    other = server.post(rows[:2].tobytes(), "wind", reference="wind.north", chunk_id="0")
    assert other.status_code == 409
    assert "expected the 12 bytes that are stored under this id" in error(other)["message"]
    part_of_row = server.post(b"x" * 7, "wind", reference="wind.north")
    assert (part_of_row.status_code, error(part_of_row)["message"]) == (
        400,
        "array wind of north, body: 7 bytes, expected whole rows of 4 bytes",
    )
    elsewhere = server.post(rows[:1].tobytes(), "wind", reference="wind.north", offset=4)
    assert (elsewhere.status_code, error(elsewhere)["message"]) == (
        409,
        "array wind of north, offset: 4, expected its size 40 bytes",
    )
    assert server.post(rows[:1].tobytes(), "wind", reference="wind.north", offset=40).status_code == 204
    assert server.get("/arrays/meta", name="wind of north").json()["shape"] == [11, 2]
    first = server.post(rows[:1].tobytes(), "wind", reference="wind.south", offset=4)
    assert (first.status_code, server.get("/arrays/meta", name="wind of south").status_code) == (409, 404)


def test_a_large_body_of_rows(server: Server) -> None:
    declare(server, "large", into="array", dtype=[["time", "<i8"], ["value", "<f4"]])
    rows = np.zeros(200_000, [("time", "<i8"), ("value", "<f4")])
    rows["time"] = np.arange(len(rows))
    assert server.post(rows.tobytes(), "large", reference="records").status_code == 204
    with open_lake(server.url, token=TOKEN) as lake:
        assert np.array_equal(lake.arrays["records"][:], rows)


def test_an_array_of_other_rows_is_left_alone(server: Server) -> None:
    with open_lake(server.url, token=TOKEN) as lake:
        lake.arrays.create("taken", (0, 3), "<f8")
    declare(server, "other", into="array", dtype="<i4")
    answer = server.post(b"\0\0\0\0", "other", reference="taken")
    assert answer.status_code == 409
    assert error(answer)["message"] == (
        "array taken: rows of [3] <f8, order C, expected [] <i4, order C, as policy other says"
    )
    declare(server, "twin", into="array", dtype="<i4")
    assert server.post(b"\0\0\0\0", "twin", reference="of twin").status_code == 204
    answer = server.post(b"\0\0\0\0", "other", reference="of twin")
    assert (answer.status_code, error(answer)["message"]) == (
        409,
        "array of twin, policy: other, expected twin, which made it",
    )
    with open_lake(server.url, token=TOKEN) as lake:
        lake.arrays.create("by hand", (0,), "<i4")
    assert server.post(b"\0\0\0\0", "other", reference="by hand").headers["Clachan-Array-Rows"] == "1"
    answer = server.post(b"\0\0\0\0", "other", reference="taken")
    letter = fluentd(server, "other", "taken", b"\0\0\0\0").headers["Clachan-Dead-Letter"]
    assert server.get("/dead/meta", number=letter).json()["reason"] == error(answer)["message"]
    letter = fluentd(server, "other", "new", b"\0\0\0").headers["Clachan-Dead-Letter"]
    assert "expected whole rows of 4 bytes" in server.get("/dead/meta", number=letter).json()["reason"]
    assert server.get("/arrays/meta", name="new").status_code == 404


# -- streams themselves


def test_streams_are_described_truncated_and_deleted(server: Server) -> None:
    def put(dry_run: int = 0, **keys: Any) -> requests.Response:
        return server.session.put(
            f"{server.url}/streams/meta", params={"name": "made", "dry_run": dry_run}, json=keys, timeout=20
        )

    answer = put(dry_run=1, attrs={"title": "<b>"})
    assert (answer.status_code, answer.headers["Clachan-Changed"]) == (201, "true")
    assert server.get("/streams/meta", name="made").status_code == 404
    assert put(attrs={"title": "<b>", "units": "V"}).status_code == 201
    answer = put(attrs={"title": "<b>"})
    assert (answer.status_code, answer.headers["Clachan-Changed"]) == (200, "false")
    answer = put(attrs={"owner": "me"}, remove_attrs=["units", "none"])
    assert (answer.headers["Clachan-Changed"], answer.json()["attrs"]) == ("true", {"title": "<b>", "owner": "me"})
    other = put(policy="wav")
    assert (other.status_code, error(other)["message"]) == (
        409,
        "stream 'made', policy: wav, expected raw, which made it",
    )
    wrong = put(attrs=5)
    assert (wrong.status_code, error(wrong)["message"]) == (400, "stream 'made', key attrs: 5, expected an object")
    assert error(put(size=5))["message"].startswith("stream 'made', key size: unknown, expected one of attrs")
    for part in (b"one", b"two"):
        server.post(part, reference="made")
    far = server.session.post(f"{server.url}/streams/truncate?name=made&before=7", timeout=20)
    assert (far.status_code, error(far)["message"]) == (400, "stream 'made', before: 7, expected at most its size 6")
    done = server.session.post(f"{server.url}/streams/truncate?name=made&before=5", timeout=20)
    assert done.json() == {"start": 3, "size": 6, "forgotten": 3}
    assert server.session.delete(f"{server.url}/streams/meta?name=made", timeout=20).status_code == 204
    assert server.session.delete(f"{server.url}/streams/meta?name=made", timeout=20).status_code == 404
    assert server.session.post(f"{server.url}/streams/truncate?name=made&before=0", timeout=20).status_code == 404


def test_all_of_it_from_python(server: Server) -> None:
    with open_lake(server.url, token=TOKEN) as lake:
        assert isinstance(lake, RemoteLake)
        assert lake.policies.declare("python", pattern="a", unmatched="dead", name="py/{tag}")
        assert not lake.policies.declare("python", pattern="a", unmatched="dead", name="py/{tag}")
        assert lake.policies["python"]["name"] == "py/{tag}"
        with pytest.raises(RequestError, match="400 policy python, key into: 'x', expected stream or array"):
            lake.policies.declare("python", into="x")
        number = int(server.post(b"bytes", "python", reference="b").headers["Clachan-Dead-Letter"])
        assert number in lake.dead
        assert (lake.dead[number]["tag"], lake.dead.read(number)) == ("b", b"bytes")
        with pytest.raises(TakenError, match="expected a tag that the pattern of policy python matches"):
            lake.dead.replay(number)
        lake.policies.declare("python", name="py/{tag}")
        assert lake.dead.replay(number) == {"kind": "stream", "size": 5, "new": True}
        assert number not in lake.dead
        stream = lake.streams["py/b"]
        stream.attrs["title"] = "B"
        assert dict(lake.streams["py/b"].attrs) == {"title": "B"}
        assert (stream.truncate(5), stream.start) == (5, 5)
        made = lake.streams.create("py/c", attrs={"x": 1})
        assert dict(made.attrs) == {"x": 1}
        with pytest.raises(TakenError, match="stream 'py/c': exists, expected a new name"):
            lake.streams.create("py/c")
        del lake.streams["py/c"]
        assert "py/c" not in lake.streams
        lake.policies.delete("python")
        assert "python" not in lake.policies
    assert json.loads(server.get("/streams/meta", name="py/b").text)["policy"] == "python"
