"""A libvirtd of a test's own, without systemd, in mount and network namespaces of its own.

Its folders stand in place of the host's (`/etc/libvirt`, `/run/libvirt`, ...) for whatever runs inside, so a module run
inside by `python()` or `execute()` finds it where a node has it: at `qemu:///system`. Nothing of the host's own libvirt
is seen or touched, and its taps and bridges are in a network that ends with it.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from testbed.host import LabError, Process, spawn, until

SETTINGS = {
    "user": '"libvirt-qemu"',
    "group": '"libvirt-qemu"',
    "dynamic_ownership": "0",
    "remember_owner": "0",
    "seccomp_sandbox": "1",
    "clear_emulator_capabilities": "1",
}
"""qemu.conf as the platform's roles write it: disks belong to the slots' users already, and QEMU is confined."""
WITHOUT_SYSTEMD = {
    "namespaces": "[]",
    "cgroup_controllers": "[]",
    "security_driver": '"none"',
    "stdio_handler": '"file"',
}
"""What this machine cannot give it: control groups of its own, AppArmor, a running virtlogd."""
DAEMON = {
    "auth_unix_rw": '"none"',
    "unix_sock_dir": '"/run/libvirt"',
    "unix_sock_rw_perms": '"0700"',
    "log_outputs": '"3:file:/var/log/libvirt/libvirtd.log"',
}
FOLDERS = {
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "etc": "/etc/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "state": "/run/clachan",
}
START = """
set -e
mount --make-rprivate /
for part in "$@"; do mount --bind "${part%%=*}" "${part#*=}"; done
if [ -e /dev/kvm ]; then mount --bind "$KVM" /dev/kvm; fi
ip link set lo up
exec sleep infinity
"""
MODULE = """
import importlib, json, sys
from ansible.module_utils.testing import patch_module_args
name, arguments = json.load(sys.stdin)
module = importlib.import_module("ansible_collections.clachan.platform.plugins.modules." + name)
with patch_module_args(arguments):
    module.main()
"""
START_SECONDS = 20.0
PYTHON = "/usr/bin/python3"


def obstacle() -> str | None:
    """Why this host cannot run it; None when it can."""
    if os.geteuid() != 0:
        return "libvirtd needs root"
    missing = [name for name in ("libvirtd", "qemu-system-x86_64", "qemu-img", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"it needs {', '.join(missing)}: apt-get install libvirt-daemon-system qemu-system-x86 qemu-utils"
    if subprocess.run([PYTHON, "-c", "import libvirt"], check=False, capture_output=True).returncode:
        return "it needs python3-libvirt"
    return None


@dataclass
class Libvirtd:
    """`with Libvirtd(folder) as libvirtd:` starts it; at the end no domain, process or mount of it is left."""

    folder: Path
    settings: dict[str, str] = field(default_factory=lambda: SETTINGS | WITHOUT_SYSTEMD)
    holder: Process | None = None
    """The process that keeps the namespaces."""
    daemon: Process | None = None

    @property
    def uri(self) -> str:
        """How it is reached from outside of its namespaces."""
        return f"qemu+unix:///system?socket={self.folder}/run/libvirt-sock"

    def __enter__(self) -> "Libvirtd":
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def _prepare(self) -> None:
        for part, place in FOLDERS.items():
            (self.folder / part).mkdir(parents=True, exist_ok=True)
            Path(place).mkdir(parents=True, exist_ok=True)
        etc = self.folder / "etc"
        shutil.copytree("/etc/libvirt", etc, dirs_exist_ok=True, symlinks=True)
        for own in ("qemu", "nwfilter", "storage", "secrets"):
            shutil.rmtree(etc / own, ignore_errors=True)
        self.configure(self.settings)
        write(self.folder / "libvirtd.conf", DAEMON)
        kvm = self._kvm()
        parts = [f"{self.folder / part}={place}" for part, place in FOLDERS.items()]
        command = ["unshare", "-m", "-n", "sh", "-c", START, "sh", *parts]
        self.holder = spawn(command, self.folder / "holder.log", env={"KVM": str(kvm)})
        if not until(lambda: self._words(self.holder)[:1] == ["sleep"], START_SECONDS):
            raise LabError(f"namespaces of libvirtd: {(self.folder / 'holder.log').read_text()}")

    def _kvm(self) -> Path:
        """A node for /dev/kvm with the rights that udev gives it. Where it exists and the user of qemu.conf may not
        open it, libvirt asks QEMU anew for all it can do, 30 times for one definition, for four seconds each."""
        path = self.folder / "kvm"
        if Path("/dev/kvm").exists():
            os.mknod(path, 0o600 | stat.S_IFCHR, os.stat("/dev/kvm").st_rdev)
            shutil.chown(path, "root", "kvm")
            path.chmod(0o660)
        return path

    def configure(self, settings: dict[str, str]) -> None:
        """Write qemu.conf, which the next start reads."""
        write(self.folder / "etc" / "qemu.conf", settings)

    @staticmethod
    def _words(process: Process | None) -> list[str]:
        with suppress(OSError):
            return Path(f"/proc/{process.pid if process else 0}/cmdline").read_text().split("\0")
        return []

    def start(self) -> None:
        """Start the daemon, and wait until it answers. The first definition of all takes some seconds more."""
        command = ["libvirtd", "-f", str(self.folder / "libvirtd.conf"), "-p", str(self.folder / "libvirtd.pid")]
        self.daemon = spawn([*self.inside, *command, "-t", "0"], self.folder / "libvirtd.out")
        if not until(self._answers, START_SECONDS):
            said = [path.read_text()[-1500:] for path in self.folder.glob("l*/libvirtd.log")]
            raise LabError(f"libvirtd: does not answer; it runs: {self.daemon.alive}; {''.join(said)}")

    def _answers(self) -> bool:
        return not self.execute(["virsh", "-q", "list"], check=False).returncode

    @property
    def inside(self) -> list[str]:
        assert self.holder is not None
        return ["nsenter", "-t", str(self.holder.pid), "-m", "-n", "--"]

    def execute(
        self, command: Sequence[str], *, check: bool = True, text: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in its namespaces."""
        done = subprocess.run(
            [*self.inside, *command],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
            env=os.environ | environment,
        )
        if check and done.returncode:
            raise LabError(f"command {' '.join(command[:4])}: exit {done.returncode}: {done.stderr or done.stdout}")
        return done

    def module(self, name: str, arguments: dict[str, Any], collections: Path, check: bool = False) -> dict[str, Any]:
        """The result of a module of the platform, run as Ansible runs it but for Ansible."""
        return self.finish(self.begin(name, arguments, collections, check), name)

    def begin(
        self, name: str, arguments: dict[str, Any], collections: Path, check: bool = False
    ) -> "subprocess.Popen[str]":
        """A module that was started and not waited for."""
        given = json.dumps([name, arguments | {"_ansible_check_mode": check, "_ansible_diff": True}])
        process = subprocess.Popen(
            [*self.inside, PYTHON, "-c", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | python_path(collections),
        )
        assert process.stdin
        process.stdin.write(given)
        process.stdin.close()
        process.stdin = None
        return process

    def script(self, text: str, collections: Path) -> str:
        """What a program of the system's Python prints, which can import libvirt and the platform's modules."""
        return self.execute([PYTHON, "-c", text], **python_path(collections)).stdout

    @staticmethod
    def finish(process: "subprocess.Popen[str]", name: str) -> dict[str, Any]:
        out, err = process.communicate(timeout=280)
        if not out.strip().startswith("{"):
            raise LabError(f"module {name}: exit {process.returncode}: {err[-3000:]}{out[-1000:]}")
        result: dict[str, Any] = json.loads(out)
        assert bool(result.get("failed")) == (process.returncode != 0), result
        return result

    def virsh(self, *arguments: str) -> str:
        return self.execute(["virsh", "-q", *arguments]).stdout

    def domains(self) -> list[str]:
        """The names of all domains."""
        return sorted(self.virsh("list", "--all", "--name").split())

    def guests(self, uuid: str = "") -> list[Process]:
        """The QEMU processes that run inside, of one domain or of all."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, LabError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                inside = self.holder and os.readlink(entry / "ns/net") == os.readlink(f"/proc/{self.holder.pid}/ns/net")
                if inside and words[0].endswith("qemu-system-x86_64") and uuid in words[words.index("-uuid") + 1]:
                    found.append(Process.of(int(entry.name)))
        return found

    def kill(self) -> None:
        """The daemon dies at once; its guests go on."""
        assert self.daemon is not None
        self.daemon.signal(signal.SIGKILL)
        assert gone(self.daemon)

    def close(self) -> None:
        for process in [*(self.guests() if self.holder else []), self.daemon, self.holder]:
            if process is not None:
                process.signal(signal.SIGKILL)
                process.wait(10)
        self.daemon = self.holder = None


def gone(process: Process, seconds: float = 10) -> bool:
    """Whether nothing of a process is left: one with threads keeps its locks and sockets after its first one ended."""
    return until(lambda: not process.alive and not Path(f"/proc/{process.pid}").exists(), seconds)


def write(path: Path, settings: dict[str, str]) -> None:
    path.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))


def python_path(collections: Path) -> dict[str, str]:
    library = next(path for path in sys.path if (Path(path) / "ansible" / "module_utils").is_dir())
    return {"PYTHONPATH": f"{collections}:{library}", "PYTHONDONTWRITEBYTECODE": "1"}
