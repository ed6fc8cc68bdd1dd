"""The routes for writers of arrays. Each request is one transaction; 2xx means committed and synced.

`PUT /arrays/meta?name=` with a JSON object declares an array: 201 when it was made, 200 when it is there as declared.
Its rows are data and not compared: what the growing axis is declared with counts only when the array is made. `attrs`
are set, others stay; `remove_attrs` names those to remove. With `If-None-Match: *` an array that is there is refused;
with `dry_run=1` the answer is the same, and nothing is changed.

`DELETE /arrays/meta?name=` removes it. `POST /arrays/data?name=&rows=` appends rows: their bytes in the array's order
and dtype. With `after=` only behind so many rows. 204; the header `Clachan-Array-Rows` then is the array's length.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool

from clachan_lake.arrays.array import LocalArray
from clachan_lake.exchange import dtypes
from clachan_lake.ingest.changing import body, change, change_and_look
from clachan_lake.ingest.config import Config
from clachan_lake.ingest.reading import describe, get
from clachan_lake.ingest.spool import Spool, check_body, each, receiving
from clachan_lake.interface import AnyArray, Array
from clachan_lake.local import LocalLake
from clachan_lake.refusal import RefusedError
from clachan_lake.streams.extents import Extents

DOCUMENT_BYTES = 1 << 20
R = TypeVar("R")
T = TypeVar("T")


class Declaration(BaseModel):
    """What is not given is not compared, and has its default when the array is made."""

    model_config = ConfigDict(extra="forbid", strict=True)

    shape: list[int] | None = None
    dtype: Any = None
    order: Literal["C", "F"] | None = None
    attrs: dict[str, Any] = {}
    remove_attrs: list[str] = []
    chunk_bytes: int | None = None


def routes(config: Config, lake: LocalLake) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own."""
    router = APIRouter()

    @router.put("/arrays/meta")
    async def declare(name: str, request: Request, dry_run: bool = False) -> Response:
        check_body(config, request)
        wanted = _parse(await body(request))
        new = request.headers.get("if-none-match") == "*"

        def put(session: LocalLake) -> tuple[bool, dict[str, Any]]:
            return _declare(session, name, wanted, new), describe(session.arrays[name])

        made, described = await change(lake, put, dry_run=dry_run)
        return JSONResponse(described, 201 if made else 200)

    @router.delete("/arrays/meta", status_code=204)
    async def delete(name: str) -> Response:
        await change(lake, lambda session: _delete(session, name))
        return Response(status_code=204)

    @router.post("/arrays/data", status_code=204)
    async def append(
        name: str,
        request: Request,
        rows: Annotated[int, Query(ge=0)],
        after: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        if "content-length" not in request.headers:
            raise RefusedError(411, "content-length: missing, expected the bytes of the rows")
        length = check_body(config, request)
        await run_in_threadpool(_check_rows, lake, name, rows, after, length)
        with receiving(), Spool(Extents(config.incoming), config.maximum_body_mib << 20) as spool:
            source = await spool.take(each(request.stream()))
            _, total = await change_and_look(
                lake,
                lambda session: _append(session, name, rows, after, source),
                lambda session: session.arrays[name].rows,
            )
        return Response(status_code=204, headers={"Clachan-Array-Rows": str(total)})

    return router


def _parse(data: bytes) -> Declaration:
    try:
        return Declaration.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "body"
        raise RefusedError(400, f"array, {key}: {first['msg']}", field=key) from None


def _declare(lake: LocalLake, name: str, wanted: Declaration, new: bool) -> bool:
    """Whether it was made."""
    made = name not in lake.arrays
    if new and not made:
        raise RefusedError(412, f"array {name!r}: exists, expected a new name", field="name")
    if made:
        _create(lake, name, wanted)
        return True
    array = lake.arrays[name]
    _compare(array, wanted)
    for key, value in wanted.attrs.items():
        if not _is(array.attrs, key, value):
            array.attrs[key] = value
    for key in wanted.remove_attrs:
        array.attrs.pop(key, None)
    return False


def _create(lake: LocalLake, name: str, wanted: Declaration) -> None:
    for key in ("shape", "dtype"):
        if getattr(wanted, key) is None:
            raise RefusedError(400, f"array {name!r}, {key}: missing, expected one: there is no such array", field=key)
    dtype = dtypes.from_json(wanted.dtype, f"array {name!r}")
    shape = tuple(wanted.shape or ())
    lake.arrays.create(name, shape, dtype, wanted.attrs, wanted.chunk_bytes, order=wanted.order or "C")


def _compare(array: Array, wanted: Declaration) -> None:
    """Raises RefusedError (409) for an array that is another one than declared."""
    shape = list(array.shape)
    differing: dict[str, tuple[Any, Any]] = {}
    if wanted.dtype is not None and dtypes.from_json(wanted.dtype, f"array {array.name!r}") != array.dtype:
        differing["dtype"] = wanted.dtype, dtypes.to_json(array.dtype)
    if wanted.order is not None and wanted.order != array.order:
        differing["order"] = wanted.order, array.order
    if wanted.shape is not None and _others(wanted.shape, array.axis) != _others(shape, array.axis):
        differing["shape"] = wanted.shape, shape
    for key, (given, present) in differing.items():
        raise RefusedError(
            409,
            f"array {array.name!r}, {key}: {json.dumps(given)}, expected {json.dumps(present)} as it has",
            field=key,
            hint="an array is never rewritten silently: take another name, or delete it first",
        )


def _others(shape: list[int], axis: int) -> tuple[int, list[int]]:
    """How many axes, and the lengths of those that do not grow."""
    return len(shape), shape[:axis] + shape[axis + 1 :]


def _is(attrs: Mapping[str, Any], key: str, value: Any) -> bool:
    # as JSON: 1, 1.0 and true are equal in Python
    return key in attrs and json.dumps(attrs[key], sort_keys=True) == json.dumps(value, sort_keys=True)


def _delete(lake: LocalLake, name: str) -> None:
    get(lake.arrays, name)
    del lake.arrays[name]


def _check_rows(lake: LocalLake, name: str, rows: int, after: int | None, length: int) -> None:
    """What can be refused before the body is received."""
    with lake.session() as session:
        array = get(session.arrays, name)
        _check_length(array, rows, length)
        _check_after(array, after)


def _check_length(array: Array, rows: int, length: int) -> None:
    if not array.shape:
        raise RefusedError(409, f"array {array.name!r}: without axes, expected one that has rows")
    if length != rows * array.row_bytes:
        raise RefusedError(
            400,
            f"body: {length} bytes, expected {rows * array.row_bytes}: {rows} rows of {array.row_bytes} bytes",
            field="rows",
        )


def _check_after(array: Array, after: int | None) -> None:
    if after is not None and after != array.rows:
        raise RefusedError(
            409,
            f"array {array.name!r}, after: {after}, expected its rows {array.rows}",
            field="after",
            headers={"Clachan-Array-Rows": str(array.rows)},
        )


def _append(lake: LocalLake, name: str, rows: int, after: int | None, source: bytes | Path) -> None:
    array: LocalArray = get(lake.arrays, name)
    _check_length(array, rows, source.stat().st_size if isinstance(source, Path) else len(source))
    _check_after(array, after)
    if rows:
        # appends at the same time are merged: with a place for its rows, this one must be alone
        array.append(_shaped(array, rows, source), alone=after is not None)


def _shaped(array: Array, rows: int, source: bytes | Path) -> AnyArray:
    """The body's rows; a file is mapped, not read."""
    shape = list(array.shape)
    shape[array.axis] = rows
    raw: AnyArray
    raw = np.memmap(source, array.dtype, "r") if isinstance(source, Path) else np.frombuffer(source, array.dtype)
    return raw.reshape(shape, order="F" if array.order == "F" else "C")
