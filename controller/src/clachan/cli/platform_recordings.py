"""The demo's recordings: where they come from, and copies of them in the folder that the forwarder ships.

A file that was shipped is never changed: a recording of the same name with other content comes in under a name of
its own, `NAME-<first digits of its sha256>.wav`.
"""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from clachan.cli.errors import CommandError

ON_THE_MACHINE = Path("/usr/share/sounds")
SUFFIXES = (".wav", ".wave")
BLOCK = 1024 * 1024
FETCH_SECONDS = 300


@dataclass
class Taken:
    """What the folder has now: name below it -> sha256, what was not taken and why, and where it came from."""

    source: str
    digests: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Of the input, also what was there already and what could not be taken."""
    errors: dict[str, str] = field(default_factory=dict)


def take(demo: Path, given: Path | None) -> Taken:
    """Bring recordings into demo/recordings: those given, else what is there, else what this machine can get."""
    folder = demo / "recordings"
    if not folder.is_dir():
        raise CommandError(f"folder {folder}: does not exist, expected 'clachan up' to have made it")
    taken = Taken("")
    if given is not None:
        taken.source = str(given.resolve())
        _copy_all(given.resolve(), folder, taken)
        if not taken.digests and not taken.errors:
            raise CommandError(f"folder {given}: no WAV files, expected some")
    elif _wav_files(folder):
        taken.source = "what was taken before"
    else:
        taken.source, found = _find(demo / "cache")
        _copy_all(found, folder, taken)
    taken.asked = [*taken.digests, *taken.errors]
    for path in _wav_files(folder):
        name = str(path.relative_to(folder))
        if name not in taken.digests:
            taken.digests[name] = _digest(path)
    return taken


def _wav_files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if path.is_file() or path.is_symlink())


def _copy_all(source: Path, folder: Path, taken: Taken) -> None:
    for path in _wav_files(source):
        name = str(path.relative_to(source))
        try:
            _copy(path, name, folder, taken)
        except OSError as error:
            taken.errors[name] = error.strerror or str(error)


def _copy(path: Path, name: str, folder: Path, taken: Taken) -> None:
    if not name.isprintable() or len(name.encode()) > 512:
        taken.errors[repr(name)[1:-1]] = "name, expected at most 512 bytes of printable text"
        return
    if not stat.S_ISREG(path.stat().st_mode):
        taken.errors[name] = "not a regular file, expected one"
        return
    copy = folder.parent / f".copy-{os.getpid()}"
    try:
        shutil.copyfile(path, copy)
        copy.chmod(0o644)
        digest = _digest(copy)
        target = _target(folder, name, digest)
        if not target.exists():
            _make_folders(folder, target.parent)
            copy.rename(target)  # whole or not there: the forwarder looks at any time
            taken.new.append(str(target.relative_to(folder)))
        taken.digests[str(target.relative_to(folder))] = digest
    finally:
        copy.unlink(missing_ok=True)


def _target(folder: Path, name: str, digest: str) -> Path:
    target = folder / name
    if not target.exists() or _digest(target) == digest:
        return target
    return target.with_name(f"{target.stem}-{digest[:8]}{target.suffix}")


def _make_folders(folder: Path, wanted: Path) -> None:
    wanted.mkdir(parents=True, exist_ok=True)
    while wanted != folder:
        wanted.chmod(0o755)  # the forwarder's user must enter
        wanted = wanted.parent


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find(cache: Path) -> tuple[str, Path]:
    """What the machine has or can get; raises CommandError, which says what was tried."""
    if ON_THE_MACHINE.is_dir() and _wav_files(ON_THE_MACHINE):
        return f"this machine's {ON_THE_MACHINE}", ON_THE_MACHINE
    cache.mkdir(mode=0o755, exist_ok=True)
    tried = [f"{ON_THE_MACHINE}: no WAV files"]
    for what, fetch in (
        ("Debian's package alsa-utils, fetched with apt-get download", _from_debian),
        ("the test signals in the wheel of scipy, fetched with pip download", _from_scipy),
    ):
        try:
            folder = fetch(cache)
        except (OSError, subprocess.SubprocessError, CommandError) as error:
            tried.append(f"{what}: {error}")
            continue
        if _wav_files(folder):
            return what, folder
        tried.append(f"{what}: no WAV files")
    raise CommandError("recordings: none found, expected some or --input DIR\n  " + "\n  ".join(tried))


def _from_debian(cache: Path) -> Path:
    if not list(cache.glob("alsa-utils_*.deb")):
        try:
            _fetch(cache, "apt-get", "download", "alsa-utils")
        except CommandError:
            # the machine's package lists are empty or old: use lists of our own, which needs no root
            own = _own_lists(cache / "apt")
            _fetch(cache, "apt-get", *own, "update")
            _fetch(cache, "apt-get", *own, "download", "alsa-utils")
    archive = next(cache.glob("alsa-utils_*.deb"))
    unpacked = cache / "alsa-utils"
    _fetch(cache, "dpkg-deb", "-x", str(archive), str(unpacked))
    return unpacked / "usr" / "share" / "sounds"


def _own_lists(folder: Path) -> list[str]:
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "State": folder,
        "State::lists": folder / "lists",
        "Cache": folder,
        "State::status": "/var/lib/dpkg/status",
    }
    return [word for key, value in settings.items() for word in ("-o", f"Dir::{key}={value}")]


def _from_scipy(cache: Path) -> Path:
    _fetch(cache, sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "scipy")
    wheel = next(cache.glob("scipy-*.whl"))
    folder = cache / "scipy"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("scipy/io/") and name.endswith(".wav"):
                (folder / Path(name).name).write_bytes(archive.read(name))
    return folder


def _fetch(folder: Path, *command: str) -> None:
    process = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=FETCH_SECONDS,
    )
    if process.returncode:
        last = (process.stderr or process.stdout).strip().rpartition("\n")[2]
        raise CommandError(f"{' '.join(command[:2])}: {last or f'exit status {process.returncode}'}")
