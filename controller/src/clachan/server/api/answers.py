"""Answers: documents with strong ETags, long polls, pages, the error envelope."""

import hashlib
import logging
import time
from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from clachan.contract.api import ErrorBody, ErrorEnvelope
from clachan.server.api.admission import controller_of
from clachan.server.services.pages import Wanted
from clachan.server.services.refusals import Refusal

log = logging.getLogger(__name__)
JSON = "application/json"
STATUS = {
    "invalid": 422,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "unavailable": 503,
    "timeout": 504,
    "full": 507,
}
CODES = {status: code for code, status in STATUS.items()} | {400: "invalid", 405: "invalid"}


def document(request: Request, shown: BaseModel | bytes, status: int = 200, etag: str | None = None) -> Response:
    """The document, or 304 when the caller has it."""
    body = shown if isinstance(shown, bytes) else shown.model_dump_json(by_alias=True).encode()
    if etag is None:
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    if request.method == "GET" and knows(request, etag):
        return unchanged(etag)
    headers = {"etag": etag, "cache-control": "no-cache"}
    return Response(body, status, headers, JSON)


def unchanged(etag: str) -> Response:
    return Response(status_code=304, headers={"etag": etag, "cache-control": "no-cache"})


def knows(request: Request, etag: str) -> bool:
    """Whether the caller has this version (If-None-Match)."""
    known = request.headers.get("if-none-match")
    if known is None:
        return False
    return known == etag or etag in (each.strip() for each in known.split(","))


def made(request: Request, shown: BaseModel, created: bool) -> Response:
    return document(request, shown, 201 if created else 200)


class Patience:
    """How long a long poll may still wait: `Prefer: wait=N` (RFC 7240), at most the setting `wait_seconds`."""

    def __init__(self, request: Request) -> None:
        asked = 0
        for preference in request.headers.get("prefer", "").split(","):
            name, _, value = preference.partition("=")
            if name.strip().lower() == "wait" and value.strip().isdigit():
                asked = int(value.strip()[:6])
        self._end = time.monotonic() + min(asked, controller_of(request).settings.wait_seconds)

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def paged(limit: Annotated[int, Query(ge=1, le=500)] = 100, cursor: str | None = None) -> Wanted:
    return Wanted(limit, cursor)


def envelope(status: int, error: ErrorBody) -> Response:
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return Response(ErrorEnvelope(error=error).model_dump_json(), status, headers, JSON)


async def refused(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    body = ErrorBody(code=refusal.code, message=refusal.message, field=refusal.field, hint=refusal.hint)
    return envelope(STATUS[refusal.code], body)


async def malformed(_request: Request, error: Exception) -> Response:
    """What the framework found wrong with the path, the query or the body."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in {"query", "path"}]
    field = ".".join(where[1:] if where[:1] == ["body"] and len(where) > 1 else where) or "body"
    more = len(error.errors()) - 1
    message = f"{field}: {first['msg']}" + (f" (and {more} more)" if more else "")
    return envelope(422, ErrorBody(code="invalid", message=message, field=field))


async def unknown(request: Request, error: Exception) -> Response:
    """What the framework answers by itself: no such route or method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    response = envelope(error.status_code, ErrorBody(code=CODES.get(error.status_code, "invalid"), message=message))
    response.headers.update(error.headers or {})
    return response


async def failed(request: Request, error: Exception) -> Response:
    """A fault of ours: the caller learns nothing of it, the log does."""
    log.error("failed method=%s path=%s error=%s", request.method, request.url.path, type(error).__name__)
    return envelope(500, ErrorBody(code="unavailable", message="the controller failed; its log says more"))
