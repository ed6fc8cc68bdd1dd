"""The routes for readers: lists, bytes of streams with ranges, rows of arrays. Names stand in the query, as they are.

Bytes are sent block by block from one snapshot; nothing is ever whole in memory.
"""

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from io import BytesIO
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool

from clachan_lake.errors import MissingError
from clachan_lake.format import BLOCK
from clachan_lake.ingest.refusal import RefusedError
from clachan_lake.interface import Array
from clachan_lake.local import LocalLake

T = TypeVar("T")
Limit = Annotated[int, Query(ge=1, le=500)]


def routes(lake: LocalLake) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own."""
    router = APIRouter()
    _add_streams(router, lake)
    _add_arrays(router, lake)
    return router


def _add_streams(router: APIRouter, lake: LocalLake) -> None:
    @router.get("/streams")
    def streams(limit: Limit = 100, cursor: str = "", prefix: str = "") -> dict[str, Any]:
        with lake.session() as session:
            names, following = _page(session.root()["streams"].keys(min=max(cursor, prefix)), limit, cursor, prefix)
            return {"items": [session.streams[name].describe() for name in names], "cursor": following}

    @router.get("/streams/meta")
    def stream(name: str) -> dict[str, Any]:
        with lake.session() as session:
            described: dict[str, Any] = _get(session.streams, name).describe()
            return described

    @router.get("/streams/sha256")
    def digest(name: str, size: Annotated[int | None, Query(ge=0)] = None) -> dict[str, Any]:
        with lake.session() as session:
            found = _get(session.streams, name)
            if size is not None and size > found.size:
                raise RefusedError(400, f"size: {size}, expected at most {found.size}", field="size")
            whole = size is None or size == found.size
            return {
                "name": name,
                "size": found.size if whole else size,
                "sha256": found.sha256() if whole else found.sha256_of(size or 0),
            }

    @router.get("/streams/data")
    def data(name: str, request: Request) -> Response:
        session = lake.session()
        try:
            found = _get(session.streams, name)
            start, stop = _range(request.headers.get("range"), found.size)
            headers = {"Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
            if partial := "range" in request.headers:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{found.size}"
            parts = (found.read(at, min(BLOCK, stop - at)) for at in range(start, stop, BLOCK))
            return _stream(session, parts, 206 if partial else 200, headers)
        except BaseException:
            session.close()
            raise


def _add_arrays(router: APIRouter, lake: LocalLake) -> None:
    @router.get("/arrays")
    def arrays(limit: Limit = 100, cursor: str = "", prefix: str = "") -> dict[str, Any]:
        with lake.session() as session:
            names, following = _page(session.root()["arrays"].keys(min=max(cursor, prefix)), limit, cursor, prefix)
            return {"items": [_describe(session.arrays[name]) for name in names], "cursor": following}

    @router.get("/arrays/meta")
    def array(name: str) -> dict[str, Any]:
        with lake.session() as session:
            return _describe(_get(session.arrays, name))

    @router.get("/arrays/data")
    def rows(
        name: str,
        start: Annotated[int, Query(ge=0)] = 0,
        stop: Annotated[int | None, Query(ge=0)] = None,
        npy: bool = False,
    ) -> Response:
        """The rows as bytes in C order; with `npy=1` with numpy's header before them."""
        session = lake.session()
        try:
            found = _get(session.arrays, name)
            end = found.rows if stop is None else stop
            if not start <= end <= found.rows:
                raise RefusedError(400, f"rows: {start} to {end}, expected inside 0 to {found.rows}", field="stop")
            head = _npy_header(found, end - start) if npy else b""
            headers = {"Content-Length": str(len(head) + (end - start) * found.row_bytes)}
            return _stream(session, _row_parts(found, head, start, end), 200, headers)
        except BaseException:
            session.close()
            raise


def _get(mapping: Mapping[str, T], name: str) -> Any:
    try:
        return mapping[name]
    except MissingError as error:
        raise RefusedError(404, str(error), field="name") from None


def _page(names: Iterable[str], limit: int, cursor: str, prefix: str) -> tuple[list[str], str | None]:
    """The next `limit` names behind the cursor, and the cursor for those that follow."""
    found: list[str] = []
    for name in names:
        if not name.startswith(prefix):
            break
        if name == cursor:
            continue
        if len(found) == limit:
            return found, found[-1]
        found.append(name)
    return found, None


def _range(header: str | None, size: int) -> tuple[int, int]:
    """Start and stop of a single range of bytes (RFC 9110, 14.1.2); raises RefusedError(416)."""
    if header is None:
        return 0, size
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    first, last = match.groups() if match else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(0, size - int(last or 0)), size
    if not match or start >= stop:
        raise RefusedError(
            416, f"range: {header:.80}, expected bytes inside 0-{size}", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, stop


def _stream(session: LocalLake, parts: Iterator[bytes], status: int, headers: dict[str, str]) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        try:
            async for part in iterate_in_threadpool(parts):
                yield part
        finally:
            session.close()

    return StreamingResponse(body(), status, headers, media_type="application/octet-stream")


def _describe(array: Array) -> dict[str, Any]:
    return {
        "name": array.name,
        "shape": list(array.shape),
        "dtype": np.lib.format.dtype_to_descr(array.dtype),
        "attrs": dict(array.attrs),
        "bytes": array.nbytes,
    }


def _npy_header(array: Array, rows: int) -> bytes:
    out = BytesIO()
    descr = np.lib.format.dtype_to_descr(array.dtype)
    shape = (rows, *array.shape[1:]) if array.shape else ()
    np.lib.format.write_array_header_2_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def _row_parts(array: Array, head: bytes, start: int, stop: int) -> Iterator[bytes]:
    if head:
        yield head
    step = max(1, BLOCK // max(1, array.row_bytes))
    for at in range(start, stop, step):
        yield array.read_rows(at, min(at + step, stop)).tobytes()
