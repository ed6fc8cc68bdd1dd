"""The repository on a machine, as a clone would be, with its environment made: what `./clachan` does on first use."""

import hashlib
import shutil
from pathlib import Path

from testbed.host import REPOSITORY, run
from testbed.lab import layer
from testbed.machine import Machine

PLACE = "root/clachan"


def environment_layer(wheels: Path) -> Path:
    """A layer with a checkout whose .venv is made; it is made anew only when the lock or the bootstrap changed."""
    decisive = [REPOSITORY / "files/requirements/cli.txt", REPOSITORY / "clachan"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in decisive)).hexdigest()[:12]
    return layer(f"checkout-{digest}", _make, wheels=wheels)


def _make(machine: Machine) -> None:
    put(machine)
    machine.execute([f"/{PLACE}/clachan", "--version"], timeout=600)


def put(machine: Machine) -> None:
    """Bring the checkout on the machine to the present files; its .venv stays."""
    place = machine.root / PLACE
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        if old.name != ".venv":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listed = run(["git", "-C", REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, place / name, follow_symlinks=False)
