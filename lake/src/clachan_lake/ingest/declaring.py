"""The routes that make, describe, truncate and delete streams.

`PUT /streams/meta?name=` with a JSON object: `attrs` are set, others stay, `remove_attrs` names those to remove; one
that is not there is made, by `policy` ("raw"). 201 made, 200 there; the header `Clachan-Changed` says whether anything
is another now; with `dry_run=1` nothing is changed; with the header `If-None-Match: *` one that is there is refused.
`POST /streams/truncate?name=&before=` forgets the whole chunks in
front of a position; positions stay as they are; `dry_run=1` as above.
"""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from clachan_lake import settings
from clachan_lake.ingest.changing import change, declared, document
from clachan_lake.ingest.reading import get
from clachan_lake.ingest.registry import check_target
from clachan_lake.local import LocalLake
from clachan_lake.refusal import RefusedError


@dataclass(frozen=True)
class Wanted:
    attrs: dict[str, Any] = field(default_factory=dict)
    remove_attrs: list[str] = field(default_factory=list)
    policy: str | None = None


def routes(lake: LocalLake) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own."""
    router = APIRouter()

    @router.put("/streams/meta")
    async def declare(name: str, request: Request, dry_run: bool = False) -> Response:
        given = await document(request)
        new = request.headers.get("if-none-match") == "*"
        described, made, changed = await change(
            lake, lambda session: _declare(session, name, given, new=new), dry_run=dry_run
        )
        return declared(described, made=made, changed=changed)

    @router.delete("/streams/meta", status_code=204)
    async def delete(name: str) -> Response:
        await change(lake, lambda session: _delete(session, name))
        return Response(status_code=204)

    @router.post("/streams/truncate")
    async def truncate(name: str, before: Annotated[int, Query(ge=0, lt=1 << 62)], dry_run: bool = False) -> Response:
        forgotten = 0
        while True:
            done, described = await change(
                lake, lambda session: _truncate(session, name, before, whole=dry_run), dry_run=dry_run
            )
            forgotten += done
            if dry_run or not done or described["start"] >= before:
                return JSONResponse({"start": described["start"], "size": described["size"], "forgotten": forgotten})

    return router


def _declare(lake: LocalLake, name: str, given: dict[str, Any], *, new: bool) -> tuple[dict[str, Any], bool, bool]:
    wanted = settings.read(given, Wanted, {"attrs": _attrs, "remove_attrs": _names}, f"stream {name!r:.80}")
    made = name not in lake.streams
    if made:
        check_target("stream", name)
        lake.streams.create(name, wanted.policy or "raw", wanted.attrs)
    elif new:
        raise RefusedError(412, f"stream {name!r}: exists, expected a new name", field="name")
    stream = lake.streams[name]
    if wanted.policy is not None and wanted.policy != stream.record.policy:
        raise RefusedError(
            409,
            f"stream {name!r}, policy: {wanted.policy}, expected {stream.record.policy}, which made it",
            field="policy",
        )
    before = dict(stream.attrs)
    after = {key: value for key, value in {**before, **wanted.attrs}.items() if key not in wanted.remove_attrs}
    changed = json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True)
    if changed:
        stream.attrs.clear()
        stream.attrs.update(after)
    return stream.describe(), made, made or changed


def _delete(lake: LocalLake, name: str) -> None:
    get(lake.streams, name)
    del lake.streams[name]


def _truncate(lake: LocalLake, name: str, before: int, *, whole: bool) -> tuple[int, dict[str, Any]]:
    """The first of many chunks, or with `whole` all: what is not committed has no limit."""
    stream = get(lake.streams, name)
    if before > stream.size:
        raise RefusedError(
            400, f"stream {name!r}, before: {before}, expected at most its size {stream.size}", field="before"
        )
    forgotten = stream.truncate(before)
    while whole and (more := stream.truncate(before)):
        forgotten += more
    return forgotten, stream.describe()


def _attrs(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.80}, expected an object")
    return value


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{value!r:.80}, expected a list of names")
    return value
