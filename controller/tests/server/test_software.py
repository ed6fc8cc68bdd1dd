"""Software: artifacts are foreign; the platform's own is what is installed."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from live import Live, artifact, role, running_controller

Members = list[tuple[tarfile.TarInfo, bytes]]


def unpack(path: Path) -> Members:
    with tarfile.open(path) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def pack(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            if member.isreg():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def regular(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


def altered(members: Members, name: str, content: bytes) -> Members:
    return [(member, content if member.name == name else old) for member, old in members]


HOSTILE: dict[str, tuple[Callable[[Members], Members], str]] = {
    "symlink": (lambda m: [*m, special("roles/x", tarfile.SYMTYPE, "/etc")], "regular files and folders"),
    "hardlink": (lambda m: [*m, special("roles/x", tarfile.LNKTYPE, "MANIFEST.json")], "regular files and folders"),
    "device": (lambda m: [*m, special("roles/x", tarfile.CHRTYPE)], "regular files and folders"),
    "fifo": (lambda m: [*m, special("roles/x", tarfile.FIFOTYPE)], "regular files and folders"),
    "absolute": (lambda m: [*m, regular("/etc/x")], "regular files and folders"),
    "parent": (lambda m: [*m, regular("roles/../../x")], "regular files and folders"),
    "newline": (lambda m: [*m, regular("roles/x\ny")], "regular files and folders"),
    "twice": (lambda m: [*m, regular("MANIFEST.json")], "file MANIFEST.json is there twice"),
    "unlisted": (lambda m: [*m, regular("roles/x")], "file roles/x is not as FILES.json lists it"),
    "changed": (lambda m: altered(m, "roles/hello/tasks/main.yml", b"[]"), "tasks/main.yml is not as FILES.json"),
    "missing": (lambda m: [x for x in m if not x[0].name.endswith("main.yml")], "tasks/main.yml is missing"),
    "files": (lambda m: altered(m, "FILES.json", b"{}"), "FILES.json is not as MANIFEST.json lists it"),
    "no manifest": (lambda m: m[1:], "no MANIFEST.json and FILES.json"),
    "not json": (lambda m: altered(m, "MANIFEST.json", b"{"), "MANIFEST.json is not JSON"),
    "no collection": (lambda m: altered(m, "MANIFEST.json", b"{}"), "MANIFEST.json has no 'collection_info'"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_artifact_is_refused(tmp_path: Path, shared: Live, kind: str) -> None:
    change, message = HOSTILE[kind]
    good = artifact(tmp_path, "acme.evil", {"hello": role()})
    bad = pack(tmp_path / "bad.tar.gz", change(unpack(good)))
    refused(shared, bad, message)


def refused(live: Live, path: Path, message: str) -> None:
    headers = {"content-type": "application/gzip"}
    before = sorted(live.controller.artifacts.iterdir())
    response = live.call("POST", "/software", data=path.read_bytes(), headers=headers)
    assert response.status_code == 422, response.text
    assert message in response.json()["error"]["message"]
    assert sorted(live.controller.artifacts.iterdir()) == before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (role({"web_port": {"type": "int"}}), "web_port"),
        (role({"ansible_host": {"type": "str"}}), "ansible_host"),
        (role({"clachan_x": {"type": "str"}}), "clachan_x"),
        (
            role(meta={"nonsense": 1}),
            "role acme.evil.hello: meta/clachan.yml, nonsense: Extra inputs are not permitted",
        ),
        (role(meta={"generate": ["hello_missing"]}), "hello_missing"),
        (role() | {"meta/clachan.yml": "title: &a [x]\nsummary: *a\n"}, "has an alias, expected plain YAML"),
        (role() | {"meta/clachan.yml": "title: !!python/object/apply:os.system [id]\n"}, "is not YAML"),
        (role() | {"meta/clachan.yml": "[" * 5000}, "is not YAML"),
        (role() | {"meta/argument_specs.yml": "- 1\n"}, "expected a mapping argument_specs"),
        ({"meta/clachan.yml": "title: x\n"}, "role hello: no meta/argument_specs.yml"),
        ({"tasks/main.yml": "[]\n"}, "has no role with meta/clachan.yml"),
    ],
)
def test_a_role_that_cannot_be_software_is_refused(
    tmp_path: Path, shared: Live, files: dict[str, str], message: str
) -> None:
    refused(shared, artifact(tmp_path, "acme.evil", {"hello": files}), message)


def test_what_is_no_artifact_is_refused(tmp_path: Path, shared: Live) -> None:
    whole = artifact(tmp_path, "acme.evil", {"hello": role()}).read_bytes()
    path = tmp_path / "x"
    for content in (b"", b"nonsense", gzip.compress(b"nonsense"), whole[:-100], whole[:200]):
        path.write_bytes(content)
        refused(shared, path, "artifact: ")
    response = shared.call("POST", "/software", data=b"x", headers={"content-type": "text/plain"})
    assert response.json()["error"]["message"] == "content-type: text/plain, expected application/gzip"
    platform = artifact(tmp_path, "clachan.platform", {"hello": role()})
    refused(shared, platform, "collection clachan.platform is the platform's own, expected another")


def test_sizes_are_limited(tmp_path: Path) -> None:
    with running_controller(tmp_path / "home", artifact_kib=64, unpacked_kib=256) as live:
        bomb = artifact(tmp_path, "acme.bomb", {"hello": role(tasks="#" * 1024 * 1024)})
        refused_status(live, bomb.read_bytes(), 422, "bytes unpacked, expected less")
        refused_status(live, b"x" * 65 * 1024, 413, "artifact: more than 65536 bytes, expected at most that")
        assert list(live.controller.artifacts.iterdir()) == []


def refused_status(live: Live, content: bytes, status: int, message: str) -> None:
    response = live.call("POST", "/software", data=content, headers={"content-type": "application/gzip"})
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


def test_a_registered_artifact_is_kept_and_fetched(tmp_path: Path, live: Live) -> None:
    path = artifact(tmp_path, "acme.web", {"hello": role({"hello_port": {"type": "int"}}), "other": role()})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = live.register(path)
    assert [row["software"] for row in rows] == ["acme.web.hello", "acme.web.other"]
    manifest = next(content for member, content in unpack(path) if member.name == "MANIFEST.json")
    assert {row["digest"] for row in rows} == {hashlib.sha256(manifest).hexdigest()}
    assert {row["artifact_sha256"] for row in rows} == {sha256}
    assert rows[0]["types"]["main"]["properties"]["hello_port"]
    node = live.join("here")
    assert node.call("GET", f"/artifacts/{sha256}").content == path.read_bytes()
    assert live.call("GET", f"/artifacts/{'0' * 64}").status_code == 404
    assert live.call("GET", "/artifacts/..%2f..%2fclachan.db").status_code == 404
    assert live.register(path) == rows
    assert len(live.ok("GET", "/software")["items"]) == 2

    newer = artifact(tmp_path, "acme.web", {"hello": role(), "other": role()}, "2.0.0")
    digest = live.register(newer)[0]["digest"]
    assert live.ok("GET", "/software/acme.web.hello")["digest"] == digest
    old = live.ok("GET", f"/software/acme.web.hello?digest={rows[0]['digest']}")
    assert old["version"] == "1.0.0"
    assert live.request("home.new", "acme.web.hello")["digest"] == digest
    kept = live.request("home.old", "acme.web.hello", digest=rows[0]["digest"])
    assert kept["digest"] == rows[0]["digest"]
    assert live.request("home.old", "acme.web.hello", title="x")["digest"] == rows[0]["digest"]


def test_a_supply_is_declared_seen_and_removed(tmp_path: Path, live: Live, hello: str) -> None:
    node = live.join("here")
    waiting = live.request("home.one", hello)
    assert waiting["observed"]["state"] == "waiting"
    supply = live.supply("here", hello)
    assert (supply["state"], supply["observed"]) == ("present", "waiting")
    assert node.slice()["supplies"] == [
        {"id": supply["id"], "software": hello, "digest": supply["digest"], "state": "present"}
    ]
    fact = {"kind": "supply", "supply": supply["id"], "digest": supply["digest"]}
    node.accepted({**fact, "state": "present"})
    assert live.ok("GET", f"/supplies/here/{hello}")["observed"] == "present"
    assert live.ok("GET", "/instances/home.one")["node"] == "here"
    assert supply["digest"] in node.slice()["software"]
    response = live.call("PUT", f"/supplies/here/{hello}", {"state": "absent"})
    assert response.status_code == 409
    expected = f"supply of {hello} on here: used by home.one, expected no instance of it"
    assert response.json()["error"]["message"] == expected
    live.ok("DELETE", "/instances/home.one")
    node.started("home.one")
    live.supply("here", hello, state="absent")
    node.accepted({**fact, "state": "absent"})
    assert live.call("GET", f"/supplies/here/{hello}").status_code == 404
    assert node.slice()["supplies"] == []


def installed(folder: Path, files: dict[str, str]) -> str:
    """An installed platform collection with one software role; gives the digest."""
    made = artifact(folder, "clachan.platform", {"sensor": files})
    target = folder / "platform"
    shutil.rmtree(target, ignore_errors=True)
    for member, content in unpack(made):
        (target / member.name).parent.mkdir(parents=True, exist_ok=True)
        (target / member.name).write_bytes(content)
    return hashlib.sha256((target / "MANIFEST.json").read_bytes()).hexdigest()


def test_platform_software_follows_the_installed_collection(tmp_path: Path) -> None:
    home, fqcn = tmp_path / "home", "clachan.platform.sensor"
    first = installed(tmp_path, role({"sensor_port": {"type": "int"}}))
    settings = {"platform_collection": str(tmp_path / "platform")}
    with running_controller(home, **settings) as live:
        (row,) = live.ok("GET", "/software")["items"]
        assert (row["software"], row["digest"], row["artifact_sha256"]) == (fqcn, first, None)
        live.join("here")
        live.supply("here", fqcn)
        live.request("home.one", fqcn, parameters={"sensor_port": 1})
    with running_controller(home, **settings) as live:
        assert live.ok("GET", "/instances/home.one")["revision"] == 1
    second = installed(tmp_path, role({"sensor_port": {"type": "int"}, "sensor_more": {"type": "str"}}))
    with running_controller(home, **settings) as live:
        view = live.ok("GET", "/instances/home.one")
        assert (view["digest"], view["revision"], view["parameters"]) == (second, 2, {"sensor_port": 1})
        assert live.ok("GET", "/instances/home.one/revisions")["items"][1]["author"] == "platform"
        supply = live.ok("GET", f"/supplies/here/{fqcn}")
        assert (supply["digest"], supply["observed"]) == (second, "waiting")
        software = live.ok("GET", "/inventory")["clachan_inventory"]["software"][second]
        assert (software["platform"], software["artifact_sha256"]) == (True, None)


def test_a_damaged_platform_is_not_served(tmp_path: Path) -> None:
    from clachan.server.services.artifacts import read_installed
    from clachan.server.services.refusals import Invalid

    installed(tmp_path, role())
    with (tmp_path / "platform/roles/sensor/meta/clachan.yml").open("a") as file:
        file.write("needs_root: true\n")
    with pytest.raises(Invalid, match=r"file roles/sensor/meta/clachan.yml is not as FILES.json lists it"):
        read_installed(tmp_path / "platform")
    assert json.loads((tmp_path / "platform/MANIFEST.json").read_text())["format"] == 1
