"""The folder of a lake beside what ZODB keeps in it: its format's number, and what a killed process left."""

import binascii
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from zc.lockfile import LockFile  # type: ignore[import-untyped]
from ZODB.blob import remove_committed_dir
from ZODB.POSException import POSKeyError

from clachan_lake.errors import CorruptError, FormatError
from clachan_lake.format import FORMAT
from clachan_lake.storage.file import LakeStorage
from clachan_lake.storage.syncing import sync

OLDEST = 1
"""The first format; each one since is migrated when the folder is opened for writing."""

STALE_SECONDS = 3600
FOLDERS = ("blobs", "incoming")
HALF_MADE = {*FOLDERS, "format.json.tmp"}
MAGIC_BYTES = 4


def make(folder: Path) -> None:
    """The folder, when it is not there; raises OSError without its parent."""
    if not folder.is_dir():
        folder.mkdir(mode=0o750)
        sync(folder.absolute().parent)


def read_format(folder: Path) -> int | None:
    """The number in format.json; None in a folder that a lake can begin in. Raises FormatError."""
    path = folder / "format.json"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if not _is_empty(folder):
            raise FormatError(
                f"folder {folder}: not empty and without format.json, expected a lake or an empty folder"
            ) from None
        return None
    try:
        number = json.loads(text)["clachan_lake"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"file {path}: not readable ({error!r}), expected the format of a lake") from error
    if number not in range(OLDEST, FORMAT + 1) or isinstance(number, bool):
        raise FormatError(
            f"lake {folder}, format: {number!r}, expected {OLDEST} to {FORMAT}; use the version that made it"
        )
    return int(number)


def _is_empty(folder: Path) -> bool:
    """Nothing is in it, or what a process left that was killed while it made the lake."""
    names = {path.name for path in folder.iterdir()}
    others = {name for name in names if name != ".lock" and not name.startswith("data.fs")}
    data = folder / "data.fs"
    if not others or not others <= HALF_MADE:
        return not others
    if data.exists():
        return data.stat().st_size <= MAGIC_BYTES
    if any((folder / name).is_file() for name in FOLDERS):
        return False
    made = [folder / name for name in FOLDERS if name in others]
    return all(path.is_dir() for path in made) and not any(
        path.is_file() and path.name != ".layout" for top in made for path in top.rglob("*")
    )


def write_format(folder: Path) -> None:
    """At once and for good; nothing when it stands there already."""
    path, draft = folder / "format.json", folder / "format.json.tmp"
    if path.exists() and read_format(folder) == FORMAT:
        return
    with draft.open("w") as file:
        json.dump({"clachan_lake": FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    # ZODB writes them once, syncs them never, and does not open a lake without them
    sync(folder / "data.fs")
    sync(folder / "blobs" / ".layout")
    sync(folder / "blobs")
    draft.rename(path)
    sync(folder)


def undo_half_pack(folder: Path) -> None:
    """Packing renames data.fs and then the packed file to it; killed between the two it has not packed."""
    data, before = folder / "data.fs", folder / "data.fs.old"
    if data.exists() or not before.exists():
        return
    # a process that packs at this moment holds the lock; raises LockError
    lock = LockFile(str(folder / "data.fs.lock"))
    try:
        if not data.exists():
            before.rename(data)
            sync(folder)
    finally:
        lock.close()


def undo_half_made(folder: Path) -> None:
    """A power cut while the lake was made may leave a file for records with nothing in it, and not even the bytes that
    begin one. Raises CorruptError when chunks are there and records are not: FileStorage would begin anew, and remove
    them."""
    data = folder / "data.fs"
    if data.exists() and data.stat().st_size > MAGIC_BYTES:
        return
    # whoever makes the lake at this moment holds the lock; raises LockError
    lock = LockFile(str(folder / "data.fs.lock"))
    try:
        if data.exists() and data.stat().st_size > MAGIC_BYTES:
            return
        if any((folder / "blobs").rglob("*.blob")):
            raise CorruptError(f"lake {folder}: data.fs is empty or missing, expected its records; restore a backup")
        data.unlink(missing_ok=True)
    finally:
        lock.close()


def clean(folder: Path, storage: LakeStorage) -> None:
    """What a killed process left: bodies half received, drafts of blobs, and what a pack no longer needs."""
    incoming = folder / "incoming"
    incoming.mkdir(mode=0o700, exist_ok=True)
    for path in incoming.iterdir():
        path.unlink()
    for path in (folder / "blobs" / "tmp").glob("*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - STALE_SECONDS:
                # savepoints have a folder each
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("data.fs.pack", "data.fs.old"):
        (folder / name).unlink(missing_ok=True)
    _finish_removal(folder / "blobs" / ".removed", storage)


def _finish_removal(tags: Path, storage: LakeStorage) -> None:
    """Blobs that a pack had tagged: those that no record names. It may have been killed before the pack counted."""
    if not tags.exists():
        return
    for tag in _tags(tags):
        oid, serial = tag[:8], tag[8:]
        with suppress(FileNotFoundError):
            if not _has_record(storage, oid, serial):
                if serial:
                    Path(storage.fshelper.getBlobFilename(oid, serial)).unlink()
                else:
                    remove_committed_dir(storage.fshelper.getPathForOID(oid))
    tags.unlink()


def _tags(path: Path) -> Iterator[bytes]:
    """Ids, or ids with the serial of one revision; a line that was cut is none."""
    for line in path.read_bytes().splitlines():
        with suppress(binascii.Error):
            tag = binascii.unhexlify(line.strip())
            if len(tag) in {8, 16}:
                yield tag


def _has_record(storage: LakeStorage, oid: bytes, serial: bytes) -> bool:
    try:
        if serial:
            storage.loadSerial(oid, serial)
        else:
            storage.getTid(oid)
    except POSKeyError:
        return False
    return True
