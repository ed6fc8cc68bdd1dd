"""Plots and tiles over HTTP. An answer has an ETag of the array's state: the same request is answered 304 until the
array or its pyramid has changed."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from clachan_lake.ingest.reading import get
from clachan_lake.local import LocalLake
from clachan_lake.plots import document, spectrogram
from clachan_lake.plots.series import SeriesError, find
from clachan_lake.refusal import RefusedError
from clachan_lake.transform import minmax

Row = Annotated[int, Query(ge=0)]
VERSION = b"1"


def routes(lake: LocalLake) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own."""
    router = APIRouter()

    @router.get("/plot")
    def plot(
        request: Request,
        name: str,
        *,
        start: Row = 0,
        stop: Annotated[int | None, Query(ge=0)] = None,
        width: Annotated[int, Query(ge=1, le=4096)] = 1200,
        column: str = "",
    ) -> Response:
        with lake.session() as session:
            get(session.arrays, name)
            tag = etag(session, name, request.url.query)
            if unchanged(request, tag):
                return Response(status_code=304, headers=caching(tag))
            try:
                found = document.plot(session.arrays, name, start, stop, width=width, column=column)
            except document.RangeError as error:
                raise RefusedError(400, str(error), field="stop") from None
            except SeriesError as error:
                raise RefusedError(400, str(error), field="column") from None
        return JSONResponse(found, headers=caching(tag))

    @router.get("/spectrogram")
    def tile(
        request: Request,
        name: str,
        zoom: Annotated[int, Query(ge=0, le=spectrogram.MAXIMUM_ZOOM)],
        tile: Annotated[int, Query(ge=0, le=1 << 40)],
        column: str = "",
    ) -> Response:
        with lake.session() as session:
            array = get(session.arrays, name)
            tag = etag(session, name, request.url.query)
            if unchanged(request, tag):
                return Response(status_code=304, headers=caching(tag))
            try:
                made = spectrogram.tile(spectrogram.sound(array, find(array, column)), zoom, tile)
            except SeriesError as error:
                raise RefusedError(400, str(error), field="name") from None
        return Response(made, media_type="image/png", headers=caching(tag))

    return router


def etag(lake: LocalLake, name: str, query: str) -> str:
    """Of what an answer is made from: the array's state and attributes, its pyramid's, and the request."""
    arrays = lake.root()["arrays"]
    digest = hashlib.sha256(VERSION + query.encode())
    levels = (minmax.level_name(name, minmax.STEP**exponent) for exponent in range(1, minmax.LEVELS + 1))
    for one in (name, *levels):
        if (record := arrays.get(one)) is not None:
            record._p_activate()
            record.state._p_activate()
            digest.update(record._p_oid + record._p_serial + record.state._p_serial)
    return f'"{digest.hexdigest()[:32]}"'


def unchanged(request: Request, tag: str) -> bool:
    given = request.headers.get("if-none-match", "")
    return tag in (one.strip().removeprefix("W/") for one in given.split(","))


def caching(tag: str) -> dict[str, Any]:
    # asked for again each time, as what may be seen may change with the token
    return {"ETag": tag, "Cache-Control": "private, no-cache"}
