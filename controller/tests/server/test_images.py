"""Images: declared, uploaded in pieces, judged when whole, fetched in pieces, removed."""

import hashlib
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from clachan.client import Client
from clachan.contract.image import Manifest
from clachan.server.db.models import Event, Image
from clachan.server.decisions import disk_header
from clachan.server.services import images as service
from live import API, Caller, Live, running_controller, until

VIRTUAL = 1 << 30


def qcow2(size: int = 300_000, virtual: int = VIRTUAL, seed: int = 0, **fields: int) -> bytes:
    """A disk whose header is right, or wrong in one of `fields`, and whose rest is nothing a machine could boot."""
    known = {"version": 3, "backing": 0, "encryption": 0, "features": 0} | fields
    head = struct.pack(">4sIQIIQI", b"QFI\xfb", known["version"], known["backing"], 0, 16, virtual, known["encryption"])
    head = head.ljust(72, b"\0") + struct.pack(">QQQII", known["features"], 0, 0, 4, 104)
    return head + hashlib.shake_256(b"%d" % seed).digest(size - len(head))


def manifest(disk: bytes, **more: Any) -> dict[str, Any]:
    facts = {"name": "debian", "sha256": hashlib.sha256(disk).hexdigest(), "size": len(disk), "virtual_size": VIRTUAL}
    about = {"format": 1, "disk_format": "qcow2", "recipe_digest": "0" * 64, "recipe": {"name": "debian"}}
    return (
        facts | about | {"packages": {"bash": "5.2"}, "builder": "bootstrap", "created": "2026-01-31T12:00:00Z"} | more
    )


def send(caller: Caller, disk: bytes, begin: int = 0, end: int | None = None, sha256: str | None = None) -> Any:
    """Bytes begin..end of the disk in one request."""
    end = len(disk) if end is None else end
    said = f"bytes {begin}-{end - 1}/{len(disk)}" if begin < end else f"bytes */{len(disk)}"
    where = f"/images/{sha256 or hashlib.sha256(disk).hexdigest()}/disk"
    return caller.call("PUT", where, data=disk[begin:end], headers={"content-range": said})


def declare(live: Live, disk: bytes, **more: Any) -> str:
    content = manifest(disk, **more)
    live.ok("PUT", f"/images/{content['sha256']}", content)
    return str(content["sha256"])


def upload(live: Live, disk: bytes, **more: Any) -> str:
    sha256 = declare(live, disk, **more)
    response = send(live, disk)
    assert response.json()["state"] == "ready", response.text
    return sha256


def message(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def files(live: Live) -> list[str]:
    return sorted(path.name for path in (live.home / "controller" / "images").iterdir())


def cut_upload(live: Live, disk: bytes, begin: int, sent: int) -> None:
    """Send the head and `sent` bytes of a request that promised all, and cut the connection."""
    where = urlsplit(live.url)
    context = ssl.create_default_context(cafile=live.ca_file)
    sha256 = hashlib.sha256(disk).hexdigest()
    lines = [
        f"PUT {API}/images/{sha256}/disk HTTP/1.1",
        f"Host: {where.hostname}",
        f"Authorization: Bearer {live.token}",
        f"Content-Range: bytes {begin}-{len(disk) - 1}/{len(disk)}",
        f"Content-Length: {len(disk) - begin}",
        "",
        "",
    ]
    plain = socket.create_connection((where.hostname, where.port), 30)
    with context.wrap_socket(plain, server_hostname=where.hostname) as tls:
        tls.sendall("\r\n".join(lines).encode() + disk[begin : begin + sent])
        until(lambda: received(live, sha256) >= begin + sent - service.BLOCK)


def received(live: Live, sha256: str) -> int:
    return int(live.ok("GET", f"/images/{sha256}")["received"])


def test_an_image_is_declared_uploaded_listed_and_fetched(live: Live) -> None:
    disk = qcow2()
    content = manifest(disk)
    sha256 = content["sha256"]
    assert live.call("PUT", f"/images/{sha256}", content).status_code == 201
    assert live.call("PUT", f"/images/{sha256}", content).status_code == 200
    assert live.ok("GET", f"/images/{sha256}") == content | {"state": "incomplete", "received": 0}
    node = live.join("here")
    response = node.call("GET", f"/images/{sha256}/disk")
    assert message(response) == (404, f"disk {sha256}: not complete, expected its upload to be")

    response = send(live, disk)
    assert (response.status_code, response.json()) == (200, content | {"state": "ready", "received": len(disk)})
    assert files(live) == [sha256]
    assert send(live, disk).json() == response.json()
    assert live.call("PUT", f"/images/{sha256}", content).status_code == 200
    (row,) = live.ok("GET", "/images")["items"]
    facts = {key: value for key, value in content.items() if key not in {"format", "recipe", "packages"}}
    assert row == facts | {"state": "ready", "received": len(disk)}
    assert live.ok("GET", "/images?name=debian")["items"] == [row]
    assert live.ok("GET", "/images?name=other")["items"] == []

    member = live.as_user("mia", "member", ["home"])
    for caller in (node, member, live):
        got = caller.call("GET", f"/images/{sha256}/disk")
        assert (got.content, got.headers["etag"]) == (disk, f'"{sha256}"')
        part = caller.call("GET", f"/images/{sha256}/disk", headers={"range": "bytes=299000-"})
        assert (part.status_code, part.content) == (206, disk[299000:])
        assert part.headers["content-range"] == f"bytes 299000-299999/{len(disk)}"
    beyond = node.call("GET", f"/images/{sha256}/disk", headers={"range": "bytes=300000-"})
    assert beyond.status_code == 416
    kinds = [row["kind"] for row in live.ok("GET", "/events")["items"]]
    assert [kind for kind in kinds if kind.startswith("image")] == ["image_declared", "image_ready"]


def test_an_image_is_removed(live: Live) -> None:
    sha256 = upload(live, qcow2())
    assert live.call("DELETE", f"/images/{sha256}").status_code == 204
    assert files(live) == []
    for method, path in (("GET", ""), ("GET", "/disk"), ("DELETE", "")):
        assert message(live.call(method, f"/images/{sha256}{path}")) == (
            404,
            f"image {sha256}: unknown, expected a declared one",
        )
    assert live.call("GET", "/images/..%2f..%2fclachan.db/disk").status_code == 404


def test_an_image_that_an_instance_has_is_not_removed(live: Live, hello: str) -> None:
    sha256 = upload(live, qcow2())
    live.request("home.machine", hello, parameters={"hello_text": sha256})
    assert message(live.call("DELETE", f"/images/{sha256}")) == (
        409,
        f"image {sha256}: instances home.machine have it, expected none that does",
    )
    assert files(live) == [sha256]
    live.request("home.machine", hello, parameters={"hello_text": "another"})
    assert live.call("DELETE", f"/images/{sha256}").status_code == 204


def test_another_manifest_of_a_ready_image_is_refused(live: Live) -> None:
    disk = qcow2()
    sha256 = upload(live, disk)
    response = live.call("PUT", f"/images/{sha256}", manifest(disk, name="other"))
    assert message(response) == (409, f"image {sha256}: has another manifest, expected the same")
    response = live.call("PUT", f"/images/{'0' * 64}", manifest(disk))
    assert message(response) == (422, f"manifest: sha256 {sha256}, expected that of the path, {'0' * 64}")
    wrong = {"name": "a/b", "size": 0, "created": "today", "builder": "magic", "disk_format": "vmdk", "format": 2}
    for key, value in wrong.items():
        response = live.call("PUT", f"/images/{sha256}", manifest(disk) | {key: value})
        assert (response.status_code, response.json()["error"]["field"]) == (422, key)


def test_a_cut_upload_goes_on_where_it_was_cut(live: Live) -> None:
    disk = qcow2(5 << 20)
    sha256 = declare(live, disk)
    cut_upload(live, disk, 0, 3 << 20)
    until(lambda: not live.controller.uploads)
    begin = received(live, sha256)
    assert 2 << 20 <= begin <= 3 << 20
    assert live.ok("GET", f"/images/{sha256}")["state"] == "incomplete"
    response = send(live, disk, begin + 1)
    assert message(response) == (409, f"disk {sha256}: bytes from {begin + 1}, expected from {begin}")
    assert send(live, disk, begin, 4 << 20).json()["received"] == 4 << 20
    assert send(live, disk, 0, 0).json()["state"] == "incomplete"
    assert send(live, disk, 4 << 20).json()["state"] == "ready"
    assert live.call("GET", f"/images/{sha256}/disk").content == disk


def test_all_bytes_came_but_nobody_judged_them(live: Live) -> None:
    disk = qcow2()
    sha256 = declare(live, disk)
    partial = live.home / "controller" / "images" / f".upload-{sha256}"
    partial.write_bytes(disk)
    assert received(live, sha256) == len(disk)
    assert send(live, disk, 0, 0).json()["state"] == "ready"

    # killed between the disk and its row
    with live.controller.change() as change:
        change.session.get(Image, sha256).ready = False
    assert live.ok("PUT", f"/images/{sha256}", manifest(disk))["state"] == "ready"

    # the file was lost
    (live.home / "controller" / "images" / sha256).unlink()
    assert live.call("GET", f"/images/{sha256}/disk").status_code == 404
    assert live.ok("PUT", f"/images/{sha256}", manifest(disk))["state"] == "incomplete"
    assert send(live, disk).json()["state"] == "ready"


def test_the_sdk_resumes_after_a_restart_of_the_controller(tmp_path: Path) -> None:
    disk = qcow2(4 << 20)
    path = tmp_path / "disk"
    path.write_bytes(disk)
    wanted = Manifest.model_validate(manifest(disk))
    with running_controller(tmp_path / "home") as live:
        declare(live, disk)
        cut_upload(live, disk, 0, 3 << 20)
        until(lambda: not live.controller.uploads)
        begin = received(live, wanted.sha256)
    assert begin >= 2 << 20
    with running_controller(tmp_path / "home") as live, Client.from_credentials(live.home) as client:
        said: list[int] = []
        view = client.upload_image(wanted, path, said.append)
        assert (view.state, said[-1]) == ("ready", len(disk))
        assert said[0] > begin
        assert client.upload_image(wanted, path).state == "ready"
        assert [each.name for each in client.images()] == ["debian"]
        client.remove_image(wanted.sha256)
        assert list(client.images()) == []


def test_one_upload_at_a_time_and_a_quiet_one_is_taken_over(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = qcow2(4 << 20)
    sha256 = declare(live, disk)
    hold = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield disk[: 2 << 20]
        hold.wait(20)
        yield disk[2 << 20 :]

    ended: list[Any] = []

    def work() -> None:
        headers = {"content-range": f"bytes 0-{len(disk) - 1}/{len(disk)}"}
        try:
            first = Caller(live.url, live.ca_file, live.token)
            ended.append(first.call("PUT", f"/images/{sha256}/disk", data=slowly(), headers=headers).status_code)
        except OSError as error:  # cut amid its body
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until(lambda: received(live, sha256) >= 1 << 20)
        begin = received(live, sha256)
        response = send(live, disk, begin)
        assert message(response) == (409, f"disk {sha256}: is being uploaded, expected one upload at a time")
        monkeypatch.setattr(service, "QUIET_SECONDS", 0)
        assert send(live, disk, received(live, sha256)).json()["state"] == "ready"
    finally:
        hold.set()
        thread.join(20)
    assert len(ended) == 1
    assert ended[0] != 200
    assert live.call("GET", f"/images/{sha256}/disk").content == disk
    assert files(live) == [sha256]


def test_what_is_removed_amid_its_upload_does_not_come_back(live: Live) -> None:
    disk = qcow2(4 << 20)
    sha256 = declare(live, disk)
    assert send(live, disk, 0, 2 << 20).json()["received"] == 2 << 20
    live.ok("DELETE", f"/images/{sha256}")
    assert message(send(live, disk, 2 << 20))[0] == 404
    assert files(live) == []


def test_a_wrong_digest_leaves_nothing(live: Live) -> None:
    disk = qcow2()
    sha256 = declare(live, disk)
    damaged = disk[:-1] + b"\0"
    found = hashlib.sha256(damaged).hexdigest()
    response = send(live, damaged, sha256=sha256)
    assert message(response) == (422, f"disk {sha256}: sha256 of what came is {found}, expected the same")
    assert files(live) == []
    assert live.ok("GET", f"/images/{sha256}")["received"] == 0
    assert send(live, disk).json()["state"] == "ready"


def test_a_content_range_says_what_comes(live: Live) -> None:
    disk = qcow2()
    sha256 = declare(live, disk)
    where = f"/images/{sha256}/disk"
    for said in ("", "bytes 0-1", "bytes 0-299999/*", "items 0-1/2", "bytes -1/2", "bytes ٠-١/٢"):
        response = live.call("PUT", where, data=disk, headers={"content-range": said.encode()})
        assert response.status_code == 422
        assert response.json()["error"]["field"] == "content-range"
    response = live.call("PUT", where, data=disk, headers={"content-range": "bytes 0-9/10"})
    assert message(response) == (422, f"disk {sha256}: 10 bytes, expected 300000 as in the manifest")
    response = live.call("PUT", where, data=disk + b"x", headers={"content-range": "bytes 0-299999/300000"})
    assert message(response) == (422, f"disk {sha256}: more than 300000 bytes, expected those")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"version": 4}, "qcow2 version 4, expected 2 or 3"),
        ({"backing": 512}, "has a backing file, an external data file, encryption or damage"),
        ({"encryption": 1}, "has a backing file, an external data file, encryption or damage"),
        ({"features": 0b100}, "has a backing file, an external data file, encryption or damage"),
        ({"features": 0b10}, "has a backing file, an external data file, encryption or damage"),
        ({"features": 1 << 40}, "has a backing file, an external data file, encryption or damage"),
        ({"virtual": 1 << 62}, f"virtual size {1 << 62}, expected {VIRTUAL} as in the manifest"),
    ],
)
def test_a_hostile_qcow2_is_refused(shared: Live, fields: dict[str, int], expected: str) -> None:
    disk = qcow2(**fields)
    sha256 = declare(shared, disk)
    status, said = message(send(shared, disk))
    assert (status, said.startswith(f"disk {sha256}: {expected}")) == (422, True), said
    assert shared.ok("GET", f"/images/{sha256}")["state"] == "incomplete"


@pytest.mark.parametrize("start", [disk_header.QCOW2, *disk_header.OTHERS])
def test_a_raw_disk_that_is_none_is_refused(start: bytes) -> None:
    assert disk_header.problem(start.ljust(512, b"\0"), 512, "raw", 512) == (
        f"begins with {start.ljust(8, bytes(1))[:8].hex()}, expected the format raw"
    )
    assert disk_header.problem(b"\xeb" * 512, 512, "raw", 512) is None
    assert disk_header.problem(b"\xeb" * 512, 512, "raw", 1024) == "virtual size 512, expected 1024 as in the manifest"
    assert disk_header.problem(b"QFI\xfb", 4, "qcow2", 512) == "4 bytes, expected a whole qcow2 header"


def test_a_virtual_size_beyond_the_limit_is_refused(live: Live) -> None:
    content = manifest(qcow2(), virtual_size=65 << 30)
    response = live.call("PUT", f"/images/{content['sha256']}", content)
    assert message(response) == (413, f"image debian: {65 << 30} bytes, expected at most {64 << 30}")
    assert live.ok("GET", "/images")["items"] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A home whose disk has 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: mounting a small disk needs root")
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "small", home], check=True)
    yield home
    subprocess.run(["umount", home], check=True)


def test_a_full_disk_is_507_and_leaves_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = small_disk / "ballast"

    def leave(bytes_free: int) -> None:
        ballast.unlink(missing_ok=True)
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - bytes_free))

    with running_controller(small_disk, free_mib=0) as live:
        large = qcow2(70 << 20)
        response = live.call("PUT", f"/images/{hashlib.sha256(large).hexdigest()}", manifest(large))
        assert response.status_code == 507
        assert response.json()["error"]["code"] == "full"
        assert live.ok("GET", "/images")["items"] == []

        disk = qcow2(20 << 20)
        sha256 = declare(live, disk)
        leave(10 << 20)
        status, said = message(send(live, disk))
        assert (status, said.endswith(f"expected {len(disk)}")) == (507, True), said
        ballast.unlink()
        assert send(live, disk, 0, 4 << 20).json()["received"] == 4 << 20

        # the space goes while the upload runs
        monkeypatch.setattr(service, "_check_space", lambda controller, more: None)
        leave(10 << 20)
        status, said = message(send(live, disk, 4 << 20))
        assert (status, said) == (507, f"disk {sha256}: no space left, expected room for {len(disk)} bytes")
        assert files(live) == []
        ballast.unlink()
        assert send(live, disk).json()["state"] == "ready"


def test_what_nobody_goes_on_with_is_removed(live: Live) -> None:
    kept, forgotten, fresh = (qcow2(seed=seed) for seed in range(3))
    ready = upload(live, kept)
    for disk in (forgotten, fresh):
        declare(live, disk)
        send(live, disk, 0, 1000)
    folder = live.home / "controller" / "images"
    (folder / ("f" * 64)).write_bytes(b"without a row")
    old = time.time() - service.FORGOTTEN_SECONDS - 1
    for name in (ready, "f" * 64, f".upload-{hashlib.sha256(forgotten).hexdigest()}"):
        os.utime(folder / name, (old, old))
    service.prune(live.controller)
    left = hashlib.sha256(fresh).hexdigest()
    assert files(live) == sorted([ready, f".upload-{left}"])
    assert {row["sha256"] for row in live.ok("GET", "/images")["items"]} == {ready, left}
    with live.controller.read() as session:
        assert session.query(Event).filter(Event.kind == "image_declared").count() == 3
