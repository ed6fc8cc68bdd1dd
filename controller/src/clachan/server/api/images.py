"""Routes: images. A disk comes in pieces (`Content-Range`) and goes out in pieces (`Range`)."""

import re

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from clachan.contract.api import Page
from clachan.contract.image import ImageSummary, ImageView, Manifest
from clachan.server.api.admission import Caller, Here, new_router
from clachan.server.api.answers import document, made
from clachan.server.api.identity import Paged
from clachan.server.services import images
from clachan.server.services.refusals import Invalid

router = new_router()
MEDIA = "application/octet-stream"
RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})\Z", re.ASCII)


class Disk(FileResponse):
    chunk_size = 1 << 20
    """Each is a step of a thread: the default of 64 KiB makes the steps dearer than the bytes."""


@router.get("/images", response_model=Page[ImageSummary])
def list_images(request: Request, here: Here, wanted: Paged, name: str | None = None) -> Response:
    return document(request, images.search(here, wanted, name))


@router.get("/images/{sha256}", response_model=ImageView)
def get_image(request: Request, here: Here, sha256: str) -> Response:
    return document(request, images.get(here, sha256))


@router.put("/images/{sha256}", response_model=ImageView)
def declare_image(request: Request, here: Here, caller: Caller, sha256: str, body: Manifest) -> Response:
    return made(request, *images.declare(here, sha256, body, caller.author))


@router.delete("/images/{sha256}", status_code=204)
def remove_image(here: Here, caller: Caller, sha256: str) -> Response:
    images.remove(here, sha256, caller.author)
    return Response(status_code=204)


@router.get("/images/{sha256}/disk")
def get_disk(here: Here, sha256: str) -> FileResponse:
    return Disk(images.disk_path(here, sha256), media_type=MEDIA, headers={"etag": f'"{sha256}"'})


@router.put(
    "/images/{sha256}/disk",
    response_model=ImageView,
    openapi_extra={"requestBody": {"required": True, "content": {MEDIA: {"schema": {"format": "binary"}}}}},
)
async def put_disk(request: Request, here: Here, caller: Caller, sha256: str) -> Response:
    """Bytes of the disk: `Content-Range: bytes FIRST-LAST/SIZE`, or `bytes */SIZE` when all have come before."""
    said = request.headers.get("content-range", "")
    match = RANGE.match(said)
    if match is None:
        raise Invalid(f"content-range: {said!r}, expected bytes FIRST-LAST/SIZE", "content-range")
    piece = (int(match[1]) if match[1] else None, int(match[3]))
    try:
        shown = await images.receive(here, sha256, piece, request.stream(), caller.author)
    except ClientDisconnect:
        return Response(status_code=400)  # nobody reads it: the upload was cut and may be gone on with
    return document(request, shown)
