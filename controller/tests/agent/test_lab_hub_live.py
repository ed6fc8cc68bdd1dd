"""A real controller orders a hub: supplies, the requests of the hub as instances, secrets that pass between them."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import live
import pytest

from .conftest import BIN, NODE, ROOT, Artifact, unix_users
from .hub import NEEDS, HubNode, Person, platform_collection
from .test_lab_hub import groups

pytestmark = NEEDS
AGENT = [sys.executable, "-m", "clachan.agent"]
FILES = ROOT / "files"
LOCK = "# of {{ 7 * 6 }}\n" * 12000
"""Of nothing, and longer than what a request may say."""


@pytest.fixture(scope="module")
def users() -> Iterator[list[str]]:
    with unix_users(f"clo{os.getpid()}", 7) as names:
        yield names


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


def test_hubs_of_two_tenants_are_ordered_and_removed(node: HubNode, folder: Path, users: list[str]) -> None:
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
            controller.tenant("zeta")
            for software in ("lake", "lab", "lab_user"):
                controller.supply(NODE, f"clachan.platform.{software}")
            order(controller, "home", [{"name": "alice"}, {"name": "bob", "group": "small"}])
            order(controller, "zeta", [{"name": "carol"}], lab_environments=[{"name": "sky", "lock": LOCK}])
            until(lambda: state(controller, "home.hub") == state(controller, "zeta.hub") == "started", controller, node)
            assert (state(controller, "home.hub.alice"), state(controller, "home.hub.bob")) == ("started", "started")
            shown = controller.ok("GET", "/instances/home.hub.bob")["published"]
            assert (shown["secret"], "768 MiB of memory" in shown["limits"]) == ("<secret>", True)
            with (
                person(controller, folder, "home", "alice") as alice,
                person(controller, folder, "zeta", "carol") as carol,
            ):
                tenants_do_not_see_one_another(controller, node, alice, carol)
            for tenant in ("home", "zeta"):
                controller.ok("DELETE", f"/instances/{tenant}.hub")
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
        observed = {one["path"]: one["observed"] for one in controller.ok("GET", "/instances")["items"]}
        shown = {path: (one["state"], one["message"]) for path, one in observed.items()}
        if time.monotonic() > limit:
            pytest.fail(f"{shown}: {(node.home / 'agent.log').read_text()[-3000:]}")
        time.sleep(0.5)


def state(controller: live.Live, path: str) -> str:
    return str(controller.ok("GET", f"/instances/{path}")["observed"]["state"])


def order(controller: live.Live, tenant: str, people: list[dict[str, str]], **more: object) -> None:
    """A lake and a hub beside it."""
    lake = f"{tenant}.lake"
    controller.request(lake, "clachan.platform.lake", parameters={"lake_tls": True})
    controller.request(
        f"{tenant}.hub",
        "clachan.platform.lab",
        type="hub",
        parameters={
            "lab_users": people,
            "lab_groups": [{"name": "small", "memory_mib": 768}],
            "lab_disk_mib": 64,
            "lab_cpu_milli": 150,
            "lab_tls": True,
            "lab_controller_url": controller.url,
            "lab_controller_ca": Path(controller.ca_file).read_text(),
            "lab_lake_url": {"from": lake, "key": "url"},
            "lab_lake_ca": {"from": lake, "key": "certificate"},
            "lab_lake_token": {"from": lake, "key": "token"},
            **more,
        },
    )


@contextmanager
def person(controller: live.Live, folder: Path, tenant: str, name: str) -> Iterator[Person]:
    """Who has a running server in the hub of the tenant that they are a member of."""
    hub = controller.ok("GET", f"/instances/{tenant}.hub")["published"]
    certificate = folder / f"{tenant}.pem"
    certificate.write_text(hub["certificate"])
    found = Person(hub["url"], certificate, name, str(controller.as_user(name, "member", [tenant]).token))
    try:
        assert found.login().status_code == 200
        found.open_server()
        yield found
    finally:
        found.session.close()


LOOKS = """
import os, ssl, urllib.request, urllib.error
from clachan_lake import open_lake
print(os.environ["CLACHAN_LAKE"].partition(":")[0], sorted(open_lake().arrays))
print({os.stat(f"/proc/{pid}").st_uid for pid in os.listdir("/proc") if pid.isdigit()} == {os.getuid()})
for path in PATHS:
    try:
        print(path, os.listdir(path))
    except OSError as error:
        print(type(error).__name__)
mine = open(os.environ["CLACHAN_LAKE_TOKEN_FILE"]).read().strip()
for url in URLS:
    try:
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {mine}"})
        print(url, urllib.request.urlopen(asked, context=ssl._create_unverified_context()).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def tenants_do_not_see_one_another(controller: live.Live, node: HubNode, alice: Person, carol: Person) -> None:
    """Kernels, files, processes, arrays."""
    foreign = Person(carol.base + "/hub/", carol.ca, "alice", alice.token)
    assert foreign.login().status_code == 403
    foreign.session.close()
    views = {path: controller.ok("GET", f"/instances/{path}") for path in ("zeta.lake", "zeta.hub.carol")}
    slots = {path: Path(view["slot"]["directory"]) for path, view in views.items()}
    sky = node.home / "mounts" / slots["zeta.hub.carol"].name / "environments/sky"
    assert [path.name for path in sky.glob("lib/python3*/site-packages/clachan_lake")] == ["clachan_lake"]
    assert (slots["zeta.hub.carol"] / "etc/environments/sky.txt").read_text() == LOCK
    kernels = {one.name: one.kernel() for one in (alice, carol)}
    for name, kernel in kernels.items():
        made = f"from clachan_lake import open_lake\nopen_lake().arrays.create('of/{name}', (3,), 'f8')"
        assert kernel.run(made) == ""
    paths = [str(slots["zeta.lake"] / "var"), str(slots["zeta.hub.carol"] / "var")]
    paths += [str(node.home / "mounts" / slots["zeta.hub.carol"].name / "home")]
    launcher = views["zeta.hub.carol"]["published"]["url"]
    host, _, port = launcher.rpartition(":")
    urls = [views["zeta.lake"]["published"]["url"] + "/arrays", launcher + "/"]
    urls.append(f"{host}:{int(port) + 1}/user/carol/api/kernels")
    looks = LOOKS.replace("PATHS", repr(paths)).replace("URLS", repr(urls))
    said = kernels["alice"].run(looks).splitlines()
    assert said == ["https ['of/alice']", "True", *["PermissionError"] * 3, "401", "401", "403"]
    for kernel in kernels.values():
        kernel.close()
