"""The modules image_fetch and image_export, and the role image_store, with a real controller."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from . import image_stores
from .image_stores import TOKEN, manifest_of, put, util

serving, disk = image_stores.serving, image_stores.disk
pytestmark = pytest.mark.skipif(
    not shutil.which("qemu-img"), reason="this machine cannot: qemu-img is not installed (qemu-utils)"
)


@pytest.fixture
def uploaded(platform: Any, disk: Path) -> str:
    """The disk as an image of the controller."""
    content = manifest_of(disk)
    where = f"/images/{content['sha256']}"
    platform.live.ok("PUT", where, content)
    said = f"bytes 0-{content['size'] - 1}/{content['size']}"
    platform.live.ok("PUT", f"{where}/disk", data=disk.read_bytes(), headers={"content-range": said})
    return str(content["sha256"])


def test_image_fetch_from_the_controller(platform: Any, uploaded: str, run_module: Any, tmp_path: Path) -> None:
    arguments = platform.arguments(images=[uploaded], store=str(tmp_path / "store"))
    check = run_module("image_fetch", arguments, check=True)
    assert (check["changed"], check["images"], (tmp_path / "store").exists()) == (True, [], False)
    done = run_module("image_fetch", arguments)
    assert done["diff"] == {"before": {"images": []}, "after": {"images": [uploaded]}}
    assert (done["changed"], done["attempts"]) == (True, [])
    (image,) = done["images"]
    path = tmp_path / "store" / uploaded / "disk.qcow2"
    assert (image["sha256"], image["name"], image["path"]) == (uploaded, "debian", str(path))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == uploaded
    for check_mode in (True, False):
        again = run_module("image_fetch", arguments, check=check_mode)
        assert (again["changed"], again["images"]) == (False, [image])
    for check_mode in (True, False):
        gone = run_module("image_fetch", arguments | {"state": "absent"}, check=check_mode)
        assert (gone["changed"], gone["images"]) == (True, [image])
        assert path.exists() == check_mode
    assert run_module("image_fetch", arguments | {"state": "absent"})["changed"] is False


def test_image_fetch_as_a_node(platform: Any, uploaded: str, run_module: Any, tmp_path: Path) -> None:
    node = tmp_path / "home" / "node"
    node.mkdir(parents=True)
    joined = platform.live.join(f"n{os.getpid()}", slots=0)
    for own, file in (("cert.pem", "cert.pem"), ("key.pem", "key.pem")):
        shutil.copyfile(joined.folder / own, node / file)
    shutil.copyfile(joined.ca_file, node / "ca.pem")
    (node / "config.json").write_text(json.dumps({"controller_url": joined.url}))
    done = run_module("image_fetch", {"images": [uploaded], "home": str(tmp_path / "home")})
    assert done["changed"]
    assert done["images"][0]["path"] == str(tmp_path / "home" / "images" / uploaded / "disk.qcow2")


def test_image_fetch_asks_the_controller_last(
    platform: Any, uploaded: str, run_module: Any, serving: Any, tmp_path: Path, disk: Path
) -> None:
    server = serving()
    sources = [{"url": server.url, "token": TOKEN}]
    arguments = platform.arguments(images=[uploaded], store=str(tmp_path / "store"), sources=sources)
    done = run_module("image_fetch", arguments)
    assert done["attempts"] == [f"source {server.url}: status 404, expected the image"]
    assert TOKEN not in json.dumps(done)
    put(tmp_path / "far", disk)
    run_module("image_fetch", arguments | {"state": "absent"})
    assert run_module("image_fetch", arguments)["attempts"] == []
    assert server.sent == disk.stat().st_size


def test_image_fetch_that_cannot(platform: Any, run_module: Any, tmp_path: Path) -> None:
    failed = run_module("image_fetch", platform.arguments(images=["0" * 64], store=str(tmp_path / "store")))
    assert failed["msg"] == f"image {'0' * 64}: source {platform.live.url}/api/v1: status 404, expected the image"
    failed = run_module("image_fetch", platform.arguments(images=["debian"], store=str(tmp_path / "store")))
    assert failed["msg"] == "image 'debian': expected the sha256 of its disk, 64 hexadecimal digits"
    failed = run_module("image_fetch", {"images": ["0" * 64], "home": str(tmp_path / "none")})
    assert "expected the option url, CLACHAN_URL or the file" in failed["msg"]


@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk", "vdi"])
def test_image_export(run_module: Any, tmp_path: Path, disk: Path, form: str) -> None:
    image = put(tmp_path / "store", disk)
    out = tmp_path / f"out.{form}"
    arguments = {"image": image, "dest": str(out), "format": form, "store": str(tmp_path / "store")}
    assert run_module("image_export", arguments, check=True)["changed"]
    assert not out.exists()
    done = run_module("image_export", arguments)
    assert done["checksum"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert done["diff"] == {"before": {}, "after": {"path": str(out), "checksum": done["checksum"]}}
    assert (tmp_path / f"out.{form}.sha256").read_text() == f"{done['checksum']}  out.{form}\n"
    for check_mode in (True, False):
        again = run_module("image_export", arguments, check=check_mode)
        assert (again["changed"], again["checksum"]) == (False, done["checksum"])
    out.write_bytes(b"another")
    assert run_module("image_export", arguments)["changed"]
    failed = run_module("image_export", arguments | {"image": "1" * 64})
    assert failed["msg"] == f"image {'1' * 64}: not in the store {tmp_path}/store, expected it there"


def test_the_role_fetches_and_serves(lab: Any, serving: Any, tmp_path: Path, disk: Path) -> None:
    image, server = put(tmp_path / "far", disk), serving()
    parameters = {
        "image_store_images": [image],
        "image_store_sources": [{"url": server.url, "token": TOKEN}],
        "image_store_maximum_gib": 1,
        "image_store_token": "another-token",
    }
    slot = lab.add("home.images", "clachan.platform.image_store", parameters=parameters, sealed=["image_store_token"])
    done = lab.pull("--check", "--diff")
    assert done.status == 0, done.all
    assert TOKEN not in done.all
    done = lab.pull()
    assert done.status == 0, done.all
    assert hashlib.sha256((lab.directory / "images" / image / "disk.qcow2").read_bytes()).hexdigest() == image
    again = lab.pull()
    assert again.recap()["home.images"]["changed"] == 0, again.all
    published = json.loads((slot / "etc/published.json").read_text())
    assert (published["images"], published["token"]) == (image, "another-token")
    service = json.loads((slot / "etc/services.d/store.json").read_text())
    from live import until

    running = subprocess.Popen(service["command"], stderr=subprocess.PIPE)
    try:
        place = urlsplit(published["url"])
        until(lambda: running.poll() is not None or _listens(place.hostname, place.port), 60)
        assert running.poll() is None, running.communicate()
        source = util("image_transfer").Source(published["url"], "another-token")
        store = util("image_store").ImageStore(str(tmp_path / "third"))
        util("image_transfer").fetch(store, image, [source], 1 << 30)
        store.verify(image)
    finally:
        running.terminate()
        running.communicate(timeout=20)


def _listens(host: str | None, port: int | None) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((host, port)) == 0
