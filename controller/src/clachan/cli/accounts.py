"""`clachan account`, `tenant`, `user`, `token`: who pays, who owns, who may."""

from typing import Annotated

import typer

from clachan.cli.connection import complete_tenant, connect
from clachan.cli.errors import WRONG_USE, CommandError
from clachan.cli.options import Json, NewName, Title, check_name, check_path, parse_duration, validated
from clachan.cli.output import details, print_json, print_json_list, table

account = typer.Typer(no_args_is_help=True, help="Accounts: who pays.")
tenant = typer.Typer(no_args_is_help=True, help="Tenants: the unit of isolation, owner of instances and data.")
user = typer.Typer(no_args_is_help=True, help="Users and what they may.")
token = typer.Typer(no_args_is_help=True, help="Tokens of users and instances.")

ROLES = ("admin", "operator", "member")


@account.command("list")
def list_accounts(as_json: Json = False) -> None:
    """List the accounts."""
    with connect() as client:
        if as_json:
            print_json_list(client.accounts())
        else:
            table(["NAME", "CREATED", "TITLE"], [(a.name, a.created, a.title) for a in client.accounts()])


@account.command("create")
def create_account(name: NewName, title: Title = "", as_json: Json = False) -> None:
    """Create an account; the same again changes nothing."""
    from clachan.contract.api import AccountDeclaration

    with connect() as client:
        view = client.create_account(validated(AccountDeclaration, {"name": name, "title": title}))
    if as_json:
        print_json(view)
    else:
        print(f"account {view.name}")


@tenant.command("list")
def list_tenants(as_json: Json = False) -> None:
    """List the tenants that you may see."""
    with connect() as client:
        if as_json:
            print_json_list(client.tenants())
        else:
            rows = [(t.name, t.account, t.created, t.title) for t in client.tenants()]
            table(["NAME", "ACCOUNT", "CREATED", "TITLE"], rows)


@tenant.command("create")
def create_tenant(
    name: NewName,
    account: Annotated[str, typer.Option(help="The account that pays.", callback=check_name)] = "home",
    title: Title = "",
    as_json: Json = False,
) -> None:
    """Create a tenant; the same again changes nothing."""
    from clachan.contract.api import TenantDeclaration

    with connect() as client:
        view = client.create_tenant(validated(TenantDeclaration, {"name": name, "account": account, "title": title}))
    if as_json:
        print_json(view)
    else:
        print(f"tenant {view.name} of account {view.account}")


@user.command("list")
def list_users(as_json: Json = False) -> None:
    """List the users."""
    with connect() as client:
        if as_json:
            print_json_list(client.users())
            return
        rows = [(u.name, u.role, " ".join(u.tenants) or None, u.reveal or None, u.created) for u in client.users()]
        table(["NAME", "ROLE", "TENANTS", "REVEAL", "CREATED"], rows)


def _role(value: str) -> str:
    if value not in ROLES:
        raise typer.BadParameter(f"role {value!r}, expected one of {', '.join(ROLES)}")
    return value


@user.command("create")
def create_user(
    name: NewName,
    role: Annotated[str, typer.Option(help="admin, operator or member.", callback=_role)] = "member",
    tenant: Annotated[
        list[str] | None,
        typer.Option("--tenant", help="A tenant of the user; may be repeated.", autocompletion=complete_tenant),
    ] = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="May see secrets; every use is an event.")] = False,
    as_json: Json = False,
) -> None:
    """Create a user; the same again changes nothing. Give the user a token with: clachan token create --user NAME"""
    from clachan.contract.api import UserDeclaration

    with connect() as client:
        content = {"name": name, "role": role, "tenants": tenant or [], "reveal": reveal}
        view = client.create_user(validated(UserDeclaration, content))
    if as_json:
        print_json(view)
    else:
        print(f"user {view.name}, {view.role}")


@token.command("list")
def list_tokens(as_json: Json = False) -> None:
    """List the tokens; the tokens themselves are not kept."""
    with connect() as client:
        if as_json:
            print_json_list(client.tokens())
            return
        rows = [(t.id, t.user or t.instance, t.created, t.expires, t.title) for t in client.tokens()]
        table(["ID", "OF", "CREATED", "EXPIRES", "TITLE"], rows)


@token.command("create")
def create_token(
    user: Annotated[str | None, typer.Option(help="Whose; default yours.", callback=check_name)] = None,
    instance: Annotated[str | None, typer.Option(help="A token of this instance instead.", callback=check_path)] = None,
    lasts: Annotated[str | None, typer.Option(metavar="DURATION", help="How long, like 90d; default for ever.")] = None,
    title: Title = "",
    as_json: Json = False,
) -> None:
    """Create a token and print it: it is shown this once."""
    from clachan.contract.api import TokenDeclaration

    if user and instance:
        raise CommandError("token: both --user and --instance, expected one", WRONG_USE)
    seconds = parse_duration(lasts) if lasts else None
    with connect() as client:
        user = user if user or instance else client.principal().name
        content = {"user": user, "instance": instance, "title": title, "seconds": seconds}
        view = client.create_token(validated(TokenDeclaration, content))
    if as_json:
        print_json(view)
    else:
        details([("id", view.id), ("of", view.user or view.instance), ("expires", view.expires), ("token", view.token)])


@token.command("delete")
def delete_token(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The token's id, not the token.")],
    as_json: Json = False,
) -> None:
    """Make a token worthless at once."""
    with connect() as client:
        client.delete_token(identifier)
    if as_json:
        print_json(None)
    else:
        print(f"token {identifier} deleted")
