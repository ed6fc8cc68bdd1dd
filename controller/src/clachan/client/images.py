"""The routes of images; a disk is uploaded in as many pieces as the connection needs."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from clachan.client.errors import ApiError, BadAnswerError, UnreachableError
from clachan.client.transport import API, Transport
from clachan.contract.api import Page
from clachan.contract.image import ImageSummary, ImageView, Manifest

ANSWER_SECONDS = 300.0
"""After the last byte the controller hashes what came before a cut, and syncs."""
TRIES = 6
LONGEST_PAUSE = 8.0

Say = Callable[[int], None]


class ImageRoutes(Transport):
    def images(self, name: str | None = None) -> Iterator[ImageSummary]:
        return self._pages(f"{API}/images", Page[ImageSummary], {"name": name})

    def image(self, sha256: str) -> ImageView:
        return self._get(f"{API}/images/{sha256}", ImageView)

    def declare_image(self, manifest: Manifest) -> ImageView:
        return self._put(f"{API}/images/{manifest.sha256}", manifest, ImageView)

    def remove_image(self, sha256: str) -> None:
        self._delete(f"{API}/images/{sha256}")

    def download_image(self, sha256: str, destination: Path) -> None:
        """Fetch an image's disk to `destination`, which is replaced only by the right bytes."""
        self._download(f"{API}/images/{sha256}/disk", f"image {sha256}", sha256, destination)

    def upload_image(self, manifest: Manifest, disk: Path, say: Say = lambda _: None) -> ImageView:
        """Declare an image and send what the controller lacks of its disk, going on where a cut left it.

        `say` is told how many bytes have gone. It ends with the last error after TRIES tries without progress.
        """
        most, failures = -1, 0
        while failures < TRIES:
            try:
                # what cannot be is refused here: a refusal amid a body is seldom read
                view = self.declare_image(manifest)
                if view.received > most:
                    most, failures = view.received, 0
                if view.state == "incomplete":
                    view = self._send(view, disk, say)
                if view.state == "ready":
                    return view
            except (UnreachableError, ApiError) as error:
                if failures == TRIES - 1 or not _passing(error):
                    raise
            time.sleep(min(LONGEST_PAUSE, 0.25 * 2.0**failures))
            failures += 1
        raise BadAnswerError(f"upload of image {manifest.sha256}: no progress in {TRIES} tries, expected some")

    def _send(self, view: ImageView, disk: Path, say: Say) -> ImageView:
        begin, size = view.received, view.size
        said = f"bytes {begin}-{size - 1}/{size}" if begin < size else f"bytes */{size}"
        with disk.open("rb") as file:
            response = self._once(
                "PUT",
                f"{API}/images/{view.sha256}/disk",
                headers={"Content-Range": said, "Content-Type": "application/octet-stream"},
                data=_Rest(file, begin, size, say) if begin < size else None,
                answer_seconds=ANSWER_SECONDS,
            )
        return self._parsed(response, ImageView)


class _Rest:
    """What is left of a file, for a body of known length that tells how far it is."""

    def __init__(self, file: BinaryIO, begin: int, size: int, say: Say) -> None:
        self._file, self._position, self._size, self._say = file, begin, size, say
        file.seek(begin)

    def __len__(self) -> int:
        return self._size - self._position

    def read(self, length: int = -1) -> bytes:
        block = self._file.read(length)
        self._position += len(block)
        self._say(self._position)
        return block


def _passing(error: UnreachableError | ApiError) -> bool:
    """Whether another try may do: also when another upload of the disk went on meanwhile."""
    if isinstance(error, ApiError):
        return error.status in {502, 503} or (error.status == 409 and error.field == "content-range")
    return True
