"""One guest under software emulation: an image, a seed, and a routed tap in a network namespace of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from testbed.host import HERE, LabError, Process, run, spawn, until

CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq"
GATEWAY4, GATEWAY6 = "169.254.1.1", "fe80::1"
IPV4, IPV6 = "10.99.7.2", "fd99:7::2"
MAC = "52:54:00:99:07:02"
TAP = "tap0"
BANNER = """
import socket, sys, time
host, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    try:
        with socket.create_connection((host, 22), 1) as stream:
            stream.settimeout(15)
            if stream.recv(64).startswith(b"SSH-"):
                sys.exit(0)
    except OSError:
        time.sleep(0.1)
sys.exit(1)
"""


def obstacle() -> str | None:
    """Why this host cannot run guests; None when it can."""
    if os.geteuid() != 0:
        return "guests need root, for their taps"
    missing = [name for name in ("qemu-system-x86_64", "qemu-img", "ip", "ssh-keygen") if shutil.which(name) is None]
    if missing:
        return f"guests need {', '.join(missing)}"
    if subprocess.run(["/usr/bin/python3", "-c", "import pycdlib"], check=False, capture_output=True).returncode:
        return "guests need python3-pycdlib for their seeds"
    return None


@dataclass
class Guest:
    """`with Guest(folder, disk) as guest:` boots it; at the end nothing of it is left but the folder's files."""

    folder: Path
    disk: Path
    """Never written: the guest has a layer over it."""
    name: str = "guest"
    disk_size: str | None = None
    memory: int = 512
    user_data: dict[str, Any] = field(default_factory=dict)
    """More than the host key and the authorized key that the guest gets anyway."""
    instance: str = "first"
    process: Process | None = None
    began: float = 0.0

    @property
    def namespace(self) -> str:
        return f"guest-{os.getpid()}-{self.name}"

    @property
    def layer(self) -> Path:
        return self.folder / f"{self.name}.qcow2"

    @property
    def serial(self) -> str:
        path = self.folder / f"{self.name}.serial"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> "Guest":
        try:
            self.make()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.remove()

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for key in ("host", "user"):
            if not (self.folder / key).exists():
                run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", self.folder / key])
        format_ = json.loads(run(["qemu-img", "info", "--output=json", self.disk]))["format"]
        backing = ["-b", str(self.disk), "-F", format_]
        run(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                *backing,
                self.layer,
                *([self.disk_size or ""][: bool(self.disk_size)]),
            ]
        )
        self.write_seed()
        run(["ip", "netns", "add", self.namespace])
        for words in (
            "link set lo up",
            f"tuntap add {TAP} mode tap",
            f"address add {GATEWAY4}/32 dev {TAP} scope link",
            f"link set {TAP} addrgenmode none",
            f"link set {TAP} up",
            f"address add {GATEWAY6}/64 dev {TAP} nodad",
            f"route add {IPV4}/32 dev {TAP}",
            f"-6 route add {IPV6}/128 dev {TAP}",
        ):
            run(["ip", "-n", self.namespace, *words.split()])

    def write_seed(self) -> None:
        user = {
            "ssh_keys": {
                "ed25519_private": (self.folder / "host").read_text(),
                "ed25519_public": (self.folder / "host.pub").read_text(),
            },
            "ssh_authorized_keys": [(self.folder / "user.pub").read_text().strip()],
            **self.user_data,
        }
        routes = [
            {"to": "0.0.0.0/0", "via": GATEWAY4, "on-link": True},
            {"to": "::/0", "via": GATEWAY6, "on-link": True},
        ]
        ethernet = {
            "match": {"macaddress": MAC},
            "addresses": [f"{IPV4}/32", f"{IPV6}/128"],
            "routes": routes,
            "accept-ra": False,
        }
        files = {
            "meta-data": json.dumps({"instance-id": self.instance, "local-hostname": self.name}),
            "user-data": "#cloud-config\n" + json.dumps(user),
            "network-config": json.dumps({"version": 2, "ethernets": {"net0": ethernet}}),
        }
        command = ["/usr/bin/python3", str(HERE / "seed.py"), str(self.folder / f"{self.name}.iso")]
        done = subprocess.run(command, input=json.dumps(files), text=True, capture_output=True, check=False)
        if done.returncode:
            raise LabError(f"seed of {self.name}: {done.stderr[-500:]}, expected it to be written")

    def start(self) -> None:
        """Power on."""
        command = ["nsenter", f"--net=/run/netns/{self.namespace}", "qemu-system-x86_64", "-name", self.name]
        command += ["-nodefaults", "-machine", "q35", "-accel", "tcg,tb-size=128", "-cpu", CPU, "-smp", "1"]
        command += ["-m", str(self.memory), "-display", "none", "-serial", f"file:{self.folder / self.name}.serial"]
        command += ["-drive", f"file={self.layer},if=virtio,cache=unsafe,discard=unmap,format=qcow2"]
        command += ["-drive", f"file={self.folder / self.name}.iso,if=virtio,format=raw,readonly=on"]
        command += ["-netdev", f"tap,id=n0,ifname={TAP},script=no,downscript=no"]
        command += ["-device", f"virtio-net-pci,netdev=n0,mac={MAC}", "-device", "virtio-rng-pci"]
        command += ["-device", "virtio-serial", "-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"]
        command += ["-chardev", f"socket,id=ga,path={self.folder / self.name}.ga,server=on,wait=off"]
        self.began = time.monotonic()
        self.process = spawn(command, self.folder / f"{self.name}.log")

    def wait_banner(self, seconds: float = 180, host: str = IPV4) -> float:
        """Seconds from power on until sshd said its banner."""
        command = ["nsenter", f"--net=/run/netns/{self.namespace}", "python3", "-c", BANNER, host, str(seconds)]
        done = subprocess.run(command, check=False, capture_output=True, timeout=seconds + 60)
        if done.returncode:
            raise LabError(f"guest {self.name}: no banner after {seconds:.0f} s; serial: {self.serial[-1500:]}")
        return time.monotonic() - self.began

    def ssh(self, command: str, host: str = IPV4, check: bool = True, seconds: float = 120) -> str:
        """Standard output of a command in the guest; LabError when it fails."""
        known = self.folder / f"{self.name}.known"
        kind, key = (self.folder / "host.pub").read_text().split()[:2]
        known.write_text("".join(f"{one} {kind} {key}\n" for one in (IPV4, IPV6)))
        words = ["nsenter", f"--net=/run/netns/{self.namespace}", "ssh", "-i", str(self.folder / "user"), "-F", "none"]
        for option in ("KexAlgorithms=curve25519-sha256", f"UserKnownHostsFile={known}", "StrictHostKeyChecking=yes"):
            words += ["-o", option]
        words += ["-o", "BatchMode=yes", "-o", "LogLevel=ERROR", f"root@{host}", command]
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=seconds)
        if check and done.returncode:
            said = (done.stdout + done.stderr)[-2000:]
            raise LabError(f"guest {self.name}: {command[:200]}: exit {done.returncode}, expected 0: {said}")
        return done.stdout

    def ask_agent(self, command: str) -> Any:
        """The answer of the guest agent."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(60)
            stream.connect(str(self.folder / f"{self.name}.ga"))
            stream.sendall(json.dumps({"execute": command}).encode() + b"\n")
            return json.loads(stream.makefile().readline())["return"]

    def shut_down(self, seconds: float = 60) -> float:
        """Seconds that a shutdown in order takes."""
        began = time.monotonic()
        self.ssh("systemctl poweroff", check=False)
        if self.process is None or not self.process.wait(seconds):
            raise LabError(f"guest {self.name}: still up after {seconds:.0f} s; serial: {self.serial[-1500:]}")
        return time.monotonic() - began

    def cut(self) -> None:
        """Take the power away."""
        if self.process is not None:
            self.process.signal(signal.SIGKILL)
            if not until(lambda: self.process is None or not self.process.alive, 10):
                raise LabError(f"guest {self.name}: process {self.process.pid} outlived SIGKILL by 10 s")

    def remove(self) -> None:
        self.cut()
        if Path(f"/run/netns/{self.namespace}").exists():
            run(["ip", "netns", "delete", self.namespace])
        for ending in ("qcow2", "iso", "ga"):
            (self.folder / f"{self.name}.{ending}").unlink(missing_ok=True)
