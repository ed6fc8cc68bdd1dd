"""Whether this host can run the machines, found out by doing each thing once, not by looking for signs of it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from testbed import cgroups, network
from testbed.base import base
from testbed.host import LabError, needed_packages, run, testbed

COMMANDS = ("ip", "mmdebstrap", "nsenter", "socat", "ssh-keygen", "systemd-nspawn")


@cache
def obstacle() -> str | None:
    """Why this host cannot run the machines; None when it can. Makes the base if there is none."""
    if os.geteuid() != 0:
        return "machines need root"
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        return f"machines need {', '.join(missing)}: apt-get install {' '.join(needed_packages())}"
    for what, attempt in (("network", _network), ("cgroups", _cgroups), ("base", base), ("overlay and nspawn", _run)):
        try:
            attempt()
        except (LabError, OSError) as error:
            return f"machines need {what}: {error}"
    return None


def _network() -> None:
    name = f"probe-{os.getpid()}"
    try:
        network.make_bridge(name)
        network.attach(name, f"{name}-m", "m", f"{network.SUBNET}.11")
    finally:
        for namespace in (f"{name}-m", name):
            with suppress(LabError):
                network.remove(namespace)


def _cgroups() -> None:
    name = f"probe-{os.getpid()}"
    try:
        cgroups.make(name)
    finally:
        cgroups.remove(name)


def _run() -> None:
    with _overlay() as root:
        run(["systemd-nspawn", "-q", "-D", root, "--register=no", "--keep-unit", "--pipe", "/bin/true"], timeout=30)


@contextmanager
def _overlay() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=testbed()) as name:
        folder = Path(name)
        for part in ("up", "work", "root"):
            (folder / part).mkdir()
        layers = f"lowerdir={base()},upperdir={folder}/up,workdir={folder}/work"
        run(["mount", "-t", "overlay", "overlay", "-o", layers, folder / "root"])
        try:
            yield folder / "root"
        finally:
            subprocess.run(["umount", folder / "root"], check=False)
