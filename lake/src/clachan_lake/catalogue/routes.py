"""The catalogue over HTTP: lists, all about one data set, and everything as linked data."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from clachan_lake.catalogue import dcat, entry
from clachan_lake.catalogue.search import CursorError, search
from clachan_lake.errors import MissingError
from clachan_lake.ingest.streaming import Streamed
from clachan_lake.local import LocalLake
from clachan_lake.refusal import RefusedError

Limit = Annotated[int, Query(ge=1, le=500)]
Text = Annotated[str, Query(max_length=1200)]


def routes(lake: LocalLake) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own."""
    router = APIRouter()

    @router.get("/catalogue")
    def catalogue(
        query: Text = "", kind: Text = "", tag: Text = "", limit: Limit = 50, cursor: Text = "", *, hidden: bool = False
    ) -> dict[str, Any]:
        with lake.session() as session:
            try:
                items, following = search(session, query, kind, tag, limit=limit, cursor=cursor, hidden=hidden)
            except CursorError as error:
                raise RefusedError(400, str(error), field=str(error).partition(":")[0]) from None
            return {"items": items, "cursor": following}

    @router.get("/catalogue/meta")
    def meta(kind: str, name: str) -> dict[str, Any]:
        with lake.session() as session:
            return described(session, kind, name)

    @router.get("/catalogue.jsonld")
    def linked(request: Request) -> Response:
        session = lake.session()
        parts = (part.encode() for part in dcat.export(session, str(request.base_url)))
        answer = Streamed(parts, session.close, 200, {})
        answer.headers["content-type"] = "application/ld+json"
        return answer

    return router


def described(lake: LocalLake, kind: str, name: str) -> dict[str, Any]:
    """As `entry.describe`; raises RefusedError (404)."""
    try:
        return entry.describe(lake, kind, name)
    except MissingError as error:
        raise RefusedError(404, str(error), field="name" if kind in entry.KINDS else "kind") from None
