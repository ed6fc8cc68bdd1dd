"""The files below a directory, and their tags."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

BLOCK = 1 << 20
TAG_BYTES = 900


@dataclass(frozen=True)
class Seen:
    """A regular file as the last look found it. `path` is relative to the directory."""

    path: str
    identity: str
    size: int
    mtime_ns: int


def scan(directory: str) -> tuple[list[Seen], list[str]]:
    """The files in the order of their paths, and the faults of folders that cannot be read."""
    found: list[Seen] = []
    faults: list[str] = []
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            for entry in _entries(f"{directory}/{folder}"):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif entry.is_file(follow_symlinks=False):
                    found.append(_seen(path, entry.stat(follow_symlinks=False)))
        except OSError as error:
            faults.append(f"folder {folder or directory}: {error.strerror}, expected to read it")
    return sorted(found, key=lambda seen: seen.path), faults


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _seen(path: str, stat: os.stat_result) -> Seen:
    return Seen(path, f"{stat.st_dev}:{stat.st_ino}", stat.st_size, stat.st_mtime_ns)


def tag_of(path: str, generation: int) -> str:
    """The stream's name for a file: its path; `@2` and so on for what later stood under that path with other content.

    A path that is not printable text is percent-encoded; a long one is cut and gets a digest.
    """
    name = path if path.isprintable() else quote_from_bytes(os.fsencode(path), safe="/ ")
    if len(name.encode()) > TAG_BYTES:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        name = f"{name.encode()[: TAG_BYTES - 17].decode(errors='ignore')}~{digest}"
    return name if generation == 1 else f"{name}@{generation}"


def open_file(directory: str, path: str) -> int:
    """A descriptor for reading; the caller closes it. Raises OSError, also for what is not a regular file now."""
    return os.open(f"{directory}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def prefix_digest(descriptor: int, size: int) -> str | None:
    """sha256 (hex) of the first `size` bytes; None when there are fewer."""
    digest, offset = hashlib.sha256(), 0
    while offset < size:
        data = os.pread(descriptor, min(BLOCK, size - offset), offset)
        if not data:
            return None
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()
