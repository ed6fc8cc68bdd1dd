"""Playbooks, plugins and modules as they run: the real ansible-core, the real files, and the real controller.

The collection is a folder with links to only `meta plugins roles playbooks`, so nothing else of the repository can be
what makes a plugin work.
"""

import importlib
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible.plugins.loader import init_plugin_loader
from ansible.utils.collection_loader import AnsibleCollectionConfig

ROOT = Path(__file__).resolve().parents[2]
if AnsibleCollectionConfig.collection_finder is None:
    init_plugin_loader([str(ROOT / "collections")])
sys.path.insert(0, str(ROOT / "controller" / "tests"))
BIN = Path(sys.executable).parent
LOOPBACK = f"127.{16 + os.getpid() % 199}.0"
"""Other processes that test at the same time have other addresses."""
NODE_ID = "5a0f0d4e-0000-4000-8000-000000000001"
PARTS = ("meta", "plugins", "roles", "playbooks")


def make_collections(directory: Path) -> Path:
    platform = directory / "ansible_collections" / "clachan" / "platform"
    platform.mkdir(parents=True)
    for part in PARTS:
        (platform / part).symlink_to(ROOT / part)
    testing = directory / "ansible_collections" / "testing"
    testing.mkdir()
    (testing / "software").symlink_to(Path(__file__).parent / "software")
    return directory


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What goes into ANSIBLE_COLLECTIONS_PATH."""
    # a plain parent: the users of slots must be able to read modules below it
    return make_collections(tmp_path_factory.mktemp("collections"))


@dataclass
class Finished:
    """A command that ended: `out` is standard output and error as they came."""

    status: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err

    def recap(self) -> dict[str, dict[str, int]]:
        """Host -> word of the recap -> count."""
        lines = self.out.partition("PLAY RECAP")[2].splitlines()[1:]
        hosts = [line.split(":", 1) for line in lines if " : ok=" in line]
        counts = ((host.strip(), (word.split("=") for word in words.split())) for host, words in hosts)
        return {host: {word: int(count) for word, count in pairs} for host, pairs in counts}


def run(command: list[str], directory: Path, environment: dict[str, str], seconds: int = 120) -> Finished:
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@dataclass
class Lab:
    """A node's slice, its slots and home below one directory."""

    directory: Path
    collections: Path
    user: str = field(default_factory=lambda: pwd.getpwuid(os.geteuid()).pw_name)
    records: dict[str, Any] = field(default_factory=dict)
    groupings: dict[str, list[str]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        node = self.home / "node"
        node.mkdir(parents=True)
        (node / "node.json").write_text(json.dumps({"id": NODE_ID, "name": "here"}))
        (self.directory / "slots").mkdir()
        self.inventory.write_text(
            json.dumps({"plugin": "clachan.platform.inventory", "slice": "slice.json", "home": str(self.home)})
        )
        self.environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "CLACHAN_HOME": str(self.home),
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
        }

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def inventory(self) -> Path:
        return self.directory / "clachan.yml"

    def add_node(self, name: str = "here", identifier: str = NODE_ID, reach: str | None = None) -> None:
        addresses = {"ipv4": f"{LOOPBACK}.0/20", "ipv6": "fd00:1::/64", "reach": reach}
        about = {"id": identifier, "name": name, "labels": {}, "addresses": addresses, "owner": None, "state": "active"}
        self.records[name] = {"clachan_node": about}
        self.groupings.setdefault("nodes", []).append(name)

    def add(self, path: str, software: str = "testing.software.hello", **more: Any) -> Path:
        """An instance and its slot's directory; `parameters` and fields of `clachan_instance` may be given."""
        index = sum("clachan_instance" in record for record in self.records.values())
        directory = self.directory / "slots" / f"s{index:03d}"
        self._make_slot(directory)
        parameters = more.pop("parameters", {})
        instance = {
            "id": f"00000000-0000-4000-8000-{index:012d}",
            "revision": 1,
            "path": path,
            "tenant": path.partition(".")[0],
            "software": software,
            "digest": "0" * 64,
            "type": "main",
            "state": "started",
            "node": "here",
            "slot": {
                "name": f"s{index:03d}",
                "index": index,
                "user": self.user,
                "directory": str(directory),
                "addresses": {"ipv4": f"{LOOPBACK}.{16 + index}", "ipv6": f"fd00:1::{16 + index:x}"},
                "ports": {"first": 20000 + 20 * index, "count": 20},
                "limits": {"memory_mib": 64, "tasks": 64, "cpu_milli": 50},
            },
            "parent": None,
            "children": {},
            "sealed": [],
        } | more
        self.records[path] = {"clachan_instance": instance} | parameters
        for group in ("instances", f"tenant_{instance['tenant']}", f"software_{software.rpartition('.')[2]}"):
            self.groupings.setdefault(group, []).append(path)
        return directory

    def _make_slot(self, directory: Path) -> None:
        entry = pwd.getpwnam(self.user)
        parts = (("", os.geteuid(), 0o750), ("etc", os.geteuid(), 0o750), ("var", entry.pw_uid, 0o700))
        for part, owner, mode in parts:
            (directory / part).mkdir()
            (directory / part).chmod(mode)
            os.chown(directory / part, owner, entry.pw_gid)

    def write(self) -> None:
        content = {
            "format": 1,
            "platform": "00000000-0000-4000-8000-00000000000f",
            "node": "here",
            "records": self.records,
            "groupings": self.groupings,
            "software": {},
            "supplies": [],
        }
        (self.directory / "slice.json").write_text(json.dumps({"clachan_inventory": content}))

    def ansible(self, *arguments: str, program: str = "ansible-playbook", **environment: str) -> Finished:
        self.write()
        command = [str(BIN / program), "-i", str(self.inventory), *arguments]
        return run(command, self.directory, self.environment | environment)

    def pull(self, *arguments: str, **environment: str) -> Finished:
        """Converge as the agent does: instances of one software."""
        [software] = {one["clachan_instance"]["software"] for one in self.records.values() if "clachan_instance" in one}
        wanted = {"CLACHAN_RUN_SOFTWARE": software, "CLACHAN_RUN_ENTRY": "main"}
        return self.ansible("clachan.platform.converge", *arguments, **wanted, **environment)

    def push(self, *arguments: str, **environment: str) -> Finished:
        """Converge as an operator does."""
        return self.ansible("clachan.platform.converge", *arguments, **environment)


@pytest.fixture
def lab(tmp_path: Path, collections: Path) -> Lab:
    return Lab(tmp_path, collections)


@pytest.fixture
def root_lab(tmp_path: Path, collections: Path) -> Lab:
    """A lab whose slots belong to another user than the one that runs Ansible."""
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: the tests do not run as root")
    return Lab(tmp_path, collections, user="nobody")


@dataclass
class Platform:
    """A running controller with the operator's home, a node `here` that reports what a test says, and a software."""

    live: Any
    node: Any

    def arguments(self, **more: Any) -> dict[str, Any]:
        """A module's arguments, with the operator's credentials."""
        return {"home": str(self.live.home), **more}


SOFTWARE = "acme.web.hello"
OPTIONS = {
    "hello_text": {"type": "str"},
    "hello_count": {"type": "int"},
    "hello_any": {"type": "dict"},
    "hello_password": {"type": "str", "no_log": True},
}
META = {
    "published": {"url": {"title": "where"}, "password": {"secret": True}},
    "capacity": {"memory_mib": 1, "cpu_milli": 1, "tasks": 8},
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    from live import artifact, role, running_controller

    directory = tmp_path_factory.mktemp("platform")
    with running_controller(directory / "home") as live:
        for version in ("1.0.0", "2.0.0"):
            live.register(artifact(directory, "acme.web", {"hello": role(OPTIONS, META)}, version))
        node = live.join("here", slots=60)
        live.supply("here", SOFTWARE)
        yield Platform(live, node)


@pytest.fixture
def run_module(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., dict[str, Any]]:
    """Runs a module's `main()` in this process and gives its result."""
    from ansible.module_utils.testing import patch_module_args

    def call(name: str, arguments: dict[str, Any], check: bool = False) -> dict[str, Any]:
        module = importlib.import_module(f"ansible_collections.clachan.platform.plugins.modules.{name}")
        capsys.readouterr()
        with patch_module_args(arguments | {"_ansible_check_mode": check}), pytest.raises(SystemExit) as ended:
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert bool(result.get("failed")) == (ended.value.code != 0)
        return result

    return call
