"""Compile a role's `meta/argument_specs.yml` into JSON Schema (draft 2020-12), one schema for each type.

A value is never coerced and never expanded, whatever Ansible's own validator would do. Any value may instead be a
reference: an object with exactly the keys `from` and `key` is a reference wherever it stands, in lists and in free
dicts too, so what is a reference does not depend on the schema. A dict option that declares both as suboptions is
refused, as is everything that Ansible's spec can say and JSON Schema cannot.

Form of a schema: an option is `{annotations, "anyOf": [its own value, reference]}`; a secret one has
`"writeOnly": true`; conditions between options stand in `allOf`, each with a `$comment` that says it in words.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clachan.contract.inventory import SECRET
from clachan.contract.names import NAME, PATH, RESERVED_TYPES, is_name
from clachan.contract.software import Option, SoftwareMeta
from clachan.server.decisions.ansible_names import RESERVED

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"

_ENTRY_KEYS = {"short_description", "description", "author", "version_added", "options", "seealso", "examples"}
_CONDITIONS = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")
_REMOVED = {"removed_in_version", "removed_at_date", "removed_from_collection"}
_OPTION_KEYS = {
    *("type", "elements", "required", "default", "choices", "description", "no_log", "options"),
    *("version_added", "apply_defaults"),
    *_REMOVED,
    *_CONDITIONS,
}
_END = r"(?![\s\S])"  # `$` also matches before a last newline
_SIZE = r"[0-9]+(\.[0-9]+)? ?[KMGTPEZY]?"
_REFERENCE: Schema = {
    "type": "object",
    "properties": {"from": {"type": "string", "pattern": f"^{PATH}{_END}"}, "key": {"pattern": f"^{NAME}{_END}"}},
    "required": ["from", "key"],
    "additionalProperties": False,
    "description": "A value that another instance of the tenant publishes.",
}
_TEXT = {"type": "string"}
_JSON = {"type": ["object", "array", "string"], "contentMediaType": "application/json"}
_VALUES: dict[str, Schema] = {
    "str": _TEXT,
    "path": _TEXT,
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "list": {"type": "array"},
    "dict": {"type": "object"},
    "raw": {},
    "json": _JSON,
    "jsonarg": _JSON,
    "bytes": {
        "type": ["integer", "string"],
        "minimum": 0,
        "pattern": f"^{_SIZE}B?{_END}",
        "x-expected": "a size in bytes such as 10MB",
    },
    "bits": {
        "type": ["integer", "string"],
        "minimum": 0,
        "pattern": f"^{_SIZE}b?{_END}",
        "x-expected": "a size in bits such as 10Mb",
    },
}


class SpecError(ValueError):
    """The role's options cannot be registered; the message names the option and what was expected."""


def compile_role(software: str, argument_specs: Mapping[str, Any], meta: SoftwareMeta) -> dict[str, Schema]:
    """Type -> JSON Schema of its parameters, for the role with the FQCN `software`.

    `argument_specs` is the mapping below the file's top key `argument_specs`. The entry points `supply` and `absent`
    are checked but are no types. Secret options (`no_log`) carry `writeOnly: true`; defaults are annotations only.
    Raises SpecError.
    """
    try:
        return _Role(software.rpartition(".")[2], meta).compile(argument_specs)
    except SpecError as error:
        raise SpecError(f"software {software}: {error}") from None


class _Role:
    """One compilation: the role's short name and what `meta/clachan.yml` adds to its options."""

    def __init__(self, name: str, meta: SoftwareMeta) -> None:
        self._name = name
        self._meta = meta
        self._limits = meta.options
        self._generate = frozenset(meta.generate)

    def compile(self, argument_specs: Mapping[str, Any]) -> dict[str, Schema]:
        _expect_mapping("argument_specs", argument_specs)
        if "main" not in argument_specs:
            raise SpecError("no entry point main, expected one")
        compiled = {str(entry): self._entry(str(entry), spec) for entry, spec in argument_specs.items()}
        if compiled.get("supply", {}).get("properties"):
            raise SpecError("entry point supply: options, expected none: a supply has no parameters")
        types = {entry: schema for entry, schema in compiled.items() if entry not in RESERVED_TYPES}
        self._check_meta(types)
        return types

    def _entry(self, entry: str, spec: Any) -> Schema:
        if not is_name(entry):
            raise SpecError(f"entry point {entry}: not a name, expected {NAME}")
        spec = {} if spec is None else spec
        _expect_mapping(f"entry point {entry}", spec)
        _refuse_unknown(f"entry point {entry}", spec, {*_ENTRY_KEYS, *_CONDITIONS})
        options = spec.get("options") or {}
        _expect_mapping(f"entry point {entry}: options", options)
        for name in options:
            self._check_name(name)
        schema = self._object("", options, spec)
        return {
            "$schema": DRAFT,
            "title": _text(spec.get("short_description")),
            "description": _text(spec.get("description")),
            **schema,
            "$defs": {"reference": _REFERENCE},
        }

    def _check_name(self, name: Any) -> None:
        prefix = f"{self._name}_"
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise SpecError(f"option {name}: not a variable's name, expected lower case letters, digits and _")
        if name.startswith(("clachan_", "ansible_")):
            raise SpecError(f"option {name}: a name of the platform or of Ansible, expected one that begins {prefix}")
        if not name.startswith(prefix) or name == prefix:
            raise SpecError(f"option {name}: not the role's own, expected a name that begins {prefix}")
        if name in RESERVED:
            raise SpecError(f"option {name}: a name that Ansible reserves, expected another")

    def _object(self, where: str, options: Mapping[Any, Any], spec: Mapping[str, Any]) -> Schema:
        """`where`: the option that these are the suboptions of, empty for the parameters themselves."""
        if {"from", "key"} <= options.keys():
            raise SpecError(f"option {where}: suboptions from and key, expected not both: they make a reference")
        if wrong := [name for name in options if not isinstance(name, str)]:
            raise SpecError(f"option {where}: suboption {wrong[0]!r}, expected a text as its name")
        schemas = {name: self._option(f"{where}.{name}" if where else name, option) for name, option in options.items()}
        required = [
            name for name, option in options.items() if option.get("required") and not self._generated(where, name)
        ]
        conditions = _conditions(where, spec, options)
        return {
            "type": "object",
            "properties": schemas,
            "required": required,
            "additionalProperties": False,
            **({"allOf": conditions} if conditions else {}),
        }

    def _generated(self, where: str, name: str) -> bool:
        return not where and name in self._generate

    def _option(self, where: str, option: Any) -> Schema:
        _expect_mapping(f"option {where}", option)
        _refuse_unknown(f"option {where}", option, _OPTION_KEYS)
        for flag in ("required", "no_log", "apply_defaults"):
            if not isinstance(option.get(flag, False), bool):
                raise SpecError(f"option {where}: {flag} {option[flag]!r}, expected true or false")
        if option.get("required") and option.get("default") is not None:
            raise SpecError(f"option {where}: required and a default, expected one of both")
        secret = bool(option.get("no_log"))
        value = self._value(where, option)
        if secret:
            value = {**value, "not": {"const": SECRET}, "$comment": f"{SECRET}, expected the secret itself"}
        return {**_annotations(where, option, secret=secret), "anyOf": [value, {"$ref": "#/$defs/reference"}]}

    def _value(self, where: str, option: Mapping[str, Any]) -> Schema:
        type_ = option.get("type", "str")
        if type_ not in _VALUES:
            raise SpecError(f"option {where}: type {type_!r}, expected one of {', '.join(sorted(_VALUES))}")
        if "elements" in option and type_ != "list":
            raise SpecError(f"option {where}: elements of a {type_}, expected type list")
        if type_ != "list":
            return self._scalar(where, type_, option)
        elements = option.get("elements")
        if elements is None and "options" not in option:
            return {**_VALUES["list"], "items": {**_enum(where, {}, option), **self._limit(where, {})}}
        if elements not in _VALUES or elements == "list":
            raise SpecError(f"option {where}: elements {elements!r}, expected one of the types but list")
        item = self._scalar(where, elements, option)
        return {**_VALUES["list"], "items": {"anyOf": [item, {"$ref": "#/$defs/reference"}]}}

    def _scalar(self, where: str, type_: str, option: Mapping[str, Any]) -> Schema:
        if "options" in option:
            if type_ != "dict":
                raise SpecError(f"option {where}: options of a {type_}, expected type dict or a list of them")
            _expect_mapping(f"option {where}: options", option["options"])
            return self._object(where, option["options"], option)
        if given := [key for key in _CONDITIONS if option.get(key)]:
            raise SpecError(f"option {where}: {given[0]}, expected it beside options")
        value = _VALUES[type_]
        return {**value, **_enum(where, value, option), **self._limit(where, value)}

    def _limit(self, where: str, value: Schema) -> Schema:
        limits = self._limits.get(where, Option())
        type_ = value.get("type")
        if (limits.minimum is not None or limits.maximum is not None) and type_ not in {"integer", "number"}:
            raise SpecError(f"option {where}: minimum or maximum, expected them of a number only")
        if (limits.pattern is not None or limits.max_length is not None) and type_ != "string":
            raise SpecError(f"option {where}: pattern or max_length, expected them of a text only")
        schema: Schema = {"minimum": limits.minimum, "maximum": limits.maximum, "maxLength": limits.max_length}
        if limits.pattern is not None:
            schema |= {"pattern": _whole(where, limits.pattern), "x-expected": f"text like {limits.pattern}"}
        return {key: _number(each) for key, each in schema.items() if each is not None}

    def _check_meta(self, types: Mapping[str, Schema]) -> None:
        options = {name: option for schema in types.values() for name, option in schema["properties"].items()}
        for name in self._limits:
            if name not in options:
                raise SpecError(f"meta/clachan.yml options: {name}, expected an option of a type")
        for name in sorted(self._generate):
            value = options.get(name, {"anyOf": [{}]})["anyOf"][0]
            if not options.get(name, {}).get("writeOnly") or value.get("type") != "string" or "enum" in value:
                raise SpecError(f"meta/clachan.yml generate: {name}, expected an option of type str with no_log")
        for part, source in self._meta.capacity_from.items():
            if wrong := [entry for entry, schema in types.items() if not _counts(schema, source.option)]:
                what = f"meta/clachan.yml capacity_from {part}: {source.option} of type {wrong[0]}"
                raise SpecError(f"{what}, expected an int option with a minimum from 0 on, required or with a default")
        if self._meta.makes_node and (not self._meta.needs_root or self._meta.shared):
            raise SpecError("meta/clachan.yml makes_node: expected it with needs_root, and not shared")


def _counts(schema: Schema, name: str) -> bool:
    """Whether the option always is a number, and never less than 0."""
    option = schema["properties"].get(name, {"anyOf": [{}]})
    value = option["anyOf"][0]
    known = name in schema["required"] or isinstance(option.get("default"), int)
    return known and value.get("type") == "integer" and value.get("minimum", -1) >= 0 and "writeOnly" not in option


def _conditions(where: str, spec: Mapping[str, Any], options: Mapping[str, Any]) -> list[Schema]:
    compilers: dict[str, Callable[..., Schema]] = {
        "mutually_exclusive": _mutually_exclusive,
        "required_together": _required_together,
        "required_one_of": _required_one_of,
        "required_if": _required_if,
        "required_by": _required_by,
    }
    conditions = []
    for key in _CONDITIONS:
        given = spec.get(key) or []
        items = list(given.items()) if key == "required_by" and isinstance(given, Mapping) else given
        try:
            conditions += [compilers[key](item, _Terms(options)) for item in items]
        except (TypeError, ValueError, KeyError) as error:
            at = f"option {where}" if where else "options"
            raise SpecError(f"{at}: {key} {json.dumps(given, default=str)}, expected Ansible's form: {error}") from None
    return conditions


class _Terms:
    """The options that a condition may name. As in Ansible, one with a default counts as given."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    def names(self, value: Any) -> list[str]:
        names = [value] if isinstance(value, str) else list(value)
        if unknown := [name for name in names if name not in self._options]:
            raise ValueError(f"no option {unknown[0]}")
        return names

    def default(self, name: str) -> Any:
        return self._options[name].get("default")

    def given(self, name: str) -> Schema:
        return {} if self.default(name) is not None else {"required": [name]}


def _mutually_exclusive(item: Any, terms: _Terms) -> Schema:
    names = terms.names(item)
    pairs = [{"type": "object", "required": [a, b]} for index, a in enumerate(names) for b in names[index + 1 :]]
    return {"not": {"anyOf": pairs}, "$comment": f"{', '.join(names)}: given together, expected at most one"}


def _required_together(item: Any, terms: _Terms) -> Schema:
    given = [terms.given(name) for name in terms.names(item)]
    return _when({"anyOf": given}, {"allOf": given}, f"{', '.join(item)}: some missing, expected all or none")


def _required_one_of(item: Any, terms: _Terms) -> Schema:
    names = terms.names(item)
    return {
        "anyOf": [terms.given(name) for name in names],
        "$comment": f"{', '.join(names)}: missing, expected at least one",
    }


def _required_if(item: Sequence[Any], terms: _Terms) -> Schema:
    name, value, needed, *rest = item
    terms.names(name)
    names = terms.names(needed)
    any_of = bool(rest and rest[0])
    condition: Schema = {"properties": {name: {"const": value}}}
    if terms.default(name) != value:
        condition["required"] = [name]
    how = "at least one" if any_of else "all"
    comment = f"{', '.join(names)}: missing, expected {how} since {name} is {json.dumps(value)}"
    return _when(condition, {"anyOf" if any_of else "allOf": [terms.given(each) for each in names]}, comment)


def _required_by(item: tuple[str, Any], terms: _Terms) -> Schema:
    name, needed = item
    terms.names(name)
    names = terms.names(needed)
    comment = f"{', '.join(names)}: missing, expected with {name}"
    return _when(terms.given(name), {"allOf": [terms.given(each) for each in names]}, comment)


def _when(condition: Schema, consequence: Schema, comment: str) -> Schema:
    # the double `not` makes one error of it, that has the comment
    return {"anyOf": [{"not": condition}, consequence], "$comment": comment}


def _enum(where: str, value: Schema, option: Mapping[str, Any]) -> Schema:
    if "choices" not in option:
        return {}
    choices = option["choices"]
    if not isinstance(choices, list) or not choices or not _is_json(choices):
        raise SpecError(f"option {where}: choices {choices!r}, expected a list of values of JSON")
    if type_ := value.get("type"):
        for choice in choices:
            if not _is_of(type_, choice):
                raise SpecError(f"option {where}: choice {choice!r}, expected {type_}")
    return {"enum": choices}


def _is_of(type_: str | list[str], value: Any) -> bool:
    kinds: dict[str, Any] = {"string": str, "integer": int, "number": int | float, "boolean": bool}
    kinds |= {"array": list, "object": dict}
    types = [type_] if isinstance(type_, str) else type_
    return any(isinstance(value, kinds[each]) and (isinstance(value, bool) == (each == "boolean")) for each in types)


def _annotations(where: str, option: Mapping[str, Any], *, secret: bool) -> Schema:
    notes: Schema = {"description": _text(option.get("description"))}
    if option.get("default") is not None and not secret:
        if not _is_json(option["default"]):
            raise SpecError(f"option {where}: default {option['default']!r}, expected a value of JSON")
        notes["default"] = option["default"]
    if secret:
        notes["writeOnly"] = True
    if _REMOVED & option.keys():
        notes["deprecated"] = True
    return notes


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _whole(where: str, pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise SpecError(f"option {where}: pattern {pattern!r}, expected a regular expression: {error}") from None
    return f"^(?:{pattern}){_END}"


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> str:
    lines = value if isinstance(value, list) else [value or ""]
    return "\n".join(str(line) for line in lines)


def _expect_mapping(what: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise SpecError(f"{what}: {type(value).__name__}, expected a mapping")


def _refuse_unknown(what: str, value: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(str(key) for key in value.keys() - known):
        raise SpecError(f"{what}: {unknown[0]}, expected one of {', '.join(sorted(known))}")
