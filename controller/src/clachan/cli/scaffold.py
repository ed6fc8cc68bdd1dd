"""Writing a new software: the files of `skeleton/`, with the names filled in."""

import json
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from clachan.cli.errors import WRONG_USE, CommandError

SUFFIX = ".in"
TITLE_CHARS = 50
PLATFORM = "clachan.platform"


def write_software(name: str, directory: Path, title: str | None = None) -> list[Path]:
    """Write the software `namespace.collection.role` into `directory`; answers the files, relative to it.

    A directory that is that collection already gets only the role. Nothing that exists is written over.
    """
    namespace, collection, role = name.split(".")
    title = title or role.replace("_", " ").capitalize()
    _check(name, title)
    known = _collection_of(directory)
    if known is not None and known != f"{namespace}.{collection}":
        raise CommandError(
            f"directory {directory}: the collection {known}, expected {namespace}.{collection}", WRONG_USE
        )
    if known is None and directory.exists() and any(directory.iterdir()):
        raise CommandError(f"directory {directory}: not empty, expected a new one or a collection", WRONG_USE)
    if (directory / "roles" / role).exists():
        raise CommandError(f"role {role}: exists in {directory}, expected a new name", WRONG_USE)
    words = {
        "namespace": namespace,
        "collection": collection,
        "role": role,
        "software": name,
        "title": title,
        "title_quoted": json.dumps(title),
    }
    skeleton = resources.files("clachan.cli") / "skeleton"
    written = [] if known else _write(skeleton / "collection", directory, Path(), words)
    return sorted(written + _write(skeleton / "role", directory, Path("roles") / role, words))


def _check(name: str, title: str) -> None:
    if name.startswith(f"{PLATFORM}."):
        raise CommandError(f"software {name}: in {PLATFORM}, expected a collection of your own", WRONG_USE)
    if name.rpartition(".")[2].startswith(("clachan_", "ansible_")):
        raise CommandError(f"software {name}: its parameters would begin with a reserved prefix", WRONG_USE)
    if not title.isprintable() or len(title) > TITLE_CHARS or set(title) & set("|`<>{}"):
        raise CommandError(
            f"title {title!r}: expected at most {TITLE_CHARS} printable characters without | ` < > {{ }}", WRONG_USE
        )


def _collection_of(directory: Path) -> str | None:
    """namespace.name of the collection in `directory`; None when there is none."""
    galaxy = directory / "galaxy.yml"
    if not galaxy.is_file():
        return None
    found = dict(re.findall(r"^(namespace|name):\s*[\"']?([a-z0-9_]+)", galaxy.read_text(), re.MULTILINE))
    return f"{found.get('namespace')}.{found.get('name')}"


def _write(source: Traversable, directory: Path, below: Path, words: dict[str, str]) -> list[Path]:
    written = []
    for entry in source.iterdir():
        if entry.is_dir():
            written += _write(entry, directory, below / entry.name, words)
        elif entry.name.endswith(SUFFIX):
            path = below / entry.name.removesuffix(SUFFIX)
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            with (directory / path).open("x", encoding="utf-8") as file:
                file.write(re.sub(r"@(\w+)@", lambda match: words[match[1]], entry.read_text(encoding="utf-8")))
            written.append(path)
    return written
