"""The control groups of a machine, in version 1 or 2 as the host has them.

On a version 1 host a machine gets its own group in each hierarchy; `preinit` makes them writable inside, so that
limits of units bite. On a version 2 host it gets one group, which systemd-nspawn delegates to the machine.
"""

from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
V1 = ("systemd", "unified", "memory", "pids", "cpu", "cpuacct", "devices", "freezer", "blkio")


def legacy() -> bool:
    return not (ROOT / "cgroup.controllers").exists()


def make(name: str) -> list[Path]:
    """Make the groups of a machine; the files to write a process number to."""
    groups = [hierarchy / name for hierarchy in _hierarchies()]
    for group in groups:
        group.mkdir(exist_ok=True)
    return [group / "cgroup.procs" for group in groups]


def remove(name: str) -> None:
    """Remove the groups of a machine that has ended, with what its systemd made below them."""
    for group in (hierarchy / name for hierarchy in _hierarchies()):
        for folder in sorted(group.glob("**/"), key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                folder.rmdir()


def _hierarchies() -> list[Path]:
    if not legacy():
        return [ROOT]
    return list(dict.fromkeys((ROOT / name).resolve() for name in V1 if (ROOT / name).is_dir()))
