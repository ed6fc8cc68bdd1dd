"""SlapOS as a peer: its light master (`slapos proxy`) and its node, from the package index, on loopback.

The node refuses root, so as root everything runs as `nobody`; that is why it uses Debian's own Python, which all can
read. Needs a compiler and python3-dev (netifaces is built from source).
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

HERE = pathlib.Path(__file__).resolve().parent
PEERS = pathlib.Path(os.environ.get("CLACHAN_PEERS", "/var/tmp/clachan-peers"))
VERSION = "1.26.1"
NOBODY = 65534
# slapos.core 1.26 asks importlib.resources.files() for plain modules, which Python 3.11 refuses and 3.12 answers.
SHIM = """
import importlib, importlib.resources as resources
original = resources.files
def files(package):
    if isinstance(package, str) and importlib.import_module(package).__spec__.submodule_search_locations is None:
        package = package.rpartition(".")[0]
    return original(package)
resources.files = files
"""
REQUESTS = """
import sys
import slapos.slap
url, release, first, count, value = sys.argv[1:]
slap = slapos.slap.slap()
slap.initializeConnection(url)
order = slap.registerOpenOrder()
for index in range(int(first), int(first) + int(count)):
    order.request(release, f"inst{index}", partition_parameter_kw={"key": value}, software_type="default")
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def install() -> pathlib.Path:
    """The virtual environment with slapos.core, made once."""
    environment = PEERS / "slapos" / "venv"
    stamp = environment / f"slapos-{VERSION}"
    if not stamp.exists():
        shutil.rmtree(environment, ignore_errors=True)
        environment.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--copies", environment], check=True)
        packages = [f"slapos.core=={VERSION}", "slapos.libnetworkcache"]
        subprocess.run([environment / "bin" / "pip", "-q", "install", *packages], check=True)
        site = next((environment / "lib").glob("python3*")) / "site-packages"
        (site / "resources_shim.py").write_text(SHIM)
        (site / "resources_shim.pth").write_text("import resources_shim\n")
        stamp.touch()
    return environment


class Slapos:
    """One light master and one node with `slots` partitions in `folder`."""

    def __init__(self, folder: pathlib.Path, slots: int) -> None:
        self.folder, self.slots = folder, slots
        self.environment = install()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.proxy: subprocess.Popen[bytes] | None = None
        self._write()

    @property
    def release(self) -> str:
        return str(self.folder / "software.cfg")

    def _write(self) -> None:
        for name in ("inst", "soft", "log"):
            (self.folder / name).mkdir(parents=True)
        shutil.copytree(HERE / "slapos_release", self.folder / "release", copy_function=shutil.copyfile)
        (self.folder / "software.cfg").write_text(
            f"[buildout]\nparts = template\ndevelop = {self.folder}/release/recipe\noffline = true\n"
            "[template]\nrecipe = peer_recipe:software\n"
        )
        port = self.url.rpartition(":")[2]
        settings = f"""
            [slapos]
            software_root = {self.folder}/soft
            instance_root = {self.folder}/inst
            master_url = {self.url}
            computer_id = COMP-1
            root_check = False
            pidfile_software = {self.folder}/software.pid
            pidfile_instance = {self.folder}/instance.pid
            pidfile_report = {self.folder}/report.pid
            software_min_free_space = 1M
            instance_min_free_space = 1M
            [slapformat]
            input_definition_file = {self.folder}/definition.cfg
            partition_amount = {self.slots}
            alter_user = false
            alter_network = false
            create_tap = false
            create_tun = false
            computer_xml = {self.folder}/computer.xml
            partition_base_name = slappart
            user_base_name = slapuser
            [slapproxy]
            host = 127.0.0.1
            port = {port}
            database_uri = {self.folder}/proxy.db
        """
        (self.folder / "slapos.cfg").write_text(re.sub(r"^ +", "", settings, flags=re.MULTILINE))
        owner = "nobody" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
        parts = ["[computer]\naddress = 127.0.0.1/255.255.255.255\n"]
        for index in range(self.slots):
            parts.append(
                f"[partition_{index}]\naddress = 127.0.0.1/255.255.255.255\npathname = slappart{index}\n"
                f"user = {owner}\nnetwork_interface =\n"
            )
        (self.folder / "definition.cfg").write_text("\n".join(parts))
        if os.geteuid() == 0:
            self.folder.parent.chmod(0o755)
            subprocess.run(["chown", "-R", "nobody:nogroup", self.folder], check=True)
        for name in ("inst", "soft"):
            (self.folder / name).chmod(0o750)

    def _start(self, *command: str) -> "subprocess.Popen[bytes]":
        variables = {
            "HOME": str(self.folder),
            "PATH": f"{self.environment / 'bin'}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "SLAPOS_CONFIGURATION": str(self.folder / "slapos.cfg"),
            "SLAPOS_CLIENT_CONFIGURATION": str(self.folder / "slapos.cfg"),
        }
        who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        with (self.folder / "log" / "commands.log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=variables, stdout=log, stderr=log, **who)

    def run(self, *command: str) -> tuple[float, float]:
        """Run to the end; wall and CPU seconds (of it and of what it waited for)."""
        started = time.monotonic()
        process = self._start(*command)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return time.monotonic() - started, used.ru_utime + used.ru_stime

    def __enter__(self) -> "Slapos":
        self.proxy = self._start("slapos", "proxy", "start")
        for _ in range(150):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/getRunId", timeout=5):
                break
            time.sleep(0.2)
        self.run("slapos", "node", "format", "--now")
        self.run("slapos", "supply", self.release, "COMP-1")
        return self

    def request(self, count: int, value: str, first: int = 0) -> None:
        self.run("python", "-W", "ignore", "-c", REQUESTS, self.url, self.release, str(first), str(count), value)

    def software(self) -> None:
        self.run("slapos", "node", "software", "--now")

    def converge(self) -> tuple[float, float]:
        return self.run("slapos", "node", "instance", "--now")

    def services(self) -> int:
        """How many of the sleeping services really run."""
        return sum(1 for _ in self._processes("sleep\x00100000"))

    def _processes(self, line: str) -> Iterator[int]:
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                ours = entry.name.isdigit() and str(self.folder) in os.readlink(entry / "cwd")
                if ours and line in (entry / "cmdline").read_text():
                    yield int(entry.name)

    def __exit__(self, *_: object) -> None:
        pid = self.folder / "inst" / "var" / "run" / "supervisord.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
        if self.proxy is not None:
            self.proxy.terminate()
            self.proxy.wait(30)
