"""The routes of policies and tokens. A change holds for the next request.

`PUT /policies/meta?name=` with a JSON object (`policies.policy` describes it) declares a policy: what is not given has
its default. 201 made, 200 there; the header `Clachan-Changed` says whether it is another one now; with `dry_run=1` the
answer is the same and nothing is changed. `DELETE` removes it; what it has made stays. `GET /policies/place?name=&
reference=` says what the data of a tag become.

`POST /tokens` with `scopes` and perhaps `seconds`, `note`, `same_content_seconds` makes a token: 201 with its id and
the token, which is never shown again. `DELETE /tokens/meta?id=` revokes it.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from clachan_lake.access.principal import OWNER
from clachan_lake.access.token import LocalTokens
from clachan_lake.ingest.changing import change, declared, document, naming
from clachan_lake.ingest.reading import Limit, page
from clachan_lake.ingest.registry import Registry
from clachan_lake.local import LocalLake
from clachan_lake.policies.declaring import LocalPolicies
from clachan_lake.refusal import RefusedError

Name = Annotated[str, Query(min_length=1)]


def routes(lake: LocalLake, registry: Registry) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own."""
    router = APIRouter()
    _add_policies(router, lake, registry)
    _add_tokens(router, lake, registry)
    return router


def _add_policies(router: APIRouter, lake: LocalLake, registry: Registry) -> None:
    @router.get("/policies")
    def policies(limit: Limit = 100, cursor: str = "", prefix: str = "") -> dict[str, Any]:
        with lake.session() as session:
            found = LocalPolicies(session)
            names, following = page(session.root()["policies"], limit, cursor, prefix)
            return {"items": [found.describe(name) for name in names], "cursor": following}

    @router.get("/policies/meta")
    def policy(name: Name) -> dict[str, Any]:
        with lake.session() as session, naming():
            return LocalPolicies(session).describe(name)

    @router.get("/policies/place")
    def place(name: Name, reference: Annotated[str, Query(min_length=1)]) -> dict[str, Any]:
        target = registry.resolve(name, reference, OWNER)
        return {"kind": target.kind, "name": target.name}

    @router.put("/policies/meta")
    async def declare(name: Name, request: Request, dry_run: bool = False) -> Response:
        wanted = await document(request)

        def put(session: LocalLake) -> tuple[dict[str, Any], bool, bool]:
            found = LocalPolicies(session)
            made = name not in found
            changed = found.declare(name, **wanted)
            return found.describe(name), made, changed

        described, made, changed = await change(lake, put, dry_run=dry_run)
        if changed and not dry_run:
            await run_in_threadpool(registry.refresh)
        return declared(described, made=made, changed=changed)

    @router.delete("/policies/meta", status_code=204)
    async def delete(name: Name) -> Response:
        await change(lake, lambda session: LocalPolicies(session).delete(name))
        await run_in_threadpool(registry.refresh)
        return Response(status_code=204)


def _add_tokens(router: APIRouter, lake: LocalLake, registry: Registry) -> None:
    @router.get("/tokens")
    def tokens(limit: Limit = 100, cursor: str = "") -> dict[str, Any]:
        with lake.session() as session:
            found = LocalTokens(session)
            keys, following = page(session.root()["tokens"], limit, cursor)
            return {"items": [{"id": key, **found[key]} for key in keys], "cursor": following}

    @router.post("/tokens", status_code=201)
    async def create(request: Request) -> Response:
        asked = await document(request)
        key, token = await change(lake, lambda session: LocalTokens(session).create(**asked))
        await run_in_threadpool(registry.refresh)
        return JSONResponse({"id": key, "token": token}, 201, {"Cache-Control": "no-store"})

    @router.delete("/tokens/meta", status_code=204)
    async def revoke(id: Annotated[str, Query(min_length=1)]) -> Response:
        try:
            await change(lake, lambda session: LocalTokens(session).revoke(id))
        except RefusedError as error:
            error.field = "id" if error.status == 404 else error.field
            raise
        await run_in_threadpool(registry.refresh)
        return Response(status_code=204)
