"""Routes of a node about itself: its slice, its reports, its certificate, questions to it."""

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from clachan.contract.api import Answer, CertificateRequest, Joined, Questions, VmToken, VmTokenDeclaration
from clachan.contract.facts import Batch, Verdicts
from clachan.contract.inventory import Inventory
from clachan.server.api.admission import Caller, Here, authenticate, new_router
from clachan.server.api.answers import Patience, document, knows, unchanged
from clachan.server.services import joining, reports

router = new_router()


@router.get("/nodes/self/inventory", response_model=dict[str, Inventory])
async def own_inventory(request: Request, here: Here, caller: Caller) -> Response:
    """The node's slice: `{"clachan_inventory": ...}`. With If-None-Match and Prefer: wait it waits for a new one."""
    topic, patience = f"node:{caller.id}", Patience(request)
    while True:
        version = here.hub.version(topic)
        found = here.slices.ready(caller.id)
        if found is None:
            found = await run_in_threadpool(here.slices.get, caller.id)
        if not knows(request, found.etag):
            return document(request, found.body, etag=found.etag)
        if not await here.hub.wait(topic, version, patience.left):
            return unchanged(found.etag)
        # woken: perhaps because its certificate was revoked
        await authenticate(request)


@router.post("/nodes/self/reports", response_model=Verdicts)
def report(request: Request, here: Here, caller: Caller, body: Batch) -> Response:
    return document(request, reports.take(here, caller.id, body))


@router.post("/nodes/self/certificate", response_model=Joined)
def renew(request: Request, here: Here, caller: Caller, body: CertificateRequest) -> Response:
    return document(request, joining.renew(here, caller, body.csr))


@router.post("/nodes/self/join-tokens", response_model=VmToken)
def vm_token(request: Request, here: Here, caller: Caller, body: VmTokenDeclaration, dry_run: bool = False) -> Response:
    return document(request, joining.create_vm_token(here, caller, body, dry_run))


@router.get("/nodes/self/questions", response_model=Questions)
async def questions(request: Request, here: Here, caller: Caller) -> Response:
    """Open questions to the node; with Prefer: wait it waits for one, an empty list when there was none."""
    topic, patience = f"questions:{caller.id}", Patience(request)
    while True:
        version = here.hub.version(topic)
        # a connection that is gone must not take a question with it
        if await request.is_disconnected():
            return Response(status_code=499)
        if found := here.questions.fetch(caller.id):
            return document(request, Questions(questions=found))
        # who is doubted says by its next request that it is there
        if not await here.hub.wait(topic, version, patience.left) or here.sightings.doubted(caller.id):
            return document(request, Questions(questions=[]))
        await authenticate(request)


@router.post("/nodes/self/answers/{identifier}", status_code=204)
async def answer(here: Here, caller: Caller, identifier: str, body: Answer) -> Response:
    here.questions.answer(caller.id, identifier, body)
    return Response(status_code=204)
