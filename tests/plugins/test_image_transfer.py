"""Images fetched for real, over connections that break and lie."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from . import image_stores
from .image_stores import (
    MIB,
    ROOT,
    TOKEN,
    Busy,
    Careless,
    Cutting,
    Lying,
    Nothing,
    Slow,
    make_disk,
    manifest_of,
    put,
    util,
)

serving, disk = image_stores.serving, image_stores.disk
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("qemu-img"), reason="this machine cannot: qemu-img is not installed (qemu-utils)"
    ),
]
FETCH = """
import sys
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader([sys.argv[1]])
from ansible_collections.clachan.platform.plugins.module_utils.image_store import ImageStore
from ansible_collections.clachan.platform.plugins.module_utils.image_transfer import Source, fetch
print(fetch(ImageStore(sys.argv[2]), sys.argv[3], [Source(sys.argv[4], sys.argv[5])], 1 << 30)[1])
"""


def begin_fetch(store: Any, sha256: str, server: Any) -> "subprocess.Popen[str]":
    """A fetch in a process of its own."""
    command = [sys.executable, "-c", FETCH, str(ROOT / "collections"), store.path, sha256, server.url, TOKEN]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def sha256(tmp_path: Path, disk: Path) -> str:
    return put(tmp_path / "far", disk)


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store to fetch into; pauses are short."""
    monkeypatch.setattr(util("image_transfer"), "PAUSE", 0.01)
    return util("image_store").ImageStore(str(tmp_path / "near"))


def fetch(store: Any, sha256: str, *servers: Any, maximum: int = 1 << 30) -> tuple[bool, list[str]]:
    """Whether it was fetched, and what was said on the way."""
    said: list[str] = []
    transfer = util("image_transfer")
    sources = [transfer.Source(server.url, TOKEN) for server in servers]
    _, fetched = transfer.fetch(store, sha256, sources, maximum, said.append)
    return fetched, said


def left(store: Any) -> list[str]:
    """What lies in the store, without its locks."""
    return sorted(name for name in os.listdir(store.path) if name != ".locks")


def refused(store: Any, sha256: str, *servers: Any, **more: Any) -> str:
    with pytest.raises(util("image_transfer").TransferError) as caught:
        fetch(store, sha256, *servers, **more)
    return str(caught.value)


def test_an_image_is_fetched_once(near: Any, sha256: str, disk: Path, serving: Any) -> None:
    server = serving()
    assert fetch(near, sha256, server) == (True, [])
    assert Path(near.disk(sha256)).read_bytes() == disk.read_bytes()
    assert near.get(sha256) == manifest_of(disk)
    assert os.stat(near.disk(sha256)).st_mode & 0o777 == 0o444
    assert left(near) == [sha256]
    assert fetch(near, sha256, server) == (False, [])
    assert (server.sent, server.asked) == (disk.stat().st_size, [None])


def test_a_cut_transfer_resumes_and_sends_no_byte_twice(near: Any, sha256: str, disk: Path, serving: Any) -> None:
    server = serving(Cutting)
    fetched, said = fetch(near, sha256, server)
    assert fetched
    assert len(said) == len(server.asked) - 1 == 2
    assert "again from byte 5242880" in said[0]
    assert server.asked == [None, "bytes=5242880-", "bytes=10485760-"]
    assert server.sent == disk.stat().st_size


def test_another_source_goes_on_where_the_first_one_gave_up(
    near: Any, sha256: str, disk: Path, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(util("image_transfer"), "TRIES", 1)
    first, second = serving(Cutting), serving()
    fetched, said = fetch(near, sha256, first, second)
    assert fetched
    lost = f"IncompleteRead(0 bytes read, {disk.stat().st_size - 5 * MIB} more expected)"
    assert said == [f"source {first.url}: connection lost ({lost}), expected all bytes"]
    assert second.asked == ["bytes=5242880-"]
    assert first.sent + second.sent == disk.stat().st_size


def test_a_killed_fetch_is_gone_on_with(near: Any, sha256: str, disk: Path, serving: Any) -> None:
    server = serving(Slow)
    running = begin_fetch(near, sha256, server)
    partial = Path(near.path) / f".fetch-{sha256}"
    try:
        end = time.monotonic() + 30
        while not partial.exists() or partial.stat().st_size < 4 * MIB:
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    begin = partial.stat().st_size
    near.clean()
    whole = serving()
    assert fetch(near, sha256, whole) == (True, [])
    assert whole.asked == [f"bytes={begin}-"]
    assert whole.sent == disk.stat().st_size - begin
    assert left(near) == [sha256]


def test_corrupted_bytes_never_come_into_the_store(near: Any, sha256: str, disk: Path, serving: Any) -> None:
    liar = serving(Lying)
    content = bytearray(disk.read_bytes())
    content[-5] ^= 1
    found = hashlib.sha256(content).hexdigest()
    expected = f"source {liar.url}: sha256 of what came is {found}, expected {sha256}"
    assert refused(near, sha256, liar) == f"image {sha256}: {expected}"
    assert left(near) == []
    fetched, said = fetch(near, sha256, liar, serving())
    assert (fetched, said) == (True, [expected])
    near.verify(sha256)


def test_a_damaged_part_is_fetched_anew(near: Any, sha256: str, disk: Path, serving: Any) -> None:
    near.make()
    (Path(near.path) / f".fetch-{sha256}").write_bytes(bytes(3 * MIB))
    server = serving()
    assert fetch(near, sha256, server) == (True, [f"image {sha256}: what was there is damaged; fetched anew"])
    assert server.asked == [f"bytes={3 * MIB}-", None]
    (Path(near.path) / f".fetch-{'0' * 64}").write_bytes(b"x")
    os.utime(Path(near.path) / f".fetch-{'0' * 64}", (1, 1))
    near.remove(sha256)
    (Path(near.path) / f".fetch-{sha256}").write_bytes(bytes(disk.stat().st_size + 1))
    assert fetch(near, sha256, server)[0]
    assert left(near) == [sha256]


def test_sources_that_fail_otherwise(near: Any, sha256: str, serving: Any) -> None:
    nothing, busy, careless = serving(Nothing), serving(Busy), serving(Careless)
    assert refused(near, sha256, nothing) == f"image {sha256}: source {nothing.url}: status 404, expected the image"
    fetched, said = fetch(near, sha256, nothing, busy)
    assert fetched
    again = f"source {busy.url}: status 503, expected the image; again from byte 0"
    assert said == [f"source {nothing.url}: status 404, expected the image", again, again]
    near.remove(sha256)
    (Path(near.path) / f".fetch-{sha256}").write_bytes(b"QFI")
    assert fetch(near, sha256, careless) == (True, [])
    stranger = util("image_transfer").Source(careless.url, "another")
    with pytest.raises(util("image_transfer").TransferError, match="status 401, expected the image"):
        util("image_transfer").fetch(near, "1" * 64, [stranger], 1 << 30)
    with pytest.raises(util("image_transfer").TransferError, match=r"connection lost \(.*refused.*\), expected all"):
        util("image_transfer").fetch(near, "1" * 64, [util("image_transfer").Source("http://127.0.0.1:1")], 1 << 30)
    with pytest.raises(util("image_store").ImageStoreError, match="expected the sha256 of its disk"):
        util("image_transfer").fetch(near, "../x", [stranger], 1 << 30)
    with pytest.raises(util("image_transfer").TransferError, match="expected a URL like http://HOST:PORT"):
        util("image_transfer").Source("file:///etc/passwd")


def test_silence_is_a_cut(near: Any, sha256: str, serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util("image_transfer"), "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(util("image_transfer"), "TRIES", 2)
    silent, whole = serving(Slow), serving()
    silent.RequestHandlerClass.piece = 5 * MIB
    fetched, said = fetch(near, sha256, silent, whole)
    assert fetched
    assert any("timed out" in text for text in said)


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "virtual size of the manifest": ({"virtual_size": 1 << 62}, f"{1 << 62} bytes, expected at most {1 << 30}"),
    "another virtual size": (
        {"virtual_size": 1 << 20},
        f"virtual size {64 << 20}, expected {1 << 20} as in its manifest",
    ),
    "raw that is none": ({"disk_format": "raw"}, "format qcow2, expected raw"),
    "unknown format": ({"disk_format": "../../x"}, "disk_format '../../x', expected qcow2 or raw"),
    "no size": ({"size": 0}, "manifest of another image"),
    "another size": ({"size": 7 * MIB}, "sha256 of what came is"),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_manifest_is_refused(near: Any, tmp_path: Path, disk: Path, serving: Any, case: str) -> None:
    changes, expected = HOSTILE[case]
    folder = tmp_path / "far" / manifest_of(disk)["sha256"]
    form = "disk.qcow2" if "/" in changes.get("disk_format", "") else f"disk.{changes.get('disk_format', 'qcow2')}"
    folder.mkdir(parents=True)
    shutil.copyfile(disk, folder / form)
    (folder / "manifest.json").write_text(json.dumps(manifest_of(disk, **changes)))
    assert expected in refused(near, folder.name, serving())
    assert [name for name in left(near) if len(name) == 64] == []


def test_a_hostile_disk_with_the_right_digest_is_refused(near: Any, tmp_path: Path, disk: Path, serving: Any) -> None:
    based = tmp_path / "based"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", based], check=True)
    outside = make_disk(tmp_path / "outside", "-o", f"data_file={tmp_path / 'data'}")
    short = tmp_path / "short"
    short.write_bytes(disk.read_bytes()[: 4 * MIB])
    secret = tmp_path / "secret"
    secret.write_bytes(disk.read_bytes()[:104])
    for path, expected in {
        based: "has a backing file, expected a disk that stands alone",
        outside: "has an external data file, expected a disk that stands alone",
        short: "errors inside, expected a whole file",
        secret: "expected",
    }.items():
        hostile = put(tmp_path / "far", path)
        assert expected in refused(near, hostile, serving())
        assert left(near) == []


def test_a_store_without_room(tmp_path: Path, sha256: str, disk: Path, serving: Any, monkeypatch: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: mounting a small disk needs root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", small], check=True)
    try:
        store = util("image_store").ImageStore(str(small / "near"))
        store.make()
        (small / "ballast").write_bytes(bytes(8 * MIB))
        said = refused(store, sha256, serving())
        assert said.startswith(f"image {sha256}: store {store.path}: ")
        assert said.endswith(f"bytes free, expected {disk.stat().st_size}")
        # the room goes while it is fetched
        monkeypatch.setattr(util("image_transfer").Fetching, "check_space", lambda self, size: None)
        said = refused(store, sha256, serving())
        assert said == f"image {sha256}: store {store.path}: full, expected room for {disk.stat().st_size} bytes"
        assert left(store) == []
        (small / "ballast").unlink()
        assert fetch(store, sha256, serving())[0]
    finally:
        subprocess.run(["umount", small], check=True)


def test_two_processes_fetch_one_image_once(near: Any, sha256: str, disk: Path, serving: Any) -> None:
    server = serving()
    both = [begin_fetch(near, sha256, server) for _ in range(2)]
    assert sorted(each.communicate(timeout=60)[0].strip() for each in both) == ["False", "True"]
    assert server.sent == disk.stat().st_size
    assert left(near) == [sha256]


def test_holes_of_a_raw_disk_stay_holes(near: Any, tmp_path: Path, serving: Any) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"\xeb" * 510 + b"\x55\xaa")
    os.truncate(raw, 64 << 20)
    sha256 = put(tmp_path / "far", raw, disk_format="raw")
    assert fetch(near, sha256, serving()) == (True, [])
    status = os.stat(near.disk(sha256))
    assert status.st_size == 64 << 20
    assert status.st_blocks * 512 <= 2 * MIB
    near.verify(sha256)
