"""A node in a folder: real supervisord, real Ansible, real files; the platform collection of this tree, and a built
collection of test software. The controller's part is a slice that the test makes; `test_live.py` has the real one."""

import hashlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clachan.agent.layout import Layout
from clachan.agent.loop import Agent
from clachan.agent.processes import end_all_of
from clachan.agent.settings import Identity, NodeConfig
from clachan.agent.supervisor import SlotServices
from clachan.agent.supervisord import Supervisord
from clachan.contract.facts import Content, Fact
from clachan.contract.inventory import Inventory

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
NODE = "here"
SUPERVISORD = """\
[supervisord]
logfile = {home}/supervisor/supervisord.log
pidfile = {home}/supervisor/supervisord.pid
nodaemon = true
silent = true
{user}
[unix_http_server]
file = {home}/supervisor/supervisor.sock
chmod = 0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[include]
files = conf.d/*.conf
"""


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that slots' users may enter, with a short path: a unix socket's is limited."""
    path = Path(tempfile.mkdtemp(prefix="cla-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def platform(folder: Path) -> Path:
    """The platform collection, installed: as it stands in this tree, with a manifest."""
    home = folder / "platform"
    collection = home / "ansible_collections/clachan/platform"
    for part in ("plugins", "playbooks", "meta"):
        shutil.copytree(ROOT / part, collection / part, ignore=shutil.ignore_patterns("__pycache__"))
    info = {"namespace": "clachan", "name": "platform", "version": "0.1.0"}
    (collection / "MANIFEST.json").write_text(json.dumps({"collection_info": info, "format": 1}))
    return home


class Artifact:
    """A collection as ansible-galaxy built it."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        subprocess.run(["tar", "-xzf", path, "-C", folder, "MANIFEST.json"], check=True)
        self.digest = hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()

    def download(self, sha256: str, destination: Path) -> None:
        assert sha256 == self.sha256
        shutil.copy(self.path, destination)


@pytest.fixture(scope="session")
def things(folder: Path) -> Artifact:
    """The test software."""
    command = [BIN / "ansible-galaxy", "collection", "build", "--output-path", folder]
    source = Path(__file__).parent / "data/things"
    home = {"ANSIBLE_HOME": str(folder / "galaxy")}
    subprocess.run([*command, source], check=True, capture_output=True, env=os.environ | home)
    return Artifact(folder / "acme-things-1.0.0.tar.gz", folder)


class Node:
    """A node's home, its supervisord, and the slice that a controller would send it."""

    def __init__(self, home: Path, platform: Path, things: Artifact, users: list[str], slots: int = 10) -> None:
        self.home = home
        self.layout = Layout(home)
        self.things = things
        self.mode = "user" if users == [pwd.getpwuid(os.geteuid()).pw_name] else "root"
        for name in ("node", "supervisor/conf.d", "slots"):
            (home / name).mkdir(parents=True)
        self.config = NodeConfig.model_validate(
            {
                "controller_url": "https://127.0.0.1:9",
                "node_name": NODE,
                "mode": self.mode,
                "slots": slots,
                "slots_directory": str(home / "slots"),
                "users": users,
                "supervisor_socket": str(home / "supervisor/supervisor.sock"),
                "platform_path": str(platform),
                "pass_seconds": 0.5,
            }
        )
        self.layout.config.write_bytes(self.config.json_bytes())
        self.layout.identity.write_bytes(Identity(id="node-1", name=NODE).json_bytes())
        self.records: dict[str, dict[str, Any]] = {NODE: {"clachan_node": node_variables()}}
        self.supplies: list[dict[str, Any]] = []
        self.agent: Agent | None = None
        self._supervisord: subprocess.Popen[bytes] | None = None

    # -- supervisord ------------------------------------------------------------------------------------------

    def start_supervisord(self) -> None:
        text = SUPERVISORD.format(home=self.home, user="user = root" if os.geteuid() == 0 else "")
        (self.home / "supervisor/supervisord.conf").write_text(text)
        command = [BIN / "supervisord", "-c", self.home / "supervisor/supervisord.conf"]
        self._supervisord = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/")
        wait_for(lambda: self._answers(), 20)

    def _answers(self) -> bool:
        try:
            self.supervisor.pids()
        except Exception:
            return False
        return True

    @property
    def supervisor(self) -> Supervisord:
        return Supervisord(Path(self.config.supervisor_socket))

    def close(self) -> None:
        self.close_agent()
        if self._supervisord:
            self.stop_services()
            self._supervisord.kill()  # nothing is left below it; a gentle end takes it seconds
            self._supervisord.wait(30)

    def stop_services(self) -> None:
        files = (self.home / "supervisor/conf.d").glob("slot-*.conf")
        slots = [file.stem.removeprefix("slot-") for file in files]
        self.supervisor.apply(SlotServices(slot, self.home / "slots" / slot, None, {}) for slot in slots)

    # -- the slice --------------------------------------------------------------------------------------------

    def declare(self, name: str, software: str = "acme.things.hello", **more: Any) -> str:
        """Put an instance (or its next revision) into the slice; parameters as `parameters={...}`."""
        path = f"home.{name}"
        before = self.records.get(path, {}).get("clachan_instance")
        index = before["slot"]["index"] if before else len(self.records) - 1
        instance = {
            "id": f"id-{name}",
            "revision": before["revision"] + 1 if before else 1,
            "path": path,
            "tenant": "home",
            "software": software,
            "digest": self.things.digest,
            "type": "main",
            "state": more.get("state", "started"),
            "node": NODE,
            "slot": self.slot(index),
            "parent": None,
            "children": more.get("children", {}),
            "sealed": more.get("sealed", []),
        }
        self.records[path] = {"clachan_instance": instance, **more.get("parameters", {})}
        return instance["id"]

    def slot(self, index: int) -> dict[str, Any]:
        name = f"s{index:03d}"
        return {
            "name": name,
            "index": index,
            "user": self.config.user_of(index),
            "directory": str(self.home / "slots" / name),
            "addresses": {"ipv4": f"127.9.0.{16 + index}", "ipv6": f"fd00::{16 + index:x}"},
            "ports": {"first": 20000 + 20 * index, "count": 20},
            "limits": {"memory_mib": 64, "tasks": 64, "cpu_milli": 50},
        }

    def directory(self, name: str) -> Path:
        return Path(self.records[f"home.{name}"]["clachan_instance"]["slot"]["directory"])

    def supply(self, software: str = "acme.things.hello", state: str = "present") -> None:
        line = {"id": f"supply-{software}", "software": software, "digest": self.things.digest, "state": state}
        self.supplies = [one for one in self.supplies if one["id"] != line["id"]] + [line]

    def inventory(self) -> Inventory:
        instances = [path for path in self.records if path != NODE]
        artifact = {
            "collection": "acme.things",
            "version": "1.0.0",
            "artifact_sha256": self.things.sha256,
            "size": self.things.path.stat().st_size,
            "platform": False,
        }
        return Inventory.model_validate_json(
            json.dumps(
                {
                    "platform": "platform-1",
                    "node": NODE,
                    "records": self.records,
                    "groupings": {"nodes": [NODE], "instances": instances},
                    "software": {self.things.digest: artifact},
                    "supplies": self.supplies,
                }
            )
        )

    def keep_slice(self) -> None:
        """On disk, as the poller keeps it."""
        content = {"etag": '"1"', "clachan_inventory": self.inventory().model_dump(mode="json")}
        self.layout.slice.write_text(json.dumps(content))

    def unpack_things(self) -> None:
        """As a supply does it; for an agent that has no controller to fetch from."""
        from clachan.agent.software import Software

        software = Software(self.layout.software, Path(self.config.platform_path))
        software.bring(self.things.digest, self.inventory().software[self.things.digest], self.things.download)

    # -- the agent, in this process and without a controller --------------------------------------------------

    def open_agent(self) -> Agent:
        layout = self.layout
        self.agent = Agent(
            layout, layout.load_config(), layout.load_identity(), self.supervisor, download=self.things.download
        )
        return self.agent

    def close_agent(self) -> None:
        if self.agent:
            self.agent.end()
            self.agent.close()
            self.agent = None

    def send(self) -> None:
        """The slice arrives."""
        assert self.agent
        self.agent.take(self.inventory())

    def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Let the agent work until the condition holds."""
        assert self.agent
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, (self.facts()[-5:], self.agent.memory.instances)
            self.agent.step()

    def work(self, seconds: float) -> None:
        assert self.agent
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.agent.step()

    def facts(self, kind: str | None = None) -> list[Content]:
        """All facts in the spool, oldest first."""
        assert self.agent
        found = [Fact.model_validate(raw.model_dump()).content for raw in self.agent.spool.batch().facts]
        return [fact for fact in found if kind in {None, fact.kind}]

    def states(self, name: str) -> list[str]:
        return [fact.state for fact in self.facts("instance") if fact.instance == f"id-{name}"]

    def state(self, name: str) -> str | None:
        return (self.states(name) or [None])[-1]

    def runs(self) -> int:
        return len(self.facts("run"))


def node_variables() -> dict[str, Any]:
    return {
        "id": "node-1",
        "name": NODE,
        "labels": {},
        "addresses": {"ipv4": "127.9.0.0/20", "ipv6": "fd00::/64", "reach": None},
        "owner": None,
        "state": "active",
    }


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def home(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="h", dir=folder))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def bare(home: Path, platform: Path, things: Artifact) -> Iterator[Node]:
    """A node of one user, without supervisord."""
    node = Node(home, platform, things, [pwd.getpwuid(os.geteuid()).pw_name], slots=60)
    yield node
    node.close()


@pytest.fixture
def node(bare: Node) -> Node:
    """A node of one user, whoever runs the tests, with supervisord; its agent is open."""
    bare.start_supervisord()
    bare.open_agent()
    return bare


@contextmanager
def unix_users(prefix: str, count: int) -> Iterator[list[str]]:
    """Of slots; gone afterwards, with all that they run."""
    names = [f"{prefix}_{index}" for index in range(count)]
    for name in names:
        command = ["useradd", "--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin", name]
        subprocess.run(command, check=True, capture_output=True)
    yield names
    for name in names:
        end_all_of(pwd.getpwnam(name).pw_uid)
        subprocess.run(["userdel", name], check=True, capture_output=True)
