"""The routes for readers: lists, bytes of streams with ranges, rows of arrays. Names stand in the query, as they are.

Bytes are sent block by block from one snapshot; nothing is ever whole in memory. `ingest.streaming` sends them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice, takewhile
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response

from clachan_lake.arrays import pages
from clachan_lake.errors import MissingError
from clachan_lake.exchange import blocks, dtypes, npy
from clachan_lake.format import BLOCK
from clachan_lake.ingest.streaming import Streamed
from clachan_lake.interface import Array
from clachan_lake.local import LocalLake
from clachan_lake.policies.policy import SYSTEM
from clachan_lake.refusal import RefusedError

T = TypeVar("T")
ROWS_BYTES = 4 << 20
"""Of an array, so much is read at once while the part before it is sent."""
BEHIND_SYSTEM = chr(ord(SYSTEM) + 1)
"""No name of the lake's own comes behind it."""
Limit = Annotated[int, Query(ge=1, le=500)]


def routes(lake: LocalLake) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own."""
    router = APIRouter()
    _add_streams(router, lake)
    _add_arrays(router, lake)
    return router


def _add_streams(router: APIRouter, lake: LocalLake) -> None:
    @router.get("/streams")
    def streams(limit: Limit = 100, cursor: str = "", prefix: str = "", *, hidden: bool = False) -> dict[str, Any]:
        with lake.session() as session:
            names, following = page(session.root()["streams"], limit, cursor, prefix, hidden=hidden)
            return {"items": [session.streams[name].describe() for name in names], "cursor": following}

    @router.get("/streams/meta")
    def stream(name: str) -> dict[str, Any]:
        with lake.session() as session:
            described: dict[str, Any] = get(session.streams, name).describe()
            return described

    @router.get("/streams/chunks")
    def chunks(
        name: str, limit: Limit = 100, offset: Annotated[int, Query(ge=0)] = 0, cursor: str = ""
    ) -> dict[str, Any]:
        """From the one that has the byte `offset`, or behind the cursor: the position where the last page ended."""
        with lake.session() as session:
            found = get(session.streams, name)
            first = _position(cursor) if cursor else offset
            page = list(islice(found.chunks(first), limit)) if first < found.size else []
            stop = page[-1][0] + page[-1][1] if page else found.size
            items = [{"position": at, "length": length, "time": when} for at, length, when in page]
            return {"items": items, "cursor": str(stop) if stop < found.size else None}

    @router.get("/streams/sha256")
    def digest(name: str, size: Annotated[int | None, Query(ge=0)] = None) -> dict[str, Any]:
        with lake.session() as session:
            found = get(session.streams, name)
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
            found = get(session.streams, name)
            start, stop = _range(request.headers.get("range"), found.size, found.start)
            headers = {"Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
            headers["Clachan-Stream-Start"] = str(found.start)
            if partial := "range" in request.headers:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{found.size}"
            parts = (found.read(at, min(BLOCK, stop - at)) for at in range(start, stop, BLOCK))
            return Streamed(parts, session.close, 206 if partial else 200, headers)
        except BaseException:
            session.close()
            raise


def _add_arrays(router: APIRouter, lake: LocalLake) -> None:
    @router.get("/arrays")
    def arrays(limit: Limit = 100, cursor: str = "", prefix: str = "", *, hidden: bool = False) -> dict[str, Any]:
        with lake.session() as session:
            names, following = page(session.root()["arrays"], limit, cursor, prefix, hidden=hidden)
            return {"items": [describe(session.arrays[name]) for name in names], "cursor": following}

    @router.get("/arrays/meta")
    def array(name: str, at: str | None = None) -> dict[str, Any]:
        with session_at(lake, at) as session:
            return {**describe(get(session.arrays, name)), "snapshot": session.tid.hex()}

    @router.get("/arrays/history")
    def history(name: str, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> dict[str, Any]:
        with lake.session() as session:
            found = get(session.arrays, name).history(limit)
            return {
                "items": [
                    {"id": one.id, "time": one.time.isoformat(), "shape": one.shape, "note": one.note} for one in found
                ]
            }

    @router.get("/arrays/data")
    def rows(
        name: str,
        start: Annotated[int, Query(ge=0)] = 0,
        stop: Annotated[int | None, Query(ge=0)] = None,
        npy: bool = False,
        at: str | None = None,
    ) -> Response:
        """The rows as bytes in the array's order; with `npy=1` with numpy's header before them."""
        session = session_at(lake, at)
        try:
            found = get(session.arrays, name)
            end = found.rows if stop is None else stop
            if not start <= end <= found.rows:
                raise RefusedError(400, f"rows: {start} to {end}, expected inside 0 to {found.rows}", field="stop")
            head = _npy_header(found, end - start) if npy else b""
            size = len(head) + (end - start) * found.row_bytes
            parts = _row_parts(found, head, start, end)
            if size > ROWS_BYTES:
                return Streamed(parts, session.close, 200, {"Content-Length": str(size)})
            with session:
                return Response(b"".join(parts), media_type="application/octet-stream")
        except BaseException:
            session.close()
            raise


def session_at(lake: LocalLake, at: str | None) -> LocalLake:
    """A session of now, or of the moment `at`: a commit's id, or a time."""
    session = lake.session()
    if at is None:
        return session
    with session:
        try:
            return session.at(at)
        except ValueError as error:
            raise RefusedError(400, str(error), field="at") from None


def get(mapping: Mapping[str, T], name: str) -> Any:
    """Raises RefusedError (404)."""
    try:
        return mapping[name]
    except MissingError as error:
        raise RefusedError(404, str(error), field="name") from None


def page(
    tree: Any, limit: int, cursor: str = "", prefix: str = "", *, hidden: bool = True
) -> tuple[list[str], str | None]:
    """The next `limit` names of a tree behind the cursor, and the cursor for those that follow; without `hidden` none
    of the lake's own."""
    names: Iterable[str] = tree.keys(min=max(cursor, prefix))
    if not hidden:
        after = tree.keys(min=max(cursor, prefix, BEHIND_SYSTEM))
        names = chain(takewhile(lambda name: name < SYSTEM, names), after)
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


def _position(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise RefusedError(400, f"cursor: {cursor!r:.80}, expected one of a list's answer", field="cursor")
    return int(cursor)


def _range(header: str | None, size: int, low: int = 0) -> tuple[int, int]:
    """Start and stop of a single range of bytes (RFC 9110, 14.1.2) of which those before `low` are not kept; all that
    are without a header. Raises RefusedError(416)."""
    if header is None:
        return low, size
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    first, last = match.groups() if match else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(low, size - int(last or 0)), size
    if not match or start >= stop or start < low:
        raise RefusedError(
            416,
            f"range: {header:.80}, expected bytes inside {low}-{size}",
            headers={"Content-Range": f"bytes */{size}", "Clachan-Stream-Start": str(low)},
        )
    return start, stop


def describe(array: Array) -> dict[str, Any]:
    """What lists and readers are told of an array."""
    return {
        "name": array.name,
        "shape": list(array.shape),
        "dtype": dtypes.to_json(array.dtype),
        "order": array.order,
        "attrs": dict(array.attrs),
        "bytes": array.nbytes,
    }


def _npy_header(array: Array, rows: int) -> bytes:
    shape = list(array.shape)
    if shape:
        shape[array.axis] = rows
    return npy.header(array.dtype, tuple(shape), array.order)


def _row_parts(array: Array, head: bytes, start: int, stop: int) -> Iterator[bytes | memoryview]:
    if head:
        yield head
    for _first, rows in blocks.rows_of(array, ROWS_BYTES, start=start, stop=stop):
        # what is sent are the lake's own pages, which the view keeps as they are. They are loaded here in a thread:
        # those that are not in memory yet must not hold up the event loop
        part = blocks.in_order(rows, array.order)
        pages.load(part)
        yield part
