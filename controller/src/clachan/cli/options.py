"""Arguments and options that several verbs share."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from clachan.cli.connection import complete_instance, complete_node, complete_software, complete_tenant

if TYPE_CHECKING:
    from clachan.contract import Document

D = TypeVar("D", bound="Document")


def _checked(pattern_name: str, what: str) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is None:
            return None
        from clachan.contract import names

        pattern = getattr(names, pattern_name)
        if re.fullmatch(pattern, value) is None:
            raise typer.BadParameter(f"{what} {value!r}, expected {pattern}")
        return value

    return check


check_path, check_name, check_fqcn = _checked("PATH", "path"), _checked("NAME", "name"), _checked("FQCN", "software")

Json = Annotated[bool, typer.Option("--json", help="Print the API's own objects as JSON.")]
InstancePath = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="tenant.name[.child...]", autocompletion=complete_instance, callback=check_path
    ),
]
SoftwareName = Annotated[
    str,
    typer.Argument(
        metavar="SOFTWARE", help="namespace.collection.role", autocompletion=complete_software, callback=check_fqcn
    ),
]
NodeName = Annotated[
    str, typer.Argument(metavar="NODE", help="Name of the node.", autocompletion=complete_node, callback=check_name)
]
NewName = Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and _.", callback=check_name)]
OfNode = Annotated[
    str | None, typer.Option("--node", help="Only of this node.", autocompletion=complete_node, callback=check_name)
]
OfTenant = Annotated[
    str | None,
    typer.Option("--tenant", help="Only of this tenant.", autocompletion=complete_tenant, callback=check_name),
]
OfPath = Annotated[
    str | None,
    typer.Option("--path", help="Only of this instance.", autocompletion=complete_instance, callback=check_path),
]
Title = Annotated[str, typer.Option("--title", help="Free text for people.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done, saying why it is not yet.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait; then the exit status is 3.")]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: str) -> int:
    """Seconds of a text like 90s, 15m, 12h or 7d."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise typer.BadParameter(f"duration {text!r}, expected a number and one of s, m, h, d, like 12h")
    return int(timedelta(**{_UNITS[match[2]]: int(match[1])}).total_seconds())


def validated(model: "type[D]", content: dict[str, Any]) -> "D":
    """The document with that content; what the contract does not allow is wrong use."""
    from pydantic import ValidationError

    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise typer.BadParameter(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


def parse_pairs(pairs: list[str], what: str) -> dict[str, str]:
    """key=value texts as a dict; each key once."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{what} {pair!r}, expected KEY=VALUE")
        if key in found:
            raise typer.BadParameter(f"{what} {key!r} twice, expected each once")
        found[key] = value
    return found
