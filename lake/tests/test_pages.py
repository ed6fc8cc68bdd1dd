"""The pages over HTTP: who gets in, what every answer tells a browser, and that text stays text. `test_browser` looks
at them."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import requests
from clachan_lake.ingest import certificate
from clachan_lake.ingest.config import load
from clachan_lake.opening import open_lake
from clachan_lake.pages import assets, showing

from .making import TOKEN, Server
from .test_tls import TlsServer

HOSTILE = "<img src=x onerror=\"a()\"></pre><script>alert('1')</script>{{7*1111111}}{% raw %}&amp;"
VALUES = np.arange(5000, dtype="<i2")
BROWSER = {"Accept": "text/html,*/*;q=0.8"}


@pytest.fixture(scope="module")
def filled(server: Server) -> Server:
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake, lake.transaction():
        more = dict.fromkeys(("title", "description", "owner", "units", "license", HOSTILE), HOSTILE)
        hostile = lake.arrays.create(HOSTILE, 5, "f4", {**more, "tags": [HOSTILE], "source": HOSTILE})
        hostile[:] = 1
        lake.streams.create(HOSTILE, "raw", more).append(HOSTILE.encode())
        lake.streams.create("sheet", "raw").append(b"<html><script>alert(2)</script></html>")
        plain = lake.arrays.create("plain", len(VALUES), VALUES.dtype, {"rate": 1000, "title": "Plain"})
        plain[:] = VALUES
        sound = lake.arrays.create("sound", (8000, 1), "<i2", {"rate": 8000, "full_scale": 32768})
        sound[:] = 1000
        lake.arrays.create("empty", (0, 2), "f8")
        lake.arrays.create("one", (), "f8")
        lake.arrays.create("words", 2, "U5")
    return server


def browser(server: Server, path: str, method: str = "GET", **more: object) -> requests.Response:
    """A request without the session's token, as a browser makes it."""
    headers = {**BROWSER, **more.pop("headers", {})}  # type: ignore[dict-item]
    return requests.request(method, server.url + path, headers=headers, timeout=20, allow_redirects=False, **more)


class Elements(HTMLParser):
    """Names of all elements, and of their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)
        for name, value in attrs:
            assert name not in {"src", "href", "action"} or re.match(r"/|https?://", value or ""), (name, value)
            if tag == "script":
                assert (name, value) in {
                    ("src", "/static/uplot.js"),
                    ("src", "/static/plot.js"),
                    ("defer", None),
                }, (name, value)

    def handle_data(self, data: str) -> None:
        self.text += data


def page(server: Server, path: str, **query: str) -> requests.Response:
    answer = server.session.get(server.url + path, params=query, headers=BROWSER, timeout=20)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer


@pytest.mark.parametrize("kind", ["array", "stream"])
@pytest.mark.parametrize("path", ["/page", "/gadget"])
def test_hostile_text_stays_text(filled: Server, path: str, kind: str) -> None:
    answer = page(filled, path, kind=kind, name=HOSTILE)
    assert answer.status_code == 200
    seen = Elements(answer.text)
    assert HOSTILE in seen.text
    assert not {one for one in seen.attributes if one.startswith("on") or one == "style"}
    assert "7777777" not in seen.text.replace(filled.url, "")
    assert answer.text.count("<script") == (2 if kind == "array" else 0)


def test_hostile_text_stays_text_in_lists_and_searches(filled: Server) -> None:
    for query in ({}, {"query": HOSTILE}, {"tag": HOSTILE}, {"query": "no " + HOSTILE}):
        answer = page(filled, "/", **query)
        assert answer.status_code == 200
        assert HOSTILE in Elements(answer.text).text
        assert "<script" not in answer.text
    refused = page(filled, "/", kind=HOSTILE)
    assert refused.status_code == 400
    assert "<script" not in refused.text


def test_no_style_or_script_stands_in_a_page(filled: Server) -> None:
    for path in ("/", "/page?kind=array&name=plain", "/gadget?kind=array&name=sound", "/login"):
        text = page(filled, path).text
        assert not re.search(r"<style|style=|<script>|javascript:|https?://(?!127)", text), path


@pytest.mark.parametrize("name", ["empty", "one", "words", "plain", "sound"])
def test_every_array_has_a_page(filled: Server, name: str) -> None:
    for path in ("/page", "/gadget"):
        answer = page(filled, path, kind="array", name=name)
        assert answer.status_code == 200
        assert ("figure" in Elements(answer.text).names) == (name in {"plain", "sound"})
        assert ("canvas" in Elements(answer.text).names) == (name == "sound")


def test_what_is_not_there_is_a_page_for_people_and_json_for_programs(filled: Server) -> None:
    answer = page(filled, "/page", kind="array", name="<b>none")
    assert answer.status_code == 404
    assert "array '<b>none': none of this name" in Elements(answer.text).text
    assert "b" not in Elements(answer.text).names
    plain = filled.session.get(f"{filled.url}/page", params={"kind": "array", "name": "none"}, timeout=20)
    assert (plain.status_code, plain.json()["error"]["code"]) == (404, "not_found")


def test_every_answer_tells_the_browser_to_be_careful(filled: Server) -> None:
    paths = ["/", "/page?kind=array&name=plain", "/login", "/static/plot.js", "/streams/data?name=sheet", "/nowhere"]
    paths += ["/plot?name=plain", "/catalogue.jsonld", "/healthz", "/arrays/data?name=plain&npy=1"]
    for path in paths:
        headers = filled.session.get(filled.url + path, headers=BROWSER, timeout=20).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == "no-referrer", path
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none';"), path
        assert policy.endswith("frame-ancestors 'none'"), path
        assert "unsafe" not in policy, path
        assert ("script-src 'self'" in policy) == (path.partition("?")[0] in {"/", "/page", "/login"}), path


def test_only_a_gadget_may_be_framed(filled: Server) -> None:
    answer = page(filled, "/gadget", kind="array", name="plain")
    assert answer.headers["content-security-policy"].endswith("frame-ancestors *")
    assert answer.headers["cache-control"] == "no-store"


def test_who_may_frame_is_configured(own_server: Server) -> None:
    own_server.settings["frame_ancestors"] = ["https://intranet.example", "'self'"]
    own_server.start()
    answer = page(own_server, "/gadget", kind="array", name="none")
    assert answer.headers["content-security-policy"].endswith("frame-ancestors https://intranet.example 'self'")


@pytest.mark.parametrize("wrong", ["*", ["javascript:"], ["https://a b"], ["a; script-src *"], [1], [""]])
def test_who_may_frame_is_checked(tmp_path: Path, wrong: object) -> None:
    file = tmp_path / "serve.json"
    file.write_text(json.dumps({"folder": "f", "socket": "s", "token_file": "t", "frame_ancestors": wrong}))
    with pytest.raises(ValueError, match=r"key frame_ancestors: .*, expected a list of"):
        load(file)


# -- who gets in


def test_a_browser_without_a_token_is_led_to_the_login(filled: Server) -> None:
    answer = browser(filled, "/page?kind=array&name=plain")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=%2Fpage%3Fkind%3Darray%26name%3Dplain"
    form = browser(filled, answer.headers["location"])
    assert form.status_code == 200
    assert 'value="/page?kind=array&amp;name=plain"' in form.text
    assert browser(filled, "/gadget?kind=array&name=plain").status_code == 401


def test_the_token_becomes_a_cookie_that_only_reads(filled: Server) -> None:
    answer = browser(filled, "/login", "POST", data={"token": TOKEN, "next": "/page?kind=array&name=plain"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/page?kind=array&name=plain")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    headers = {"Cookie": cookie.partition(";")[0]}
    assert browser(filled, "/page?kind=array&name=plain", headers=headers).status_code == 200
    assert browser(filled, "/plot?name=plain", headers=headers).status_code == 200
    refused = browser(filled, "/arrays/meta?name=plain", "DELETE", headers=headers)
    assert refused.status_code == 401
    gone = browser(filled, "/logout", "POST", headers=headers)
    assert (gone.status_code, gone.headers["location"]) == (303, "/login")
    assert 'clachan_lake=""' in gone.headers["set-cookie"]


def test_behind_tls_the_cookie_stays_there(tmp_path: Path) -> None:
    pair = {"certificate": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    certificate.certificate(*pair.values(), ["127.0.0.1"])
    server = TlsServer(tmp_path, **{key: str(path) for key, path in pair.items()}).start()
    try:
        answer = browser(server, "/login", "POST", data={"token": TOKEN}, verify=str(server.ca))
        assert answer.status_code == 303
        assert "Secure" in answer.headers["set-cookie"].split("; ")
    finally:
        server.close()


@pytest.mark.parametrize("token", ["", "wrong", "é", f"{TOKEN}x", "a\r\nSet-Cookie: x=y", "x" * 600])
def test_a_wrong_token_is_told(filled: Server, token: str) -> None:
    answer = browser(filled, "/login", "POST", data={"token": token})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "This token is not one of the lake" in answer.text
    assert token[:3] == "" or token not in answer.text


@pytest.mark.parametrize("place", ["//evil.example/", "https://evil.example/", "/\\evil.example", "evil", "/\r\nX: y"])
def test_the_login_leads_nowhere_else(filled: Server, place: str) -> None:
    answer = browser(filled, "/login", "POST", data={"token": TOKEN, "next": place})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_a_form_of_another_site_is_refused(filled: Server, path: str) -> None:
    for site in ("cross-site", "same-site"):
        answer = browser(filled, path, "POST", data={"token": TOKEN}, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
        assert "form: from another site, expected from the lake's own page" in Elements(answer.text).text


def test_a_form_is_short(filled: Server) -> None:
    assert browser(filled, "/login", "POST", data={"token": "x" * 10_000}).status_code == 413


# -- a gadget's token


def test_a_gadgets_token_opens_one_data_set(filled: Server) -> None:
    order = {"scopes": ["view:array/plain"], "note": "for a page"}
    made = filled.session.post(f"{filled.url}/tokens", json=order, timeout=20)
    assert made.status_code in {200, 201}, made.text
    token = made.json()["token"]
    assert browser(filled, f"/gadget?kind=array&name=plain&token={token}").status_code == 200
    bearer = {"Authorization": f"Bearer {token}"}
    assert browser(filled, "/plot?name=plain", headers=bearer).status_code == 200
    assert browser(filled, "/static/plot.js").status_code == 200
    for path in (
        "/gadget?kind=array&name=sound",
        "/gadget?kind=stream&name=plain",
        "/plot?name=sound",
        "/",
        "/catalogue",
    ):
        assert browser(filled, path, headers=bearer).status_code == 403, path
    refused = browser(filled, f"/gadget?kind=array&name=sound&token={token}")
    assert (refused.status_code, "figure" in refused.text) == (403, False)
    assert token not in refused.text
    assert token not in filled.log


# -- plots and tiles


def test_a_plot_is_asked_for_again_only_when_something_changed(filled: Server) -> None:
    first = filled.session.get(f"{filled.url}/plot", params={"name": "plain", "width": 10}, timeout=20)
    assert first.status_code == 200
    assert (first.json()["low"][:2], first.json()["high"][-1]) == ([0.0, 500.0], 4999.0)
    again = {"If-None-Match": first.headers["etag"]}
    asked = filled.session.get(f"{filled.url}/plot", params={"name": "plain", "width": 10}, headers=again, timeout=20)
    assert (asked.status_code, asked.content) == (304, b"")
    other = filled.session.get(f"{filled.url}/plot", params={"name": "plain", "width": 20}, headers=again, timeout=20)
    assert other.status_code == 200
    rows = np.array([9000], "<i2").tobytes()
    filled.session.post(f"{filled.url}/arrays/data", params={"name": "plain", "rows": 1}, data=rows, timeout=20)
    changed = filled.session.get(f"{filled.url}/plot", params={"name": "plain", "width": 10}, headers=again, timeout=20)
    assert (changed.status_code, changed.json()["high"][-1]) == (200, 9000.0)


def test_a_tile_is_a_png(filled: Server) -> None:
    query = {"name": "sound", "zoom": 5, "tile": 0}
    answer = filled.session.get(f"{filled.url}/spectrogram", params=query, timeout=20)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content.startswith(b"\x89PNG")
    again = {"If-None-Match": answer.headers["etag"]}
    assert filled.session.get(f"{filled.url}/spectrogram", params=query, headers=again, timeout=20).status_code == 304


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/plot?name=none", 404, "array 'none': none of this name"),
        ("/plot?name=words", 400, "array 'words', dtype: <U5, expected numbers to draw"),
        ("/plot?name=sound&column=x", 400, "array 'sound', column: 'x', expected one of 0"),
        ("/plot?name=sound&start=9&stop=2", 400, "array 'sound', rows: 9 to 2, expected inside 0 to 8000"),
        ("/plot?name=sound&stop=99999", 400, "array 'sound', rows: 0 to 99999, expected inside 0 to 8000"),
        ("/plot?name=sound&width=0", 400, "parameter width: Input should be greater than or equal to 1"),
        ("/plot?name=sound&width=99999", 400, "parameter width: Input should be less than or equal to 4096"),
        ("/spectrogram?name=empty&zoom=1&tile=0", 400, "array 'empty': shape (0, 2), rate None, expected samples at a"),
        ("/spectrogram?name=sound&zoom=99&tile=0", 400, "parameter zoom: Input should be less than or equal to 40"),
        ("/catalogue?limit=501", 400, "parameter limit: Input should be less than or equal to 500"),
        ("/catalogue?cursor=x", 400, "cursor: 'x', expected one that an answer gave"),
        ("/catalogue?kind=table", 400, "kind: 'table', expected array or stream"),
        ("/catalogue/meta?kind=table&name=x", 404, "kind: 'table', expected array or stream"),
        ("/catalogue/meta?kind=array&name=x", 404, "array 'x': none of this name"),
    ],
)
def test_wrong_requests_are_named(filled: Server, path: str, status: int, message: str) -> None:
    answer = filled.session.get(filled.url + path, timeout=20)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_the_catalogue_over_http(filled: Server) -> None:
    found = filled.get("/catalogue", query="plain").json()
    assert [(one["name"], one["title"]) for one in found["items"]] == [("plain", "Plain")]
    assert found["cursor"] is None
    page_by_page, cursor = [], ""
    while cursor is not None:
        answer = filled.get("/catalogue", limit=3, cursor=cursor).json()
        page_by_page += [(one["name"], one["kind"]) for one in answer["items"]]
        cursor = answer["cursor"]
    assert (len(page_by_page), page_by_page) == (8, sorted(page_by_page))
    assert filled.get("/catalogue/meta", kind="array", name="plain").json()["attrs"]["rate"] == 1000
    linked = filled.get("/catalogue.jsonld")
    assert linked.headers["content-type"] == "application/ld+json"
    assert f"{filled.url}/page?kind=array&name=plain" in {
        one["dcat:landingPage"]["@id"] for one in linked.json()["dcat:dataset"]
    }


# -- files


def test_only_the_pages_own_files_are_served(filled: Server) -> None:
    for name, asset in assets.load().items():
        answer = browser(filled, f"/static/{name}")
        assert (answer.status_code, answer.content) == (200, asset.data)
        again = browser(filled, f"/static/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    assert set(assets.load()) == {"mark.svg", "plot.js", "style.css", "uplot.css", "uplot.js"}
    for name in ("none.js", "..%2froutes.py", "%2e%2e/routes.py", "uplot.LICENSE", ""):
        assert browser(filled, f"/static/{name}").status_code == 404, name


def test_numbers_are_readable() -> None:
    assert [showing.size(n) for n in (0, 1023, 1024, 1_500_000, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.43 MiB",
        "5 TiB",
    ]
    assert [showing.span(n) for n in (0.5, 150, 86_400 * 3)] == ["0.5 s", "2.5 min", "3.0 d"]
    assert showing.dtype([["a", "<i2"], ["b", [["c", "<f8", [2]]]]]) == "{a: int16, b: {c: float64[2]}}"
    assert showing.preview(b'{"a": 1}\n') == '{"a": 1}\n'
    assert showing.preview("é".encode() * 600) == "é" * 512
    assert showing.preview(b"\x00\xffRIFF") == f"000000  00 ff 52 49 46 46{' ' * 30}  ..RIFF"
    assert showing.preview(b"\x1b[31m").startswith("000000")
