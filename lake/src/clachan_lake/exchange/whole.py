"""Files and folders that appear under their name when they are whole, and leave nothing when they fail."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """Written beside `file`, then put in its place; what stood there is replaced."""
    draft = _beside(file)
    try:
        with draft.open("wb") as out:
            yield out
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, then renamed. Raises FileExistsError when something stands there: a folder is
    never replaced."""
    draft = _beside(folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"folder {folder}: exists, expected a new name")
    try:
        draft.mkdir()
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _beside(path: Path) -> Path:
    # with the process's number: two exports to one name must not write into one draft
    return path.with_name(f".{path.name}.{os.getpid()}.part")
