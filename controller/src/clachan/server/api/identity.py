"""Routes: health, the CA, joining, principals, accounts, tenants, users, tokens."""

from typing import Annotated

from fastapi import Depends, Request, Response

from clachan.contract.api import (
    AccountDeclaration,
    AccountView,
    Health,
    Joined,
    JoinRequest,
    JoinTokenDeclaration,
    JoinTokenView,
    Page,
    PrincipalView,
    TenantDeclaration,
    TenantView,
    TokenDeclaration,
    TokenView,
    UserDeclaration,
    UserView,
)
from clachan.server.api.admission import Caller, Here, new_router
from clachan.server.api.answers import document, made, paged
from clachan.server.services import accounts, health, joining
from clachan.server.services.pages import Wanted

router = new_router()
root = new_router("")
Paged = Annotated[Wanted, Depends(paged)]


@root.get("/healthz", response_model=Health)
def healthz(request: Request, here: Here) -> Response:
    shown = health.check(here)
    return document(request, shown, 200 if shown.status == "ok" else 503)


@router.get("/ca")
async def certificate(here: Here) -> Response:
    return Response(here.authority.pem, media_type="application/x-pem-file")


@router.post("/join", response_model=Joined)
def join(request: Request, here: Here, body: JoinRequest) -> Response:
    return document(request, joining.join(here, body))


@router.get("/principal", response_model=PrincipalView)
async def principal(request: Request, caller: Caller) -> Response:
    return document(request, caller.view())


@router.get("/accounts", response_model=Page[AccountView])
def list_accounts(request: Request, here: Here, wanted: Paged) -> Response:
    return document(request, accounts.list_accounts(here, wanted))


@router.post("/accounts", response_model=AccountView)
def create_account(request: Request, here: Here, body: AccountDeclaration) -> Response:
    return made(request, *accounts.create_account(here, body))


@router.get("/tenants", response_model=Page[TenantView])
def list_tenants(request: Request, here: Here, caller: Caller, wanted: Paged) -> Response:
    return document(request, accounts.list_tenants(here, caller, wanted))


@router.post("/tenants", response_model=TenantView)
def create_tenant(request: Request, here: Here, body: TenantDeclaration) -> Response:
    return made(request, *accounts.create_tenant(here, body))


@router.get("/users", response_model=Page[UserView])
def list_users(request: Request, here: Here, wanted: Paged) -> Response:
    return document(request, accounts.list_users(here, wanted))


@router.post("/users", response_model=UserView)
def create_user(request: Request, here: Here, body: UserDeclaration) -> Response:
    return made(request, *accounts.create_user(here, body))


@router.get("/tokens", response_model=Page[TokenView])
def list_tokens(request: Request, here: Here, caller: Caller, wanted: Paged) -> Response:
    return document(request, accounts.list_tokens(here, caller, wanted))


@router.post("/tokens", response_model=TokenView, status_code=201)
def create_token(request: Request, here: Here, caller: Caller, body: TokenDeclaration) -> Response:
    return made(request, accounts.create_token(here, caller, body), created=True)


@router.delete("/tokens/{identifier}", status_code=204)
def delete_token(here: Here, caller: Caller, identifier: str) -> Response:
    accounts.delete_token(here, caller, identifier)
    return Response(status_code=204)


@router.get("/join-tokens", response_model=Page[JoinTokenView])
def list_join_tokens(request: Request, here: Here, wanted: Paged) -> Response:
    return document(request, joining.list_join_tokens(here, wanted))


@router.post("/join-tokens", response_model=JoinTokenView, status_code=201)
def create_join_token(request: Request, here: Here, body: JoinTokenDeclaration) -> Response:
    return made(request, joining.create_join_token(here, body), created=True)


@router.delete("/join-tokens/{identifier}", status_code=204)
def delete_join_token(here: Here, identifier: str) -> Response:
    joining.delete_join_token(here, identifier)
    return Response(status_code=204)
