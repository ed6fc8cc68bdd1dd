"""A real controller orders a hub: supplies, the requests of the hub as instances, secrets that pass between them."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import live
import pytest

from .conftest import BIN, NODE, ROOT, Artifact
from .hub import NEEDS, HubNode, Person, platform_collection
from .test_lab_hub import groups, users

__all__ = ["users"]
pytestmark = NEEDS
AGENT = [sys.executable, "-m", "clachan.agent"]
FILES = ROOT / "files"


def made_before(envs: Path, name: str) -> None:
    """An environment that counts as made of its lock: this one's. The servers' own is really made."""
    digest = hashlib.sha256()
    for path in (FILES / f"requirements/{name}.txt", next((FILES / "wheels").glob("clachan_lake-*.whl"))):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    folder = envs / f"{name}-{digest.hexdigest()[:12]}"
    folder.mkdir()
    for entry in BIN.parent.iterdir():
        (folder / entry.name).symlink_to(entry)
    (folder / "clachan-environment").write_text("made before")


@pytest.fixture
def node(folder: Path, things: Artifact, users: list[str]) -> Iterator[HubNode]:
    home = folder / "ordered"
    home.mkdir(mode=0o755)
    platform = platform_collection(folder / "ordered_platform")
    (platform / "ansible_collections/clachan/platform/files").symlink_to(FILES)
    found = HubNode(home, platform, things, users)
    for link in (home / "envs").iterdir():
        link.unlink()
    (home / "bin").mkdir()
    for name in ("science", "lake"):
        made_before(home / "envs", name)
    found.start_supervisord()
    found.layout.identity.unlink()
    yield found
    for disk in (home / "mounts").glob("*"):
        subprocess.run(["umount", "-l", disk], check=False, capture_output=True)
    found.close()
    for group in [each for user in users for each in groups(user)]:
        group.rmdir()


def test_a_hub_is_ordered_and_removed(node: HubNode, folder: Path, users: list[str]) -> None:
    collection = Path(node.config.platform_path) / "ansible_collections/clachan/platform"
    home = folder / "ordering"
    home.mkdir()
    with live.running_controller(home, process=True, platform_collection=str(collection)) as controller:
        config = json.loads(node.layout.config.read_text())
        node.layout.config.write_text(json.dumps(config | {"controller_url": controller.url}))
        command = [*AGENT, "join", "--home", str(node.home)]
        subprocess.run(command, input=controller.join_token(NODE) + "\n", text=True, check=True, capture_output=True)
        with (node.home / "agent.log").open("wb") as log:
            agent = subprocess.Popen([*AGENT, "run", "--home", str(node.home)], stdout=log, stderr=log)
        try:
            order(controller, node, folder)
            controller.ok("DELETE", "/instances/home.hub")
            until(lambda: not list((node.home / "mounts").iterdir()), controller, node)
            until(lambda: controller.call("GET", "/instances/home.hub").status_code == 404, controller, node)
            assert [group for user in users for group in groups(user)] == []
            assert (node.home / "volumes/home.hub.alice/home.img").exists()
        finally:
            agent.terminate()
            agent.wait(30)


def until(condition: object, controller: live.Live, node: HubNode, seconds: float = 200) -> None:
    limit = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        shown = [(one["path"], one["observed"]) for one in controller.ok("GET", "/instances")["items"]]
        assert time.monotonic() < limit, (shown, (node.home / "agent.log").read_text()[-3000:])
        time.sleep(0.5)


def order(controller: live.Live, node: HubNode, folder: Path) -> None:
    for software in ("lake", "lab", "lab_user"):
        controller.supply(NODE, f"clachan.platform.{software}")
    controller.request("home.lake", "clachan.platform.lake", parameters={"lake_tls": True})
    controller.request(
        "home.hub",
        "clachan.platform.lab",
        type="hub",
        parameters={
            "lab_users": [{"name": "alice"}, {"name": "bob", "group": "small"}],
            "lab_groups": [{"name": "small", "memory_mib": 768}],
            "lab_disk_mib": 64,
            "lab_cpu_milli": 300,
            "lab_tls": True,
            "lab_controller_url": controller.url,
            "lab_controller_ca": Path(controller.ca_file).read_text(),
            "lab_lake_url": {"from": "home.lake", "key": "url"},
            "lab_lake_ca": {"from": "home.lake", "key": "certificate"},
            "lab_lake_token": {"from": "home.lake", "key": "token"},
        },
    )

    def state(path: str) -> str:
        return str(controller.ok("GET", f"/instances/{path}")["observed"]["state"])

    until(lambda: state("home.hub") == "started", controller, node)
    assert (state("home.hub.alice"), state("home.hub.bob")) == ("started", "started")
    shown = controller.ok("GET", "/instances/home.hub.bob")
    assert (shown["published"]["secret"], "768 MiB of memory" in shown["published"]["limits"]) == ("<secret>", True)
    hub = controller.ok("GET", "/instances/home.hub")["published"]
    (folder / "ordered.pem").write_text(hub["certificate"])
    token = controller.as_user("alice", "member", ["home"]).token
    alice = Person(hub["url"], folder / "ordered.pem", "alice", str(token))
    assert alice.login().status_code == 200
    alice.open_server()
    kernel = alice.kernel()
    assert kernel.run("import os; print(os.environ['CLACHAN_LAKE'].partition(':')[0])") == "https"
    assert kernel.run("from clachan_lake import open_lake; print(len(open_lake().arrays))") == "0"
    kernel.close()
    alice.session.close()
