"""Accounts, tenants, users and their tokens."""

import secrets
import uuid
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from clachan.contract.api import (
    AccountDeclaration,
    AccountView,
    Page,
    TenantDeclaration,
    TenantView,
    TokenDeclaration,
    TokenView,
    UserDeclaration,
    UserView,
)
from clachan.contract.names import RESERVED_TENANTS
from clachan.server import clock
from clachan.server.db.models import Account, Instance, Tenant, Token, User
from clachan.server.services.controller import Change, Controller
from clachan.server.services.pages import Wanted
from clachan.server.services.principals import Principal, token_hash
from clachan.server.services.refusals import Conflict, Forbidden, Invalid, NotFound


def list_accounts(controller: Controller, wanted: Wanted) -> Page[AccountView]:
    with controller.read() as session:
        return wanted.page(session, select(Account), Account.name, account_view)


def create_account(controller: Controller, declaration: AccountDeclaration) -> tuple[AccountView, bool]:
    """The account and whether it is new; an identical one is answered as it is, another is a conflict."""
    with controller.change() as change:
        found = change.session.scalar(select(Account).where(Account.name == declaration.name))
        if found is not None:
            _same("account", found.name, {"title": (found.title, declaration.title)})
            return account_view(found), False
        account = Account(name=declaration.name, title=declaration.title, created=change.now)
        change.session.add(account)
        return account_view(account), True


def account_view(row: Account) -> AccountView:
    return AccountView(name=row.name, title=row.title, created=row.created)


def list_tenants(controller: Controller, principal: Principal, wanted: Wanted) -> Page[TenantView]:
    query = select(Tenant)
    if principal.tenants is not None:
        query = query.where(Tenant.name.in_(principal.tenants))
    with controller.read() as session:
        return wanted.page(session, query, Tenant.name, tenant_view)


def create_tenant(controller: Controller, declaration: TenantDeclaration) -> tuple[TenantView, bool]:
    if declaration.name in RESERVED_TENANTS:
        raise Invalid(f"tenant {declaration.name}: the name is reserved, expected another", "name")
    with controller.change() as change:
        found = change.session.scalar(select(Tenant).where(Tenant.name == declaration.name))
        if found is not None:
            pairs = {"title": (found.title, declaration.title), "account": (found.account.name, declaration.account)}
            _same("tenant", found.name, pairs)
            return tenant_view(found), False
        account = change.session.scalar(select(Account).where(Account.name == declaration.account))
        if account is None:
            raise Invalid(f"account {declaration.account}: unknown, expected one that exists", "account")
        tenant = Tenant(name=declaration.name, account=account, title=declaration.title, created=change.now)
        change.session.add(tenant)
        return tenant_view(tenant), True


def tenant_view(row: Tenant) -> TenantView:
    return TenantView(name=row.name, account=row.account.name, title=row.title, created=row.created)


def list_users(controller: Controller, wanted: Wanted) -> Page[UserView]:
    with controller.read() as session:
        return wanted.page(session, select(User), User.name, user_view)


def create_user(controller: Controller, declaration: UserDeclaration) -> tuple[UserView, bool]:
    with controller.change() as change:
        found = change.session.scalar(select(User).where(User.name == declaration.name))
        if found is not None:
            view = user_view(found)
            pairs = {name: (getattr(view, name), getattr(declaration, name)) for name in ("role", "reveal")}
            _same("user", found.name, pairs | {"tenants": (view.tenants, sorted(set(declaration.tenants)))})
            return view, False
        user = User(name=declaration.name, role=declaration.role, reveal=declaration.reveal, created=change.now)
        user.tenants = [_tenant(change.session, name) for name in sorted(set(declaration.tenants))]
        change.session.add(user)
        return user_view(user), True


def user_view(row: User) -> UserView:
    names = [tenant.name for tenant in row.tenants]
    return UserView.model_validate(
        {"name": row.name, "role": row.role, "tenants": names, "reveal": row.reveal, "created": row.created}
    )


def list_tokens(controller: Controller, principal: Principal, wanted: Wanted) -> Page[TokenView]:
    """All for an admin, else the caller's own."""
    query = select(Token)
    if principal.role != "admin":
        query = query.where(Token.user_id == int(principal.id))
    with controller.read() as session:
        return wanted.page(session, query, Token.id, token_view)


def create_token(controller: Controller, principal: Principal, declaration: TokenDeclaration) -> TokenView:
    """The only answer that has the token itself. Only an admin makes one for another user or for an instance."""
    if (declaration.user is None) == (declaration.instance is None):
        raise Invalid("token: needs a user or an instance, expected exactly one of them", "user")
    if principal.role != "admin" and declaration.user != principal.name:
        whom = declaration.user or declaration.instance
        raise Forbidden(f"token of {whom}: not yours, expected role admin", "user")
    with controller.change() as change:
        row, text = new_token(change, declaration)
        return token_view(row).model_copy(update={"token": text})


def new_token(change: Change, declaration: TokenDeclaration) -> tuple[Token, str]:
    """The row and the token itself, which is kept nowhere."""
    text = f"clachan_{secrets.token_urlsafe(32)}"
    row = Token(id=str(uuid.uuid4()), hash=token_hash(text), title=declaration.title, created=change.now)
    row.expires = clock.after(declaration.seconds) if declaration.seconds is not None else None
    if declaration.user is not None:
        row.user = change.session.scalar(select(User).where(User.name == declaration.user))
        if row.user is None:
            raise Invalid(f"user {declaration.user}: unknown, expected one that exists", "user")
    else:
        row.instance = change.session.scalar(select(Instance).where(Instance.path == declaration.instance))
        if row.instance is None:
            raise Invalid(f"instance {declaration.instance}: unknown, expected one that exists", "instance")
    change.session.add(row)
    return row, text


def delete_token(controller: Controller, principal: Principal, identifier: str) -> None:
    with controller.change() as change:
        row = change.session.get(Token, identifier)
        if row is None or (principal.role != "admin" and str(row.user_id) != principal.id):
            raise NotFound(f"token {identifier}: unknown, expected one that exists")
        change.session.delete(row)
        change.principals = True


def token_view(row: Token) -> TokenView:
    return TokenView(
        id=row.id,
        user=row.user.name if row.user is not None else None,
        instance=row.instance.path if row.instance is not None else None,
        title=row.title,
        created=row.created,
        expires=row.expires,
    )


def _tenant(session: Session, name: str) -> Tenant:
    tenant = session.scalar(select(Tenant).where(Tenant.name == name))
    if tenant is None:
        raise Invalid(f"tenant {name}: unknown, expected one that exists", "tenants")
    return tenant


def _same(kind: str, name: str, pairs: Mapping[str, tuple[object, object]]) -> None:
    for field, (kept, asked) in pairs.items():
        if kept != asked:
            raise Conflict(f"{kind} {name}: exists with another {field}, expected {kept!r}", field)
