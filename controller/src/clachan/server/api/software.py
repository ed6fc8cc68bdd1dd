"""Routes: software and the artifacts that it comes from."""

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from clachan.contract.api import Page
from clachan.contract.software import SoftwareView
from clachan.server.api.admission import Caller, Here, new_router
from clachan.server.api.answers import document, made
from clachan.server.api.identity import Paged
from clachan.server.services import software
from clachan.server.services.refusals import Invalid

router = new_router()
MEDIA = "application/gzip"


@router.post(
    "/software",
    response_model=Page[SoftwareView],
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {MEDIA: {"schema": {"format": "binary"}}}}},
)
async def register(request: Request, here: Here, caller: Caller) -> Response:
    """Register the roles of a collection's artifact, which is the body."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != MEDIA:
        raise Invalid(f"content-type: {request.headers.get('content-type')}, expected {MEDIA}", "content-type")
    upload = await software.receive(here, request.stream())
    return made(request, await run_in_threadpool(software.register, here, upload, caller.author), created=True)


@router.get("/software", response_model=Page[SoftwareView])
def list_software(request: Request, here: Here, wanted: Paged) -> Response:
    return document(request, software.search(here, wanted))


@router.get("/software/{fqcn}", response_model=SoftwareView)
def get_software(request: Request, here: Here, fqcn: str, digest: str | None = None) -> Response:
    return document(request, software.get(here, fqcn, digest))


@router.get("/artifacts/{sha256}")
def get_artifact(here: Here, sha256: str) -> FileResponse:
    return FileResponse(software.artifact_path(here, sha256), media_type=MEDIA)
