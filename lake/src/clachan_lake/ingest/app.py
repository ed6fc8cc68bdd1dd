"""The routes of ingestion, and the application.

`POST /ingest/<policy>?reference=<tag>`, and the same below `/portal_ingestion_policies/<policy>/ingest` as fluentd's
Wendelin output sends it. Options, each as a query parameter: `chunk_id` (or the header `Clachan-Chunk-Id`): a repeat
with the same id and bytes changes nothing and is answered alike; `offset`: where the chunk must come to stand;
`final=1`: the stream's last chunk, whose body may be empty. 204 means committed and synced; the header
`Clachan-Stream-Size` then is the stream's size.
"""

import asyncio
import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from clachan_lake import __version__
from clachan_lake.errors import ChunkError, CorruptError, LakeError
from clachan_lake.ingest import reading, refusal, writing
from clachan_lake.ingest.committer import Committer, Job, Stored
from clachan_lake.ingest.config import Config
from clachan_lake.ingest.refusal import RefusedError
from clachan_lake.ingest.spool import Spool, check_body, receiving
from clachan_lake.local import LocalLake

CHALLENGE = {"WWW-Authenticate": 'Basic realm="clachan-lake", Bearer'}


def application(
    config: Config, token: str, lake: LocalLake, committer: Committer, faults: Callable[[], list[str]]
) -> FastAPI:
    """The service over an open lake; `faults` says what ails the rest of it, for /healthz."""
    app = FastAPI(title="Clachan lake", version=__version__, docs_url=None, redoc_url=None)
    refusal.install(app)
    guard = [Depends(authentication(token))]
    app.include_router(reading.routes(lake), dependencies=guard)
    app.include_router(writing.routes(config, lake), dependencies=guard)

    @app.get("/healthz")
    def healthz() -> Response:
        found = faults()
        status = "failing" if found else "ok"
        return JSONResponse({"status": status, "version": __version__, "checks": found}, 503 if found else 200)

    @app.post("/ingest/{policy}", status_code=204, dependencies=guard)
    @app.post("/portal_ingestion_policies/{policy}/ingest", status_code=204, dependencies=guard)
    async def ingest(
        policy: str,
        request: Request,
        *,
        reference: Annotated[str, Query(min_length=1)],
        chunk_id: str | None = None,
        clachan_chunk_id: Annotated[str | None, Header()] = None,
        offset: Annotated[int | None, Query(ge=0)] = None,
        final: bool = False,
    ) -> Response:
        if policy not in config.policies:
            raise RefusedError(404, f"policy: {policy!r:.80}, expected one of {', '.join(sorted(config.policies))}")
        check_body(config, request)
        with receiving(), Spool(config.incoming, config.maximum_body_mib << 20) as spool:
            chunk = await spool.receive(request.stream())
            if not chunk.length and not final:
                raise RefusedError(400, "body: empty, expected bytes, or final=1")
            job = Job(policy, reference, chunk, chunk_id or clachan_chunk_id, offset, final)
            return _stored(await asyncio.shield(asyncio.wrap_future(committer.submit(job))))

    @app.exception_handler(LakeError)
    async def contradicts(_request: Request, error: LakeError) -> Response:
        conflict, corrupt = isinstance(error, ChunkError), isinstance(error, CorruptError)
        headers = {"Clachan-Stream-Size": str(error.size)} if conflict and error.size is not None else {}  # type: ignore[attr-defined]
        status = 409 if conflict else 500 if corrupt else 400
        body = {"code": refusal.CODES[status], "message": str(error), "field": None, "hint": None}
        return JSONResponse({"error": body}, status, headers)

    return app


def authentication(token: str) -> Callable[[Request], Awaitable[None]]:
    """Bearer, or HTTP basic with the token as the password (fluentd), compared in constant time."""
    expected = token.encode()

    async def check(request: Request) -> None:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        given = value.strip()
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        elif scheme.lower() != "bearer":
            given = ""
        if not hmac.compare_digest(given.encode(), expected):
            raise RefusedError(
                401,
                "credentials: none or wrong, expected the lake's token",
                hint="Authorization: Bearer <token>, or HTTP basic with the token as the password",
                headers=CHALLENGE,
            )

    return check


def _stored(stored: Stored) -> Response:
    headers = {"Clachan-Stream-Size": str(stored.size), "Clachan-Repeat": "false" if stored.new else "true"}
    return Response(status_code=204, headers=headers)
