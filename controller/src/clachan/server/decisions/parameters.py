"""Judge the parameters of a request by the schema of its software's type, and find what is secret in them.

Problems read `parameter hello_port: "80", expected integer`; a secret is never echoed. The schemas are those that
`argument_spec` makes: this module knows their form.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from pydantic import JsonValue

from clachan.contract.inventory import SECRET
from clachan.server.decisions import Problem

Parameters = Mapping[str, JsonValue]
DEPTH = 32
"""How deep values may be nested."""
PROBLEMS = 20
"""How many are told at once."""
_SHOWN_CHARS = 80
_MESSAGE_CHARS = 1000
_REFERENCE_KEYS = {"from", "key"}
_WORDS = {"array": "list"}
_NUMBERS = {"minimum": "at least", "maximum": "at most"}


def is_reference(value: object) -> bool:
    """An object with exactly the keys `from` and `key`."""
    return isinstance(value, dict) and value.keys() == _REFERENCE_KEYS


def place(where: str, step: str | int) -> str:
    """`hello_hosts` and 0 give `hello_hosts[0]`; and `url` gives `hello_hosts.url`."""
    return f"{where}[{step}]" if isinstance(step, int) else f"{where}.{step}" if where else step


class ParameterSchema:
    """A compiled schema; make it once for each (software, digest, type) and keep it."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
        self._validator = _Validator(schema)
        self._sealed = frozenset(name for name, inner in self._properties.items() if _has_secret(inner))

    @property
    def sealed(self) -> frozenset[str]:
        """The names of the parameters that are secret or have a secret somewhere inside."""
        return self._sealed

    def problems(self, parameters: Parameters, *, secret: Collection[str] = ()) -> list[Problem]:
        """What is wrong with the parameters, at most `PROBLEMS`; empty when they are right.

        Fields are `parameters.<where>`. What a reference names is judged by `references.problems`. `secret`: more
        places whose values are not to be shown.
        """
        unspeakable = (problem for name, value in parameters.items() for problem in _unspeakable(name, value, DEPTH))
        if found := list(islice(unspeakable, PROBLEMS)):
            return found
        errors = sorted(self._validator.iter_errors(dict(parameters)), key=_order)
        judged = (problem for error in errors for problem in self._judge(error, secret))
        return list(islice(judged, PROBLEMS))

    def redact(self, parameters: Parameters) -> dict[str, JsonValue]:
        """The parameters with `<secret>` in the place of every secret value; references stay as they are."""
        return {
            name: _redact(self._properties[name], value) if name in self._sealed else value
            for name, value in parameters.items()
        }

    def _judge(self, error: ValidationError, secret: Collection[str]) -> Iterator[Problem]:
        schema: Any = error.schema
        if error.validator == "anyOf" and "$comment" not in schema:
            # the second branch is the reference: one that has its form is judged elsewhere
            if not is_reference(error.instance):
                for inner in error.context or ():
                    if inner.schema_path[0] == 0:
                        yield from self._judge(inner, secret)
            return
        steps = list(error.absolute_path)
        where = _where(steps)
        hidden = self._is_secret(steps) or any(_touches(where, other) for other in secret)
        for at, rest in _messages(error, where, hidden=hidden):
            yield _problem(at, rest)

    def _is_secret(self, steps: Sequence[str | int]) -> bool:
        schema: Mapping[str, Any] = self._schema
        for step in steps:
            schema = _below(schema, step)
            if schema.get("writeOnly"):
                return True
        return bool(steps) and _has_secret(schema)


def _order(error: ValidationError) -> list[tuple[int, str]]:
    return [(step, "") if isinstance(step, int) else (-1, step) for step in error.path]


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# JSON Schema calls 80.0 an integer; a role that gets it would have to convert
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
_Validator = extend(Draft202012Validator, type_checker=_TYPES)  # type: ignore[no-untyped-call]


def option_schema(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an option's own value must be: its schema without the alternative of a reference."""
    inner: Mapping[str, Any] = schema["anyOf"][0] if "anyOf" in schema else schema
    return inner


def _below(schema: Mapping[str, Any], step: str | int) -> Mapping[str, Any]:
    inner = option_schema(schema)
    found: Mapping[str, Any] = (
        inner.get("items", {}) if isinstance(step, int) else inner.get("properties", {}).get(step, {})
    )
    return found


def _has_secret(schema: Mapping[str, Any]) -> bool:
    inner = option_schema(schema)
    below = [*inner.get("properties", {}).values(), *([inner["items"]] if "items" in inner else [])]
    return bool(schema.get("writeOnly")) or any(_has_secret(each) for each in below)


def _redact(schema: Mapping[str, Any], value: JsonValue) -> JsonValue:
    if is_reference(value) or not _has_secret(schema):
        return value
    if not schema.get("writeOnly") and isinstance(value, dict):
        return {key: _redact(_below(schema, key), inner) for key, inner in value.items()}
    if not schema.get("writeOnly") and isinstance(value, list):
        return [_redact(_below(schema, index), inner) for index, inner in enumerate(value)]
    return SECRET


def _unspeakable(where: str, value: JsonValue, depth: int) -> Iterator[Problem]:
    """What no JSON, database or file of the platform carries, whatever the schema says."""
    if isinstance(value, str) and (fault := _fault(value)):
        yield _problem(where, f"text with {fault}, expected text without")
    elif isinstance(value, float) and not math.isfinite(value):
        yield _problem(where, f"{value}, expected a finite number")
    elif isinstance(value, dict | list):
        if depth == 0:
            yield _problem(where, f"nested too deep, expected at most {DEPTH} levels")
            return
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(step, str) and (fault := _fault(step)):
                yield _problem(where, f"a key with {fault}, expected keys without")
            else:
                yield from _unspeakable(place(where, step), inner, depth - 1)


def _fault(text: str) -> str | None:
    if "\0" in text:
        return "a NUL character"
    return "half of a surrogate pair" if any("\ud800" <= char <= "\udfff" for char in text) else None


def _messages(error: ValidationError, where: str, *, hidden: bool) -> Iterator[tuple[str, str]]:
    """(place, message without the place) of one error."""
    schema: Any = error.schema
    value: Any = error.instance
    if error.validator in {"not", "anyOf"}:
        yield where, schema["$comment"]
    elif error.validator == "additionalProperties":
        known = sorted(schema["properties"])
        for name in sorted(value.keys() - schema["properties"].keys()):
            yield place(where, name), f"unknown, expected {'one of ' if known else 'none'}{', '.join(known)}"
    elif error.validator == "required":
        # one error for each missing name, whose name is only in the text
        for name in schema["required"]:
            if name not in value and error.message.startswith(repr(name)):
                yield place(where, name), f"missing, expected {_kind(schema['properties'][name])}"
    else:
        yield where, f"{SECRET if hidden else _shown(value)}, expected {_expected(error)}"


def _expected(error: ValidationError) -> str:
    schema: Any = error.schema
    value: Any = error.validator_value
    match error.validator:
        case "type":
            return _kind(schema)
        case "enum":
            return f"one of {', '.join(_shown(choice) for choice in value)}"
        case "minimum" | "maximum":
            return f"{_NUMBERS[error.validator]} {value}"
        case "maxLength":
            return f"at most {value} characters"
        case "pattern":
            return str(schema.get("x-expected", f"text like {value}"))
    return json.dumps({error.validator: value})


def _kind(schema: Mapping[str, Any]) -> str:
    """The types in words: `integer`, `list`."""
    kinds = option_schema(schema).get("type", "a value")
    return " or ".join(_WORDS.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _where(steps: Sequence[str | int]) -> str:
    where = ""
    for step in steps:
        where = place(where, step)
    return where


def _touches(where: str, other: str) -> bool:
    """Whether one place is the other or has it inside."""
    short, long = sorted((where, other), key=len)
    return long == short or long.startswith((f"{short}.", f"{short}["))


def _shown(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _problem(where: str, rest: str) -> Problem:
    message = f"parameter {where}: {rest}" if where else f"parameters {rest}"
    # the names in it may be a tenant's text, and messages are shown on terminals
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in message[:_MESSAGE_CHARS])
    return Problem(f"parameters.{where}" if where else "parameters", shown)
