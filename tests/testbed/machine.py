"""One machine: an overlay, a network namespace, control groups, and systemd as its first process."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from testbed import cgroups, network
from testbed.host import HERE, LabError, Process, run, spawn, until

BOOT_SECONDS = 30.0
STOP_SECONDS = 20.0
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
ENTER = ("-m", "-u", "-i", "-n", "-p")


@dataclass
class Machine:
    """A machine's facts, kept in `machine.json` of its folder so that another command finds it again."""

    name: str
    lab: str
    address: str
    folder: str
    lowers: list[str]
    binds: dict[str, str] = field(default_factory=dict)
    """Folder inside -> folder of the host, read-only."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every command, login and unit inside."""
    monitor: Process | None = None
    """The systemd-nspawn process."""
    leader: Process | None = None
    """The machine's process 1, as the host numbers it."""

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def namespace(self) -> str:
        return f"{self.lab}-{self.name}"

    @property
    def running(self) -> bool:
        return self.monitor is not None and self.monitor.alive

    @classmethod
    def load(cls, folder: Path) -> "Machine":
        facts = json.loads((folder / "machine.json").read_text())
        for key in ("monitor", "leader"):
            facts[key] = Process(**facts[key]) if facts[key] else None
        return cls(**facts)

    def save(self) -> None:
        file = self.path / "machine.json"
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.rename(file)

    def make(self, key: Path) -> None:
        """Make disk and network; `key` is the public key that may log in as root."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.save()
        for part in ("up", "work", "root"):
            (self.path / part).mkdir()
        options = f"lowerdir={':'.join(self.lowers)},upperdir={self.path}/up,workdir={self.path}/work,volatile"
        run(["mount", "-t", "overlay", "overlay", "-o", options, self.root])
        self._personalize(key)
        network.attach(self.lab, self.namespace, self.name, self.address)

    def _personalize(self, key: Path) -> None:
        etc = self.root / "etc"
        (etc / "machine-id").write_text("")
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "resolv.conf").write_text("")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", etc / "ssh/ssh_host_ed25519_key"])
        ssh = self.root / "root/.ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(key, ssh / "authorized_keys")
        variables = [f"{key}={value}" for key, value in self.environment.items()]
        (etc / "environment").write_text("".join(f"{line}\n" for line in variables))
        (etc / "systemd/system.conf.d").mkdir(exist_ok=True)
        (etc / "systemd/system.conf.d/testbed.conf").write_text(
            f"[Manager]\nDefaultEnvironment={' '.join(variables)}\n"
        )
        preinit = self.root / "usr/local/sbin/preinit"
        shutil.copyfile(HERE / "preinit", preinit)
        preinit.chmod(0o755)

    def host_key(self) -> str:
        """What a client's known_hosts says of this machine."""
        kind, key, _ = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
        return f"{self.address},{self.name} {kind} {key}"

    def start(self) -> None:
        """Power on and wait until systemd says running; LabError with the console's end when it does not."""
        if self.running:
            raise LabError(f"machine {self.name}: running, expected it off")
        self.monitor = self._spawn()
        self.leader = None
        self.save()
        if not until(self._booted, BOOT_SECONDS):
            console = (self.path / "console.log").read_text(errors="replace")[-1500:]
            self.cut()
            raise LabError(f"machine {self.name}: not up after {BOOT_SECONDS:.0f} s, its console said: {console}")
        self.save()

    def _spawn(self) -> Process:
        first = "/usr/local/sbin/preinit" if cgroups.legacy() else "--boot"
        command = ["systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self.lab}-{self.name}"]
        command += ["--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=off", "--kill-signal=SIGRTMIN+3"]
        command += [f"--hostname={self.name}", f"--network-namespace-path={network.NAMESPACES / self.namespace}"]
        # its network is its own, so services such as firewalld may rule it
        command += ["--capability=CAP_NET_ADMIN,CAP_NET_RAW"]
        if Path("/dev/net/tun").exists():
            command += ["--bind=/dev/net/tun"]
        command += [f"--bind-ro={outside}:{inside}" for inside, outside in self.binds.items()]
        writable = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}
        return spawn([*command, first], self.path / "console.log", cgroups.make(self.namespace), writable)

    def _booted(self) -> bool:
        assert self.monitor is not None
        if not self.monitor.alive:
            console = (self.path / "console.log").read_text(errors="replace")[-1500:]
            raise LabError(f"machine {self.name}: ended while it booted, its console said: {console}")
        # nspawn has a short-lived first child, still in the host's process namespace
        inside = [
            pid for pid in self.monitor.children() if _process_namespace(pid) not in {"", _process_namespace("self")}
        ]
        if not inside:
            return False
        self.leader = Process.of(inside[0])
        state = self.execute(["systemctl", "is-system-running"], check=False).stdout.strip()
        return state in {"running", "degraded"}

    def enter(self, command: Sequence[str], environment: dict[str, str] | None = None) -> list[str]:
        """The host's command line that runs a command inside as root."""
        if self.leader is None or not self.leader.alive:
            raise LabError(f"machine {self.name}: off, expected it to run")
        variables = [
            f"{key}={value}" for key, value in {**ENVIRONMENT, **self.environment, **(environment or {})}.items()
        ]
        return ["nsenter", "-t", str(self.leader.pid), *ENTER, "--", "env", "-i", "-C", "/root", *variables, *command]

    def execute(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        text: str | None = None,
        environment: dict[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside as root; `text` is its standard input. LabError when it fails and `check`."""
        words = self.enter(command, environment)
        done = subprocess.run(words, capture_output=True, text=True, check=False, input=text or "", timeout=timeout)
        if check and done.returncode:
            said = (done.stdout + done.stderr).strip()[-3000:]
            raise LabError(
                f"machine {self.name}: {' '.join(command)[:200]}: exit {done.returncode}, expected 0: {said}"
            )
        return done

    def stop(self) -> None:
        """Shut down in order; power off when that takes too long."""
        if self.monitor is not None:
            self.monitor.signal(signal.SIGTERM)
            if not self.monitor.wait(STOP_SECONDS):
                self.cut()
        cgroups.remove(self.namespace)

    def cut(self) -> None:
        """Take the power away: nothing inside gets to end its work. What was written stays, also without a sync."""
        for process in (self.leader, self.monitor):
            if process is not None:
                process.signal(signal.SIGKILL)
        for process in (self.leader, self.monitor):
            if process is not None and not process.wait(5):
                raise LabError(f"machine {self.name}: process {process.pid} outlived SIGKILL by 5 s")
        cgroups.remove(self.namespace)

    def reboot(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        """Power off and leave nothing of the machine."""
        self.cut()
        network.remove(self.namespace)
        self.unmount()
        shutil.rmtree(self.path)

    def unmount(self) -> None:
        if self.root.is_mount() and not until(lambda: _unmounted(self.root), 5, pause=0.1):
            raise LabError(f"machine {self.name}: {self.root} is still busy after 5 s, expected to unmount it")


def _unmounted(folder: Path) -> bool:
    return subprocess.run(["umount", folder], capture_output=True, check=False).returncode == 0


def _process_namespace(pid: int | str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
