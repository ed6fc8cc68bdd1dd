"""What every benchmark needs: the platform really installed in a folder, and lines that stand beside their peer's."""

import contextlib
import os
import pathlib
import platform as machine
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import psutil
from clachan.client import Client
from clachan.contract.api import Declaration, Placement, SupplyDeclaration

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
BIN = pathlib.Path(sys.executable).parent
SOFTWARE = "bench.trivial.sleeper"


def shape() -> str:
    """The machine, in one line."""
    memory = psutil.virtual_memory().total / 2**30
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {machine.release()}, Python {machine.python_version()}, {who}"
    )


def row(what: str, ours: str, peer: str = "", ratio: str = "", goal: str = "") -> None:
    print(f"{what:<46} {ours:>18} {peer:>18} {ratio:>12}  {goal}", flush=True)


def header(peer: str) -> None:
    print(shape())
    row("", "Clachan", peer, "ratio", "goal")


def wait_until(what: str, seconds: float, ready: Callable[[], bool], pause: float = 0.02) -> float:
    """Seconds until `ready`; raises TimeoutError after `seconds`."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if ready():
            return time.monotonic() - started
        time.sleep(pause)
    raise TimeoutError(f"{what}: not within {seconds} s")


class Platform:
    """A controller and this machine as its node, in a folder of their own."""

    def __init__(self, home: pathlib.Path) -> None:
        self.home = home
        self.variables = os.environ | {
            "CLACHAN_HOME": str(home),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(home.parent / "ansible"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, *command: str | pathlib.Path) -> None:
        done = subprocess.run(
            command, cwd=ROOT, env=self.variables, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            sys.stderr.buffer.write(done.stdout)
            raise RuntimeError(f"{command}: exit status {done.returncode}, expected 0")

    @property
    def client(self) -> Client:
        return Client.from_credentials(self.home)

    def control(self, *words: str) -> None:
        """supervisorctl"""
        socket = f"unix://{self.home}/supervisor/supervisor.sock"
        self.run(self.home / "envs" / "agent" / "bin" / "supervisorctl", "-s", socket, *words)

    def process(self, name: str) -> psutil.Process:
        """A program of the platform's supervisord: `controller` or `agent`."""
        supervisord = psutil.Process(int((self.home / "supervisor" / "supervisord.pid").read_text()))
        wanted = {"agent": "agent run", "controller": "controller serve"}[name]
        return next(child for child in supervisord.children() if wanted in " ".join(child.cmdline()))

    def supply(self) -> None:
        """Register the trivial software and wait until the node has it."""
        folder = self.home.parent / "artifact"
        self.run(BIN / "ansible-galaxy", "collection", "build", "--force", "--output-path", folder, HERE / "trivial")
        with self.client as client:
            client.register_software(next(folder.glob("*.tar.gz")))
            client.supply("here", SOFTWARE, SupplyDeclaration())
            wait_until("supply", 60, lambda: client.supply_view("here", SOFTWARE).observed == "present")

    def request(self, count: int, value: str, labels: dict[str, str]) -> dict[str, int]:
        """Declare `count` instances on a node with these labels; the wanted revision of each path."""
        declaration = Declaration(
            software=SOFTWARE, parameters={"sleeper_value": value}, placement=Placement(labels=labels)
        )
        with self.client as client:
            done = [client.request(f"home.s{index}", declaration).instance for index in range(count)]
        return {one.path: one.revision for one in done}

    def wait(self, wanted: dict[str, int]) -> float:
        """Seconds until each instance is started at its wanted revision, promises passed."""
        with self.client as client:

            def ready() -> bool:
                now = {one.path: one for one in client.instances()}
                return all(
                    now[path].observed.revision == revision and now[path].observed.state == "started"
                    for path, revision in wanted.items()
                )

            return wait_until("started", 300, ready)

    def remove_all(self) -> None:
        with self.client as client:
            for one in list(client.instances()):
                client.delete_instance(one.path)
            wait_until("removed", 300, lambda: not list(client.instances()), 0.2)


@contextlib.contextmanager
def installed_platform() -> Iterator[Platform]:
    """The roles really run; everything is removed at the end."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="clachan-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    platform = Platform(folder / "home")
    try:
        platform.run(BIN / "ansible-playbook", "-i", "localhost,", HERE / "platform.yml")
        yield platform
    finally:
        if platform.home.exists():
            platform.run(BIN / "clachan", "reset", "--yes", "--home", platform.home)
        shutil.rmtree(folder, ignore_errors=True)
