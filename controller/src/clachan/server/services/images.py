"""Images: declared by their manifest, then uploaded in one piece or several; complete when size and sha256 agree.

In the folder `images` the disk of a ready image is `SHA256`; what has come of another is `.upload-SHA256`, which stays
when an upload is cut and is removed when it is refused. Upkeep removes what nobody goes on with for a day.
"""

import asyncio
import errno
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import String, cast, select
from sqlalchemy.orm import Session

from clachan.contract.api import Page
from clachan.contract.image import ImageSummary, ImageView, Manifest
from clachan.server.db.models import Image, Instance, Revision
from clachan.server.decisions import disk_header
from clachan.server.services.controller import Controller
from clachan.server.services.pages import Wanted
from clachan.server.services.refusals import Conflict, Full, Invalid, NotFound, TooLarge

BLOCK = 1 << 20
QUIET_SECONDS = 10
"""An upload that brought no block for so long may be taken over: its connection is dead and nobody has noticed."""
FORGOTTEN_SECONDS = 86400
NAMED_USERS = 5


class Upload:
    """One request that brings bytes of a disk."""

    def __init__(self, controller: Controller, row: Image, author: str) -> None:
        self._controller, self._row, self._author = controller, row, author
        self._partial = _partial(controller, row.sha256)
        self._heard = time.monotonic()
        self._digest: Any = None

    async def take(self, start: int | None, chunks: AsyncIterator[bytes]) -> None:
        """Add what comes from byte `start` on (None: nothing more), and judge the disk when it is whole."""
        uploads, sha256 = self._controller.uploads, self._row.sha256
        other = uploads.get(sha256)
        if other is not None and time.monotonic() - other._heard < QUIET_SECONDS:
            raise Conflict(f"disk {sha256}: is being uploaded, expected one upload at a time", "content-range")
        uploads[sha256] = self
        try:
            received = _received(self._controller, self._row)
            if start is not None and start != received:
                raise Conflict(f"disk {sha256}: bytes from {start}, expected from {received}", "content-range")
            _check_space(self._controller, self._row.size - received)
            self._digest = await asyncio.to_thread(_digest, self._partial)
            received = await self._write_all(received, chunks)
            if received == self._row.size:
                await asyncio.to_thread(self._finish)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            self._partial.unlink(missing_ok=True)
            raise Full(f"disk {sha256}: no space left, expected room for {self._row.size} bytes") from error
        finally:
            if uploads.get(sha256) is self:
                del uploads[sha256]

    async def _write_all(self, position: int, chunks: AsyncIterator[bytes]) -> int:
        """A block at a time and outside the event loop; what came before a cut is written too."""
        block = bytearray()
        try:
            async for chunk in chunks:
                position += len(chunk)
                if position > self._row.size:
                    raise Invalid(f"disk {self._row.sha256}: more than {self._row.size} bytes, expected those", "body")
                block += chunk
                if len(block) >= BLOCK:
                    await self._write(block)
        finally:
            await self._write(block)
        return position

    async def _write(self, block: bytearray) -> None:
        self._heard = time.monotonic()
        if self._controller.uploads.get(self._row.sha256) is not self:
            raise Conflict(f"disk {self._row.sha256}: removed or taken over by another upload, expected neither")
        await asyncio.to_thread(self._append, block)
        block.clear()

    def _append(self, block: bytearray) -> None:
        with self._partial.open("ab", buffering=0) as file:
            left = memoryview(block)
            while left:
                left = left[file.write(left) :]
            left.release()
        self._digest.update(block)

    def _finish(self) -> None:
        """The disk becomes the image's, or nothing of it stays."""
        row, manifest = self._row, Manifest.model_validate(self._row.manifest)
        with self._partial.open("rb") as file:
            header = file.read(disk_header.HEADER_BYTES)
            os.fsync(file.fileno())
        wrong = disk_header.problem(header, row.size, manifest.disk_format, manifest.virtual_size)
        if self._digest.hexdigest() != row.sha256:
            wrong = f"sha256 of what came is {self._digest.hexdigest()}, expected the same"
        if wrong is not None:
            self._partial.unlink()
            raise Invalid(f"disk {row.sha256}: {wrong}", "body")
        # on disk before it is known: a ready row never points to nothing
        disk = self._partial.replace(_path(self._controller, row.sha256))
        with self._controller.change() as change:
            kept = change.session.get(Image, row.sha256)
            if kept is None:
                disk.unlink(missing_ok=True)
                raise NotFound(f"image {row.sha256}: removed meanwhile, expected a declared one")
            kept.ready = True
            what = f"image {row.name} {row.sha256[:12]} uploaded by {self._author}"
            change.event("image_ready", what, data={"sha256": row.sha256, "size": row.size})


def declare(controller: Controller, sha256: str, manifest: Manifest, author: str) -> tuple[ImageView, bool]:
    """Make the image known; says whether it was not. The same again changes nothing."""
    if manifest.sha256 != sha256:
        raise Invalid(f"manifest: sha256 {manifest.sha256}, expected that of the path, {sha256}", "sha256")
    limit = controller.settings.image_gib << 30
    if max(manifest.size, manifest.virtual_size) > limit:
        raise TooLarge(f"image {manifest.name}: {manifest.virtual_size} bytes, expected at most {limit}")
    controller.images.mkdir(mode=0o700, exist_ok=True)
    with controller.change() as change:
        row = change.session.get(Image, sha256)
        created = row is None
        if row is None:
            row = Image(sha256=sha256, ready=False, declared=change.now)
            change.session.add(row)
            what = f"image {manifest.name} {sha256[:12]} declared by {author}"
            change.event("image_declared", what, data={"sha256": sha256})
        content = manifest.model_dump(mode="json")
        if row.ready and row.manifest != content:
            raise Conflict(f"image {sha256}: has another manifest, expected the same", hint="remove it first")
        row.name, row.size, row.manifest = manifest.name, manifest.size, content
        # a kill may have come between the disk and its row
        row.ready = _path(controller, sha256).exists()
        if _received(controller, row) > row.size:
            _partial(controller, sha256).unlink()
        _check_space(controller, row.size - _received(controller, row))
        return _view(controller, row), created


async def receive(
    controller: Controller, sha256: str, piece: tuple[int | None, int], chunks: AsyncIterator[bytes], author: str
) -> ImageView:
    """Bytes of the disk; `piece` is where they begin (None: nothing comes) and the size of the whole."""
    row = await asyncio.to_thread(_find, controller, sha256)
    if piece[1] != row.size:
        raise Invalid(f"disk {sha256}: {piece[1]} bytes, expected {row.size} as in the manifest", "content-range")
    if not row.ready:
        await Upload(controller, row, author).take(piece[0], chunks)
    return await asyncio.to_thread(get, controller, sha256)


def remove(controller: Controller, sha256: str, author: str) -> None:
    with controller.change() as change:
        row = change.session.get(Image, sha256)
        if row is None:
            raise NotFound(f"image {sha256}: unknown, expected a declared one")
        if users := _users(change.session, sha256):
            raise Conflict(f"image {sha256}: instances {', '.join(users)} have it, expected none that does")
        change.session.delete(row)
        change.event("image_removed", f"image {row.name} {sha256[:12]} removed by {author}", data={"sha256": sha256})
    controller.uploads.pop(sha256, None)
    for path in (_path(controller, sha256), _partial(controller, sha256)):
        path.unlink(missing_ok=True)


def _users(session: Session, sha256: str) -> list[str]:
    """Some of the instances that name the image in a parameter: their nodes may have to fetch it yet."""
    named = cast(Revision.parameters, String).contains(sha256)
    query = select(Instance.path).join(Instance.revision).where(named).order_by(Instance.path).limit(NAMED_USERS)
    return list(session.scalars(query))


def prune(controller: Controller) -> None:
    """Remove uploads that nobody goes on with, and disks without a row."""
    old = time.time() - FORGOTTEN_SECONDS
    with controller.change() as change:
        known = {row.sha256: row for row in change.session.scalars(select(Image))}
        for path in controller.images.glob("*"):
            row = known.get(path.name.removeprefix(".upload-"))
            if (row is None or not row.ready) and path.stat().st_mtime < old:
                path.unlink(missing_ok=True)
                if row is not None:
                    change.session.delete(row)


def search(controller: Controller, wanted: Wanted, name: str | None) -> Page[ImageSummary]:
    query = select(Image) if name is None else select(Image).where(Image.name == name)
    with controller.read() as session:
        return wanted.page(session, query, Image.sha256, lambda row: _summary(controller, row))


def get(controller: Controller, sha256: str) -> ImageView:
    return _view(controller, _find(controller, sha256))


def disk_path(controller: Controller, sha256: str) -> Path:
    """The disk's file of a ready image."""
    path = _path(controller, sha256)
    if not _find(controller, sha256).ready or not path.exists():
        raise NotFound(f"disk {sha256}: not complete, expected its upload to be")
    return path


def _find(controller: Controller, sha256: str) -> Image:
    with controller.read() as session:
        row = session.get(Image, sha256)
    if row is None:
        raise NotFound(f"image {sha256}: unknown, expected a declared one")
    return row


def _path(controller: Controller, sha256: str) -> Path:
    return controller.images / sha256


def _partial(controller: Controller, sha256: str) -> Path:
    return controller.images / f".upload-{sha256}"


def _received(controller: Controller, row: Image) -> int:
    if row.ready:
        return row.size
    try:
        return _partial(controller, row.sha256).stat().st_size
    except FileNotFoundError:
        return 0


def _digest(path: Path) -> Any:
    """The sha256 of what has come so far, to go on with."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256")
    except FileNotFoundError:
        return hashlib.sha256()


def _check_space(controller: Controller, more: int) -> None:
    free = shutil.disk_usage(controller.images).free - (controller.settings.free_mib << 20)
    if more > max(free, 0):
        raise Full(f"images {controller.images}: room for {max(free, 0)} bytes, expected {more}")


def _arrival(controller: Controller, row: Image) -> dict[str, Any]:
    return {"state": "ready" if row.ready else "incomplete", "received": _received(controller, row)}


def _view(controller: Controller, row: Image) -> ImageView:
    return ImageView.model_validate(row.manifest | _arrival(controller, row))


def _summary(controller: Controller, row: Image) -> ImageSummary:
    kept = {key: value for key, value in row.manifest.items() if key in ImageSummary.model_fields}
    return ImageSummary.model_validate(kept | _arrival(controller, row))
