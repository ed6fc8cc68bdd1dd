"""What this machine does, in figures: one JSON object a line, from /proc.

`time` (seconds since 1970), `node`, `cpu` (share of all CPUs in use since the sample before, 0 to 1), `cpus`, `load`
(of the last minute), `memory_bytes` (total), `memory_available_bytes`, `swap_used_bytes`, `disk_bytes` and
`disk_free_bytes` (of the file system of the forwarder's state), and counters since the machine booted:
`disk_read_bytes`, `disk_written_bytes`, `network_received_bytes`, `network_sent_bytes` (all interfaces but loopback).
"""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

SECTOR = 512
WHOLE_DISK = re.compile(r"(?:[shv]d[a-z]+|xvd[a-z]+|nvme\d+n\d+|mmcblk\d+)$")


class Sampler:
    """`place` is on the file system that is measured. Raises OSError or ValueError for a /proc unlike Linux's."""

    def __init__(self, node: str, place: Path, proc: Path = Path("/proc")) -> None:
        self._node = node
        self._place = place
        self._proc = proc
        self._before = self._ticks()

    def sample(self) -> bytes:
        """The next line, with its newline."""
        return (json.dumps(self.record(), separators=(",", ":")) + "\n").encode()

    def record(self) -> dict[str, Any]:
        busy, total = self._ticks()
        spent = total - self._before[1]
        share = (busy - self._before[0]) / spent if spent > 0 else 0.0
        self._before = busy, total
        return {
            "time": round(time.time(), 3),
            "node": self._node,
            "cpu": round(min(1.0, max(0.0, share)), 4),
            "cpus": os.cpu_count() or 1,
            "load": float(self._text("loadavg").split()[0]),
            **self._memory(),
            **self._disk(),
            **self._network(),
        }

    def _text(self, name: str) -> str:
        return (self._proc / name).read_text()

    def _ticks(self) -> tuple[int, int]:
        """Busy and all. Guests' time is in user's already; waiting for a disk is idle."""
        counts = [int(word) for word in self._text("stat").partition("\n")[0].split()[1:9]]
        return sum(counts) - counts[3] - counts[4], sum(counts)

    def _memory(self) -> dict[str, int]:
        lines = (line.split() for line in self._text("meminfo").splitlines())
        kib = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
        return {
            "memory_bytes": kib["MemTotal"] * 1024,
            "memory_available_bytes": kib.get("MemAvailable", kib["MemFree"]) * 1024,
            "swap_used_bytes": (kib.get("SwapTotal", 0) - kib.get("SwapFree", 0)) * 1024,
        }

    def _disk(self) -> dict[str, int]:
        room = os.statvfs(self._place)
        read = written = 0
        for words in map(str.split, self._text("diskstats").splitlines()):
            if len(words) > 9 and WHOLE_DISK.match(words[2]):
                read, written = read + int(words[5]), written + int(words[9])
        return {
            "disk_bytes": room.f_blocks * room.f_frsize,
            "disk_free_bytes": room.f_bavail * room.f_frsize,
            "disk_read_bytes": read * SECTOR,
            "disk_written_bytes": written * SECTOR,
        }

    def _network(self) -> dict[str, int]:
        received = sent = 0
        for line in self._text("net/dev").splitlines()[2:]:
            name, _, counts = line.partition(":")
            words = counts.split()
            if name.strip() != "lo" and len(words) > 8:
                received, sent = received + int(words[0]), sent + int(words[8])
        return {"network_received_bytes": received, "network_sent_bytes": sent}
