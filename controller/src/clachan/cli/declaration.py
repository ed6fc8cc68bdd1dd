"""The declaration that a request sends: what is given on the command line, over what it starts from."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clachan.cli.errors import WRONG_USE, CommandError
from clachan.cli.options import parse_pairs, validated
from clachan.cli.secret_input import read_text
from clachan.contract.inventory import SECRET

if TYPE_CHECKING:
    from clachan.client import Client
    from clachan.contract.api import Declaration, InstanceView, RevisionView

_COPIED = {"software", "digest", "type", "parameters", "placement"}


def read_parameters(file: Path | None, pairs: list[str]) -> dict[str, Any]:
    """The JSON object of `file` (`-`: standard input), and over it `KEY=VALUE` pairs."""
    found: object = {}
    if file is not None:
        try:
            found = json.loads(read_text(file))
        except ValueError as error:
            raise CommandError(f"parameters {file}: {error}, expected a JSON object", WRONG_USE) from error
    if not isinstance(found, dict):
        raise CommandError(f"parameters {file}: {type(found).__name__}, expected a JSON object", WRONG_USE)
    return found | {key: _value(text) for key, text in parse_pairs(pairs, "parameter").items()}


def _value(text: str) -> Any:
    """`@FILE`: the file's text; else JSON where it parses as JSON; else the text itself."""
    if text.startswith("@"):
        return read_text(Path(text[1:]))
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def current_instance(client: "Client", path: str) -> "InstanceView | None":
    """The instance as it is; None when there is none."""
    from clachan.client import ApiError

    try:
        return client.instance(path)
    except ApiError as error:
        if error.code != "not_found":
            raise
        return None


def starting_content(
    client: "Client", path: str, current: "InstanceView | None", rollback: int | None, given: Collection[str]
) -> dict[str, Any]:
    """What a request without a software starts from: the content of revision `rollback`, else the newest.

    `given`: the parameters that come over it. In the newest a secret stands as <secret>, and sent back so it stays
    what it is. Of an older revision that would be the wrong one without notice, so there it must be given.
    """
    if current is None:
        raise CommandError(f"instance {path}: does not exist, expected SOFTWARE to make it", WRONG_USE)
    if rollback is None:
        return current.model_dump(include=_COPIED) | {"state": current.wanted}
    revision = _revision(client, path, rollback)
    if revision is None:
        raise CommandError(
            f"revision {rollback}: not one of {path}, expected one of: clachan instance revisions {path}"
        )
    for name, value in revision.parameters.items():
        if name not in given and _is_masked(value):
            raise CommandError(
                f"parameter {name} of revision {rollback}: a secret, which is not shown, expected it again: "
                f"-p {name}=@FILE, or -p {name}='{SECRET}' for the one that it has now",
                WRONG_USE,
            )
    return revision.model_dump(include={*_COPIED, "state"})


def _is_masked(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(_is_masked(each) for each in (value.values() if isinstance(value, dict) else value))
    return value == SECRET


def _revision(client: "Client", path: str, number: int) -> "RevisionView | None":
    return next((each for each in client.revisions(path) if each.number == number), None)


def build_declaration(content: dict[str, Any], given: dict[str, Any]) -> "Declaration":
    """`given` over `content`, parameter by parameter and placement word by word; what is None is not given."""
    from clachan.contract.api import Declaration

    merged = content | {key: value for key, value in given.items() if value is not None}
    for key in ("parameters", "placement"):
        over = {name: value for name, value in given[key].items() if value is not None or key == "parameters"}
        merged[key] = content.get(key, {}) | over
    return validated(Declaration, merged)
