"""Slots on this node: made ready for a run, read after it, emptied at the end.

A slot's var/ belongs to its user, who may put a link, a pipe or a huge file wherever the agent (root) looks. So
everything goes from directory descriptor to directory descriptor without following a link, only regular files are
read, and only so much of them; what stands in etc/ must belong to root or the agent.
"""

import hashlib
import json
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from clachan.agent.layout import AgentError
from clachan.agent.settings import NodeConfig
from clachan.contract.api import Declaration
from clachan.contract.facts import canonical
from clachan.contract.inventory import Slot
from clachan.contract.names import is_name
from clachan.contract.slot import DOCUMENT_BYTES, DOCUMENTS, PROMISE, PUBLISHED, Promise, Service

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# a pipe that a slot's user put there must not make the agent wait
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
HASHED_BYTES = 64 * 1024 * 1024
BLOCK = 1024 * 1024
T = TypeVar("T")

_SERVICE: TypeAdapter[Service] = TypeAdapter(Service)
_DECLARATION: TypeAdapter[Declaration] = TypeAdapter(Declaration)


@dataclass(frozen=True)
class Documents:
    """What a role left in etc/ of a slot."""

    services: dict[str, Service] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """Of each service: its document and the files that it is restarted on."""
    promises: dict[str, Promise] = field(default_factory=dict)
    requests: dict[str, Declaration] = field(default_factory=dict)
    published: dict[str, str | int | float | bool] = field(default_factory=dict)
    stamp: tuple[int, ...] = field(default=(), compare=False)
    """`stamp` of the slot from before it was read."""


@contextmanager
def _opened(path: Path | str, flags: int, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_inside(slot: Path, relative: str, flags: int = FILE) -> Iterator[int]:
    """A descriptor of something below the slot, reached without following a link; raises OSError."""
    *folders, last = relative.split("/")
    with ExitStack() as stack:
        folder = stack.enter_context(_opened(slot, FOLDER))
        for name in folders:
            folder = stack.enter_context(_opened(name, FOLDER, folder))
        yield stack.enter_context(_opened(last, flags, folder))


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def check_slot(slot: Slot, config: NodeConfig) -> None:
    """The slice may name only slots that this node has; raises AgentError."""
    expected = (str(Path(config.slots_directory) / slot.name), config.user_of(slot.index))
    if (slot.directory, slot.user) != expected or slot.name != f"s{slot.index:03d}":
        raise AgentError(f"slot {slot.name}: {slot.directory} of {slot.user}, expected {expected[0]} of {expected[1]}")


def prepare(directory: Path, user: str, root: bool) -> bool:
    """Make the slot's directories with their owners and modes (contract/slot.py); True when something was changed.

    The slot's own directory belongs to root, so nobody can put a link where these are made.
    """
    account = pwd.getpwnam(user)
    nobody = (-1, -1)
    wanted: dict[str, tuple[int, int, int]] = {
        "": (0o750, *((0, account.pw_gid) if root else nobody)),
        "etc": (0o750, *((0, account.pw_gid) if root else nobody)),
        "log": (0o750, *((0, 0) if root else nobody)),
        "var": (0o700, *((account.pw_uid, account.pw_gid) if root else nobody)),
    }
    changes = [_directory(directory / name, *how) for name, how in wanted.items()]
    return any(changes)


def _directory(path: Path, mode: int, uid: int, gid: int) -> bool:
    made = not os.path.lexists(path)
    if made:
        path.mkdir(mode=0o700)
    with _opened(path, FOLDER) as folder:
        found = os.fstat(folder)
        wrong_owner = (uid, gid) != (-1, -1) and (found.st_uid, found.st_gid) != (uid, gid)
        if wrong_owner:
            os.fchown(folder, uid, gid)
        wrong_mode = stat.S_IMODE(found.st_mode) != mode
        if wrong_mode or wrong_owner:
            os.fchmod(folder, mode)
    return made or wrong_owner or wrong_mode


def stamp(slot: Path) -> tuple[int, ...]:
    """When names were last put into the folders of etc/, in ns; a push replaces files, so it is another one then."""
    return tuple(Path(folder).stat().st_mtime_ns for folder, _, _ in sorted(os.walk(slot / "etc")))


def read(slot: Path) -> Documents:
    """All documents in the slot's etc/; raises AgentError, which names the document and what is wrong with it."""
    before = stamp(slot)
    services = _folder(slot, "services.d", _SERVICE)
    published = _published(slot)
    digests = {name: _service_digest(slot, service) for name, service in services.items()}
    return Documents(
        services=services,
        digests=digests,
        promises=_folder(slot, "promises.d", PROMISE),
        requests=_folder(slot, "requests.d", _DECLARATION),
        published=published,
        stamp=before,
    )


def _published(slot: Path) -> dict[str, str | int | float | bool]:
    try:
        with opened_inside(slot, "etc/published.json") as file:
            return _parsed(_content(file, "published.json"), PUBLISHED, "published.json")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AgentError(f"published.json of {slot.name}: {error.strerror}, expected a regular file") from error


def _folder(slot: Path, folder: str, model: TypeAdapter[T]) -> dict[str, T]:
    try:
        with opened_inside(slot, f"etc/{folder}", FOLDER) as descriptor:
            # a hidden file is one that a role is just writing, or was when it was killed
            names = sorted(name for name in _names(descriptor) if not name.startswith("."))
            if len(names) > DOCUMENTS:
                raise AgentError(f"{folder} of {slot.name}: {len(names)} documents, expected at most {DOCUMENTS}")
            return {_stem(name, folder, slot): _document(descriptor, folder, name, model) for name in names}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AgentError(f"{folder} of {slot.name}: {error.strerror}, expected regular files") from error


def _stem(name: str, folder: str, slot: Path) -> str:
    stem, _, extension = name.rpartition(".")
    if extension != "json" or not is_name(stem):
        raise AgentError(f"document {folder}/{name!r} of {slot.name}, expected NAME.json with a contract name")
    return stem


def _document(folder: int, where: str, name: str, model: TypeAdapter[T]) -> T:
    with _opened(name, FILE, folder) as file:
        return _parsed(_content(file, f"{where}/{name}"), model, f"{where}/{name}")


def _content(file: int, what: str) -> bytes:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in {0, os.geteuid()}:
        raise AgentError(f"document {what}: not a regular file of root or the agent, expected one")
    content = os.read(file, DOCUMENT_BYTES + 1)
    if len(content) > DOCUMENT_BYTES:
        raise AgentError(f"document {what}: {found.st_size} bytes, expected at most {DOCUMENT_BYTES}")
    return content


def _parsed(content: bytes, model: TypeAdapter[T], what: str) -> T:
    try:
        return model.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise AgentError(f"document {what}: {at}: {first['msg']}") from error


def _service_digest(slot: Path, service: Service) -> str:
    files = {name: file_digest(slot, name) for name in sorted(service.restart_on)}
    return hashlib.sha256(canonical([json.loads(service.json_bytes()), files])).hexdigest()


def file_digest(slot: Path, relative: str) -> str:
    """sha256 of a file below the slot, or why there is none; of a huge one, of its beginning and size."""
    try:
        with opened_inside(slot, relative) as file:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                return "not a regular file"
            digest = hashlib.sha256(str(found.st_size).encode())
            left = HASHED_BYTES
            while left > 0 and (block := os.read(file, min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
            return digest.hexdigest()
    except OSError as error:
        return str(error.strerror)


def empty(slot: Path) -> None:
    """Remove all that is in the slot, its own directory stays; nothing outside is touched (rmtree follows no link)."""
    for entry in list(slot.iterdir()) if slot.is_dir() else []:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def used_bytes(slot: Path, entries: int = 200_000) -> int:
    """Bytes on disk below the slot, links not followed; of a tree with more entries, of the first ones."""
    total = 0
    folders = [os.fspath(slot)]
    while folders and entries > 0:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    entries -= 1
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:
            continue  # gone, or being replaced by its owner, while we look
    return total


def tail(slot: Path, service: str, lines: int, limit: int) -> str:
    """The last lines of a service's log, at most `limit` bytes of it."""
    with opened_inside(slot, f"log/{service}.log") as file:
        size = os.fstat(file).st_size
        os.lseek(file, max(0, size - limit), os.SEEK_SET)
        content = os.read(file, limit)
    return "\n".join(content.decode(errors="replace").splitlines()[-lines:])


def log_names(slot: Path) -> list[str]:
    try:
        with opened_inside(slot, "log", FOLDER) as folder:
            stems = (name.removesuffix(".log") for name in _names(folder) if name.endswith(".log"))
            return sorted(stem for stem in stems if is_name(stem))
    except FileNotFoundError:
        return []
