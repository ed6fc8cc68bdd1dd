"""The wheelhouse: the wheels that the lock files pin, fetched once with the host's pip, kept by the locks' digest."""

import hashlib
import runpy
from pathlib import Path

from testbed.host import REPOSITORY, LabError, locked, run, testbed

LOCKS = ("cli", "controller", "agent", "lake")


def wheelhouse() -> Path:
    """The folder with the wheels of every environment that machines make, and with the bootstrap's pip."""
    requirements = REPOSITORY / "files" / "requirements"
    name, digest = runpy.run_path(str(REPOSITORY / "clachan"), run_name="clachan_bootstrap")["PIP"]
    pip = f"pip=={name.split('-')[1]} --hash=sha256:{digest}\n"
    locks = [(requirements / f"{lock}.txt").read_text() for lock in LOCKS]
    folder = testbed() / f"wheels-{hashlib.sha256(''.join([pip, *locks]).encode()).hexdigest()[:12]}"
    with locked(testbed() / "wheels.lock"):
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            partial.mkdir(exist_ok=True)
            # pip refuses one package with two sets of hashes in one run, so each lock is a run of its own
            for number, text in enumerate([pip, *locks]):
                _download(text, partial, partial.with_suffix(f".{number}.txt"))
            partial.rename(folder)
    return folder


def _download(requirements: str, folder: Path, file: Path) -> None:
    python = REPOSITORY / ".venv" / "bin" / "python"
    if not python.exists():
        raise LabError(f"environment {python.parents[1]}: missing, expected ./dev setup to have made it")
    file.write_text(requirements)
    command = [str(python), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run([*command, "--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "--requirement", str(file)])
    file.unlink()
