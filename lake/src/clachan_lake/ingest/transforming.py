"""The routes of transformations.

`PUT /transformations/meta?name=` with a JSON object (`transform.document` describes it) declares a transformation: what
is not given has its default, but `paused` stays as it is. 201 made, 200 there; the header `Clachan-Changed` says
whether it is another one now; with `dry_run=1` nothing is changed. `DELETE` removes it; what it has made stays.

`POST /transformations/action?name=&action=` with pause, resume, retry (what failed and what was given up, at once) or
backfill (all outputs anew from the start), the last two perhaps of one `source`; answers of how many sources that is.
`GET /transformations/positions?name=` lists how far it is with each source.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from clachan_lake.ingest.changing import change, declared, document, naming
from clachan_lake.ingest.reading import Limit, page
from clachan_lake.local import LocalLake

Name = Annotated[str, Query(min_length=1)]


def routes(lake: LocalLake, due: Callable[[], None]) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own. `due` is called when there may be work."""
    router = APIRouter()
    _add_readers(router, lake)

    @router.put("/transformations/meta")
    async def declare(name: Name, request: Request, dry_run: bool = False) -> Response:
        wanted = await document(request)

        def put(session: LocalLake) -> tuple[dict[str, Any], bool, bool]:
            found = session.transformations
            made = name not in found
            changed = found.declare(name, **wanted)
            return found.describe(name), made, changed

        described, made, changed = await change(lake, put, dry_run=dry_run)
        due()
        return declared(described, made=made, changed=changed)

    @router.delete("/transformations/meta", status_code=204)
    async def delete(name: Name) -> Response:
        await change(lake, lambda session: session.transformations.delete(name))
        return Response(status_code=204)

    @router.post("/transformations/action")
    async def action(
        name: Name, action: Literal["pause", "resume", "retry", "backfill"], source: str | None = None
    ) -> Response:
        def act(session: LocalLake) -> int:
            found = session.transformations
            if action in {"pause", "resume"}:
                return int(found.pause(name) if action == "pause" else found.resume(name))
            return found.retry(name, source) if action == "retry" else found.backfill(name, source)

        count = await change(lake, act)
        due()
        return JSONResponse({"sources": count}, headers={"Clachan-Changed": "true" if count else "false"})

    return router


def _add_readers(router: APIRouter, lake: LocalLake) -> None:
    @router.get("/transformations")
    def transformations(limit: Limit = 100, cursor: str = "", prefix: str = "") -> dict[str, Any]:
        with lake.session() as session:
            names, following = page(session.root()["transformations"], limit, cursor, prefix)
            return {"items": [session.transformations.describe(name) for name in names], "cursor": following}

    @router.get("/transformations/meta")
    def transformation(name: Name) -> dict[str, Any]:
        with lake.session() as session, naming():
            return session.transformations.describe(name)

    @router.get("/transformations/positions")
    def positions(name: Name, limit: Limit = 100, cursor: str = "") -> dict[str, Any]:
        with lake.session() as session, naming():
            items = session.transformations.positions(name, cursor, limit + 1)
            more = f"{items[limit - 1]['kind']}/{items[limit - 1]['source']}" if len(items) > limit else None
            return {"items": items[:limit], "cursor": more}
