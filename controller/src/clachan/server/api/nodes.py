"""Routes: nodes and supplies."""

from fastapi import Request, Response

from clachan.contract.api import NodeChange, NodeView, Page, SupplyDeclaration, SupplyView
from clachan.server.api.admission import Here, new_router
from clachan.server.api.answers import document, made
from clachan.server.api.identity import Paged
from clachan.server.services import joining, nodes, supplies

router = new_router()


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


@router.get("/supplies", response_model=Page[SupplyView])
def list_supplies(request: Request, here: Here, wanted: Paged, node: str | None = None) -> Response:
    return document(request, supplies.search(here, wanted, node))


@router.get("/supplies/{node}/{fqcn}", response_model=SupplyView)
def get_supply(request: Request, here: Here, node: str, fqcn: str) -> Response:
    return document(request, supplies.get(here, node, fqcn))


@router.put("/supplies/{node}/{fqcn}", response_model=SupplyView)
def declare_supply(request: Request, here: Here, node: str, fqcn: str, body: SupplyDeclaration) -> Response:
    return made(request, *supplies.put(here, node, fqcn, body))
