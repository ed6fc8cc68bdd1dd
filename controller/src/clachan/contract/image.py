"""Images: a bootable disk and its manifest, known by the sha256 of the disk file's bytes.

The manifest is `manifest.json` beside the disk in an image store, and the body with which an image is declared.
"""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from clachan.contract import Document
from clachan.contract.names import Sha256

NAME = r"[a-z][a-z0-9_-]{0,62}"
"""Of an image; several images may have one, the newest is meant by it."""

ImageName = Annotated[str, StringConstraints(pattern=rf"^{NAME}$")]
Moment = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:00)$")]


class ImageFacts(Document):
    """What there is to know of an image without its recipe."""

    name: ImageName
    sha256: Sha256
    size: Annotated[int, Field(gt=0)]
    """Bytes of the file."""
    virtual_size: Annotated[int, Field(gt=0)]
    """Bytes of the disk that a machine sees."""
    disk_format: Literal["qcow2", "raw"]
    recipe_digest: Sha256 | None
    """None for a disk that was imported."""
    builder: Literal["bootstrap", "packer", "import"]
    created: Moment


class Manifest(ImageFacts):
    format: Literal[1] = 1
    recipe: dict[str, JsonValue] | None
    packages: dict[str, str]
    """Name -> version."""


class _Arrival(Document):
    state: Literal["incomplete", "ready"]
    received: int
    """How many bytes of the disk the controller has: an upload goes on from there."""


class ImageSummary(ImageFacts, _Arrival):
    """A line of the list."""


class ImageView(Manifest, _Arrival):
    """One image, with its whole manifest."""
