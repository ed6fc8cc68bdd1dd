"""The application: all routes, error handlers, and what runs as long as it serves."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from clachan.server.api import answers, identity, images, instances, nodes, own, records, software, streams
from clachan.server.api.permissions import API
from clachan.server.services import standings, upkeep
from clachan.server.services.controller import Controller
from clachan.server.services.health import VERSION
from clachan.server.services.refusals import Refusal

log = logging.getLogger(__name__)
ROUTERS = (
    own.router,
    instances.router,
    identity.root,
    identity.router,
    nodes.router,
    software.router,
    images.router,
    streams.router,
    records.router,
)
SIGHTINGS_SECONDS = 15
PRUNE_SECONDS = 3600


def create_app(controller: Controller) -> FastAPI:
    """The ASGI application of a controller whose database is ready."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        controller.hub.bind(asyncio.get_running_loop())
        task = asyncio.create_task(_upkeep(controller))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await run_in_threadpool(upkeep.write_sightings, controller)

    app = FastAPI(
        title="Clachan controller",
        version=VERSION,
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.controller = controller
    for router in ROUTERS:
        app.router.routes.extend(router.routes)
    app.add_exception_handler(Refusal, answers.refused)
    app.add_exception_handler(RequestValidationError, answers.malformed)
    app.add_exception_handler(HTTPException, answers.unknown)
    app.add_exception_handler(Exception, answers.failed)
    return app


async def _upkeep(controller: Controller) -> None:
    """Now and then; a failure is logged and tried again."""
    rounds = 0
    while True:
        try:
            if rounds % (PRUNE_SECONDS // SIGHTINGS_SECONDS) == 0:
                await run_in_threadpool(upkeep.prune, controller)
            await run_in_threadpool(upkeep.write_sightings, controller)
            await run_in_threadpool(standings.watch_vms, controller)
            await streams.end_disallowed(controller)
        except Exception:
            log.exception("upkeep failed")
        rounds += 1
        await asyncio.sleep(SIGHTINGS_SECONDS)
