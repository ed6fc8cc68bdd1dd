"""An image of MIB (374) fetched on loopback, from the controller and a node's store, beside curl of the same bytes.

Ours is all that makes an image of it: manifest, bytes, sha256, inspection by qemu-img, sync, place in the store. curl
writes a file and checks nothing; `curl + sha256sum` checks it and syncs. Best of three each.
"""

import contextlib
import hashlib
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from ansible.plugins.loader import init_plugin_loader
from measured import ROOT, header, row

sys.path.insert(0, str(ROOT / "controller" / "tests"))
sys.path.insert(0, str(ROOT / "roles" / "image_store" / "files"))
import serve
from clachan.client import Client
from clachan.contract.image import Manifest
from live import Live, running_controller

MIB = int(sys.argv[1]) if len(sys.argv) > 1 else 374
TOKEN = "token-of-the-store"
TIMES = 3


def util(name: str) -> Any:
    return importlib.import_module(f"ansible_collections.clachan.platform.plugins.module_utils.{name}")


def make_disk(path: pathlib.Path) -> Manifest:
    """A qcow2 full of bytes that do not repeat."""
    noise = path.with_name("noise")
    with noise.open("wb") as file:
        for _ in range(MIB):
            file.write(os.urandom(1 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", noise, path], check=True)
    noise.unlink()
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"name": "bench", "sha256": sha256, "size": path.stat().st_size, "virtual_size": MIB << 20}
    rest = {"disk_format": "qcow2", "recipe_digest": None, "recipe": None, "packages": {}, "builder": "import"}
    return Manifest.model_validate({**about, **rest, "created": "2026-01-31T12:00:00Z"})


def best(work: Callable[[], None], before: Callable[[], None]) -> float:
    found = []
    for _ in range(TIMES):
        before()
        os.sync()
        started = time.monotonic()
        work()
        found.append(time.monotonic() - started)
    return min(found)


def rate(seconds: float) -> str:
    return f"{seconds:.2f} s {MIB / seconds:.0f} MiB/s"


def compare(what: str, folder: pathlib.Path, source: Any, sha256: str, curl: list[str]) -> None:
    store, copy = util("image_store").ImageStore(str(folder / "near")), folder / "copy"
    ours = best(lambda: util("image_transfer").fetch(store, sha256, [source], 1 << 40), lambda: store.remove(sha256))
    command = ["curl", "--silent", "--fail", "--noproxy", "*", "--output", str(copy), *curl]
    bare = best(lambda: subprocess.run(command, check=True), lambda: copy.unlink(missing_ok=True))

    def careful() -> None:
        subprocess.run(command, check=True)
        subprocess.run(["sha256sum", copy], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["sync", copy], check=True)

    checked = best(careful, lambda: copy.unlink(missing_ok=True))
    row(what, rate(ours), rate(bare), f"{ours / bare:.2f}")
    row("  beside curl + sha256sum + sync", rate(ours), rate(checked), f"{ours / checked:.2f}")


@contextlib.contextmanager
def store_server(store: pathlib.Path) -> Iterator[str]:
    settings = store.with_name("settings.json")
    token = store.with_name("token")
    token.write_text(TOKEN)
    with serve.Server(("127.0.0.1", 0), store, TOKEN.encode()) as probe:
        port = probe.server_address[1]
    about = {"host": "127.0.0.1", "port": port, "store": str(store), "token_file": str(token)}
    settings.write_text(json.dumps(about))
    command = [sys.executable, "-I", serve.__file__, str(settings)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait()


def upload(live: Live, manifest: Manifest, disk: pathlib.Path) -> None:
    with Client.from_credentials(live.home) as client:
        started = time.monotonic()
        client.upload_image(manifest, disk)
        row("upload to the controller, checked and synced", rate(time.monotonic() - started))


def main() -> None:
    init_plugin_loader([str(ROOT / "collections")])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="clachan-bench-", dir="/var/tmp"))
    try:
        header("curl")
        disk = folder / "disk"
        manifest = make_disk(disk)
        image = folder / "far" / manifest.sha256
        image.mkdir(parents=True)
        shutil.copyfile(disk, image / "disk.qcow2")
        (image / "manifest.json").write_bytes(manifest.json_bytes())
        with store_server(folder / "far") as url:
            where = f"{url}/images/{manifest.sha256}/disk"
            curl = ["--header", f"Authorization: Bearer {TOKEN}", where]
            compare(
                "fetch from a node's store", folder, util("image_transfer").Source(url, TOKEN), manifest.sha256, curl
            )
        with running_controller(folder / "home", process=True) as live:
            upload(live, manifest, disk)
            where = f"{live.url}/api/v1/images/{manifest.sha256}/disk"
            curl = ["--cacert", live.ca_file, "--header", f"Authorization: Bearer {live.token}", where]
            source = util("image_transfer").controller_source(str(live.home))
            compare("fetch from the controller (TLS)", folder, source, manifest.sha256, curl)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
