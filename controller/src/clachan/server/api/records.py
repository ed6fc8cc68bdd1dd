"""Routes: inventory, usage, events."""

from typing import Annotated

from fastapi import Query, Request, Response

from clachan.contract.api import EventView, Page, Revealed, RevealRequest, UsageView
from clachan.contract.inventory import Inventory
from clachan.server.api.admission import Caller, Here, new_router
from clachan.server.api.answers import document
from clachan.server.api.identity import Paged
from clachan.server.services import records

router = new_router()


@router.get("/inventory", response_model=dict[str, Inventory])
def inventory(request: Request, here: Here, caller: Caller) -> Response:
    """All that the caller may see: `{"clachan_inventory": ...}`, secrets as <secret>."""
    found = records.whole_inventory(here, caller)
    return document(request, found.body, etag=found.etag)


@router.post("/inventory/reveal", response_model=Revealed)
def reveal(request: Request, here: Here, caller: Caller, body: RevealRequest) -> Response:
    return document(request, records.reveal(here, caller, body.hosts))


@router.get("/usage", response_model=Page[UsageView])
def usage(
    *,
    request: Request,
    here: Here,
    caller: Caller,
    wanted: Paged,
    tenant: str | None = None,
    path: str | None = None,
    meter: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Response:
    filters = {"tenant": tenant, "path": path, "meter": meter, "since": since, "until": until}
    return document(request, records.usage(here, caller, wanted, filters))


@router.get("/events", response_model=Page[EventView])
def events(
    *,
    request: Request,
    here: Here,
    caller: Caller,
    wanted: Paged,
    kind: str | None = None,
    path: str | None = None,
    node: str | None = None,
    after: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    filters = {"kind": kind, "path": path, "node": node}
    return document(request, records.events(here, caller, wanted, filters, after))
