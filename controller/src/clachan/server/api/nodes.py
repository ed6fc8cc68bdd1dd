"""Routes: nodes and supplies."""

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from clachan.contract.api import DoctorQuestion, Findings, NodeChange, NodeView, Page, SupplyDeclaration, SupplyView
from clachan.server.api.admission import Caller, Here, new_router
from clachan.server.api.answers import document, made
from clachan.server.api.identity import Paged
from clachan.server.services import joining, nodes, supplies
from clachan.server.services.questions import new_id
from clachan.server.services.refusals import Timeout, Unavailable

router = new_router()
DOCTOR_SECONDS = 60.0
"""For the look itself: its agent runs Ansible, beside all that it does."""


@router.get("/nodes", response_model=Page[NodeView])
def list_nodes(request: Request, here: Here, wanted: Paged) -> Response:
    return document(request, nodes.search(here, wanted))


@router.get("/nodes/{name}", response_model=NodeView)
def get_node(request: Request, here: Here, name: str) -> Response:
    return document(request, nodes.get(here, name))


@router.put("/nodes/{name}", response_model=NodeView)
def change_node(request: Request, here: Here, name: str, body: NodeChange) -> Response:
    return document(request, nodes.put(here, name, body))


@router.delete("/nodes/{name}", status_code=204)
def revoke_node(here: Here, name: str) -> Response:
    joining.revoke(here, name)
    return Response(status_code=204)


@router.get("/nodes/{name}/doctor", response_model=Findings)
async def examine_node(request: Request, here: Here, caller: Caller, name: str) -> Response:
    """What is on the node against what should be, asked of its agent; 504 when it does not answer."""
    node_id = await run_in_threadpool(nodes.located, here, caller, name)
    question = DoctorQuestion(id=new_id(), kind="doctor")
    try:
        answer = await here.questions.ask(node_id, question, here.settings.answer_seconds, DOCTOR_SECONDS)
    except Timeout as late:
        raise Timeout(f"node {name}: {late.message.removeprefix('node: ')}") from late
    if not answer.findings:
        raise Unavailable(f"node {name}: {answer.error or 'no findings'}, expected some")
    return document(request, Findings(findings=answer.findings))


@router.get("/supplies", response_model=Page[SupplyView])
def list_supplies(request: Request, here: Here, wanted: Paged, node: str | None = None) -> Response:
    return document(request, supplies.search(here, wanted, node))


@router.get("/supplies/{node}/{fqcn}", response_model=SupplyView)
def get_supply(request: Request, here: Here, node: str, fqcn: str) -> Response:
    return document(request, supplies.get(here, node, fqcn))


@router.put("/supplies/{node}/{fqcn}", response_model=SupplyView)
def declare_supply(request: Request, here: Here, node: str, fqcn: str, body: SupplyDeclaration) -> Response:
    return made(request, *supplies.put(here, node, fqcn, body))
