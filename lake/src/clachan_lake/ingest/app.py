"""The application: all routes, and in front of them the guard."""

from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from clachan_lake import __version__, refusal
from clachan_lake.access.guarding import Guard
from clachan_lake.errors import ChunkError, CorruptError, LakeError, TruncatedError
from clachan_lake.ingest import burying, declaring, handing, reading, receiving, ruling, transforming, writing
from clachan_lake.ingest.committer import Committer
from clachan_lake.ingest.config import Config
from clachan_lake.ingest.receiving import Ingestion
from clachan_lake.ingest.registry import Registry
from clachan_lake.ingest.usage import RETRY_SECONDS, QuotaError
from clachan_lake.jobs import routes as jobs
from clachan_lake.jobs.board import Board
from clachan_lake.local import LocalLake
from clachan_lake.pages import routes as pages
from clachan_lake.refusal import RefusedError


def application(
    config: Config,
    registry: Registry,
    lake: LocalLake,
    committer: Committer,
    *,
    faults: Callable[[], list[str]],
    due: Callable[[], None],
) -> FastAPI:
    """The service over an open lake; `faults` says what ails the rest of it, for /healthz; `due` is called when there
    is work for a transformation."""
    app = FastAPI(title="Clachan lake", version=__version__, docs_url=None, redoc_url=None)
    refusal.install(app)
    app.add_middleware(Guard, identify=registry.principal)
    app.state.handing = handing.Handing()
    app.state.jobs = Board(lake, config.job_lease_seconds, config.job_keep_seconds)
    # first, as they are many
    ingestion = app.state.ingestion = Ingestion(config, registry, committer)
    app.router.routes[:0] = receiving.routes(ingestion)
    for router in (
        reading.routes(lake),
        handing.routes(lake, app.state.handing),
        writing.routes(config, lake),
        declaring.routes(lake),
        ruling.routes(lake, registry),
        burying.routes(lake, registry, due),
        transforming.routes(lake, due),
        jobs.routes(config, lake, app.state.jobs, Guard(app, registry.principal).admit),
    ):
        app.include_router(router)

    @app.get("/healthz")
    def healthz() -> Response:
        found = faults()
        status = "failing" if found else "ok"
        return JSONResponse({"status": status, "version": __version__, "checks": found}, 503 if found else 200)

    @app.exception_handler(LakeError)
    async def failed(_request: Request, error: LakeError) -> Response:
        status, headers = _status(error)
        return refusal.answer(RefusedError(status, str(error), headers=headers))

    pages.install(app, lake, identify=registry.principal, ancestors=config.frame_ancestors)
    return app


def _status(error: LakeError) -> tuple[int, dict[str, str]]:
    if isinstance(error, ChunkError):
        return 409, {} if error.size is None else {"Clachan-Stream-Size": str(error.size)}
    if isinstance(error, QuotaError):
        return 507, {"Retry-After": str(RETRY_SECONDS)}
    if isinstance(error, TruncatedError):
        return 416, {"Clachan-Stream-Start": str(error.start)}
    return 500 if isinstance(error, CorruptError) else 400, {}
