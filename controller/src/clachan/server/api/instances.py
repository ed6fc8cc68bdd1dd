"""Routes: instances, their revisions and their logs."""

from typing import Annotated

from fastapi import Query, Request, Response
from starlette.concurrency import run_in_threadpool

from clachan.contract.api import Declaration, InstanceView, LogsQuestion, LogsView, Page, RevisionView
from clachan.contract.inventory import ObservedState
from clachan.server.api.admission import Caller, Here, authenticate, new_router
from clachan.server.api.answers import Patience, document
from clachan.server.api.identity import Paged
from clachan.server.services import instances
from clachan.server.services.questions import new_id
from clachan.server.services.refusals import Unavailable

router = new_router()
MADE = "Clachan-Revision-Made"


@router.get("/instances", response_model=Page[InstanceView])
def list_instances(
    *,
    request: Request,
    here: Here,
    caller: Caller,
    wanted: Paged,
    tenant: str | None = None,
    state: ObservedState | None = None,
    software: str | None = None,
) -> Response:
    filters = {"tenant": tenant, "state": state, "software": software}
    return document(request, instances.search(here, caller, wanted, filters))


@router.get("/instances/{path}", response_model=InstanceView)
async def get_instance(request: Request, here: Here, caller: Caller, path: str, reveal: bool = False) -> Response:
    """Wanted and observed state. With If-None-Match and Prefer: wait it waits until something of it changed."""
    topic, patience = f"instance:{path}", Patience(request)
    while True:
        version = here.hub.version(topic)
        response = document(request, await run_in_threadpool(instances.get, here, caller, path, reveal))
        if response.status_code != 304 or not await here.hub.wait(topic, version, patience.left):
            return response
        caller = await authenticate(request)


@router.put("/instances/{path}", response_model=InstanceView)
def declare(
    *, request: Request, here: Here, caller: Caller, path: str, body: Declaration, dry_run: bool = False
) -> Response:
    """Declare a root instance. The header Clachan-Revision-Made says whether it made a revision."""
    requested = instances.put(here, caller, path, body, dry_run)
    response = document(request, requested.view, 201 if requested.created else 200)
    response.headers[MADE] = str(requested.made).lower()
    return response


@router.delete("/instances/{path}", response_model=InstanceView)
def want_absent(request: Request, here: Here, caller: Caller, path: str) -> Response:
    return document(request, instances.delete(here, caller, path))


@router.get("/instances/{path}/revisions", response_model=Page[RevisionView])
def list_revisions(request: Request, here: Here, caller: Caller, path: str, wanted: Paged) -> Response:
    return document(request, instances.revisions(here, caller, path, wanted))


@router.get("/instances/{path}/logs", response_model=LogsView)
async def logs(
    *,
    request: Request,
    here: Here,
    caller: Caller,
    path: str,
    service: str | None = None,
    lines: Annotated[int, Query(ge=1, le=10000)] = 100,
) -> Response:
    """The last lines of the services' logs, asked of the node; 504 when it does not answer."""
    identifier, node_id = await run_in_threadpool(instances.located, here, caller, path)
    question = LogsQuestion(id=new_id(), kind="logs", instance=identifier, service=service, lines=lines)
    answer = await here.questions.ask(node_id, question, here.settings.answer_seconds)
    if answer.error is not None:
        raise Unavailable(f"logs of {path}: {answer.error}")
    return document(request, LogsView(logs=answer.logs))
