"""A guest of a test's libvirtd with a real system: its routed tap, its seed, and commands in it over ssh."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.guest import BANNER
from testbed.host import LabError, run
from testbed.libvirtd import Libvirtd

GATEWAY4, GATEWAY6 = "169.254.1.1", "fe80::1"


@dataclass
class LibvirtGuest:
    """What is on the node's side of one guest; the guest itself is defined by module vm."""

    libvirtd: Libvirtd
    folder: Path
    """Holds the key of whoever logs in."""
    number: int = 1

    @property
    def tap(self) -> str:
        return f"cv{self.number}"

    @property
    def mac(self) -> str:
        return f"52:54:00:99:08:{self.number:02x}"

    @property
    def ipv4(self) -> str:
        return f"10.99.8.{self.number}"

    @property
    def ipv6(self) -> str:
        return f"fd99:8::{self.number:x}"

    def make_link(self) -> None:
        """The tap as the platform has it: its own addresses, and one route for each of the guest's."""
        for words in (
            f"tuntap add {self.tap} mode tap",
            f"address add {GATEWAY4}/32 dev {self.tap} scope link",
            f"link set {self.tap} addrgenmode none",
            f"link set {self.tap} up",
            f"address add {GATEWAY6}/64 dev {self.tap} nodad",
            f"route add {self.ipv4}/32 dev {self.tap}",
            f"-6 route add {self.ipv6}/128 dev {self.tap}",
        ):
            self.libvirtd.execute(["ip", *words.split()])

    def seed(self, path: Path, host_key: Path, owner: str, **more: Any) -> dict[str, Any]:
        """Options of module seed."""
        key = self.folder / "user"
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "user", "-f", key])
        interface = {
            "mac": self.mac,
            "addresses": [f"{self.ipv4}/32", f"{self.ipv6}/128"],
            "gateways": [GATEWAY4, GATEWAY6],
        }
        return {
            "path": str(path),
            "owner": owner,
            "instance_id": f"guest-{self.number}",
            "hostname": f"guest{self.number}",
            "host_key": str(host_key),
            "authorized_keys": [(self.folder / "user.pub").read_text().strip()],
            "interfaces": [interface],
        } | more

    def wait(self, host_key: str, seconds: float = 240) -> float:
        """Seconds until sshd says its banner."""
        (self.folder / "known").write_text("".join(f"{host} {host_key}\n" for host in (self.ipv4, self.ipv6)))
        began = time.monotonic()
        done = self.libvirtd.execute(["python3", "-c", BANNER, self.ipv4, str(seconds)], check=False)
        if done.returncode:
            raise LabError(f"guest {self.number}: no banner after {seconds:.0f} s")
        return time.monotonic() - began

    def ssh(self, command: str, *, host: str = "", check: bool = True) -> str:
        """Standard output of a command in the guest; LabError when it fails."""
        words = ["ssh", "-i", str(self.folder / "user"), "-F", "none"]
        for option in (
            "KexAlgorithms=curve25519-sha256",
            f"UserKnownHostsFile={self.folder / 'known'}",
            "StrictHostKeyChecking=yes",
            "BatchMode=yes",
            "LogLevel=ERROR",
        ):
            words += ["-o", option]
        done: subprocess.CompletedProcess[str] = self.libvirtd.execute(
            [*words, f"root@{host or self.ipv4}", command], check=False
        )
        if check and done.returncode:
            raise LabError(f"guest {self.number}: {command[:200]}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout
