"""The document of an ingestion policy, and what it says of a tag.

title          text for people
pattern        regular expression (RE2) that must match the whole tag; its named groups are parts of it
into           "stream" or "array": what the data becomes
name           of that stream or array; {tag} and {group} stand for the tag and its parts
attrs          attributes given to it when it is made; texts in them may have such parts too
dtype          of an array: numpy's name, or a list of fields
row_shape      of an array: the shape of a row, [] for a single value
keep_seconds   of a stream: chunks older than that are no longer kept; null: all are
keep_bytes     of a stream: so many of the latest bytes are kept, by whole chunks; null: all
quota_bytes    how much all that the policy made may hold together; null: as much as there is room for
ids_seconds    how long chunk ids are recognised at least; null: for ever
unmatched      what becomes of a tag that the pattern does not match: "refuse", or "dead" for the dead letters
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from clachan_lake import settings
from clachan_lake.documents import as_text
from clachan_lake.exchange import dtypes
from clachan_lake.names import NAME_BYTES, fits
from clachan_lake.policies.naming import Template, check_values, fill_values
from clachan_lake.policies.pattern import Pattern

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
ATTRS_BYTES = 64 << 10
ROW_BYTES = 64 << 20
SYSTEM = "~"
"""What begins with it is the lake's own."""
CHOICES = {"into": ("stream", "array"), "unmatched": ("refuse", "dead")}


@dataclass(frozen=True)
class Policy:
    title: str = ""
    pattern: str = ".+"
    into: str = "stream"
    name: str = "{tag}"
    attrs: dict[str, Any] = field(default_factory=dict)
    dtype: Any = None
    row_shape: list[int] = field(default_factory=list)
    keep_seconds: int | None = None
    keep_bytes: int | None = None
    quota_bytes: int | None = None
    ids_seconds: int | None = None
    unmatched: str = "refuse"

    @cached_property
    def compiled(self) -> Pattern:
        return Pattern(self.pattern)

    @cached_property
    def template(self) -> Template:
        return Template(self.name, self.compiled.groups)

    @cached_property
    def row_dtype(self) -> np.dtype[Any]:
        return dtypes.from_json(self.dtype, "policy")

    @cached_property
    def row_bytes(self) -> int:
        return int(self.row_dtype.itemsize * prod(self.row_shape))

    def place(self, tag: str) -> tuple[str, Mapping[str, str]] | None:
        """The name that the tag's data has, and the tag's parts; None when the tag does not match."""
        groups = self.compiled.match(tag)
        return None if groups is None else (self.template.fill(tag, groups), groups)

    def attributes(self, tag: str, groups: Mapping[str, str]) -> dict[str, Any]:
        filled: dict[str, Any] = fill_values(self.attrs, tag, groups)
        return filled

    def document(self) -> dict[str, Any]:
        """With every key."""
        return asdict(self)


def check_policy_name(name: str) -> str:
    """The name itself: it stands in a URL and in scopes. Raises ValueError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"policy name: {name!r:.80}, expected 1-100 letters, digits, _ . -, the first one no point or hyphen"
        )
    return name


def read(name: str, document: Any) -> Policy:
    """The policy that a document declares; raises ValueError that names the policy, the key and the value."""
    what = f"policy {check_policy_name(name)}"
    policy = settings.read(document, Policy, _READERS, what)
    _check(what, "name", lambda: _check_template(policy))
    _check(what, "attrs", lambda: check_values(policy.attrs, policy.compiled.groups))
    if policy.into == "array":
        _check(what, "dtype", lambda: _check_rows(policy))
    for key in ("dtype", "row_shape") if policy.into == "stream" else ("keep_seconds", "keep_bytes"):
        if value := getattr(policy, key):
            raise ValueError(f"{what}, key {key}: {value!r:.80}, expected none with into {policy.into!r}")
    return policy


def _check(what: str, key: str, check: Any) -> None:
    try:
        check()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what}, key {key}: {error}") from None


def _check_template(policy: Policy) -> None:
    if not policy.name or not policy.name.isprintable():
        raise ValueError(f"{policy.name!r:.80}, expected printable text")
    if policy.name.startswith(SYSTEM):
        raise ValueError(f"{policy.name!r:.80}, expected none of the lake's own, which begin with {SYSTEM}")
    # made here, so that what is wrong with it is said here
    assert policy.template


def _check_rows(policy: Policy) -> None:
    if policy.dtype is None:
        raise ValueError("missing, expected numpy's name of one, or a list of fields, with into 'array'")
    try:
        assert policy.row_dtype
    except dtypes.DtypeError as error:
        raise ValueError(str(error).partition("dtype: ")[2]) from None
    if not 0 < policy.row_bytes <= ROW_BYTES:
        raise ValueError(f"rows of {policy.row_bytes} bytes, expected 1-{ROW_BYTES}")


def _text(value: Any) -> str:
    if not fits(value, NAME_BYTES):
        raise ValueError(f"{value!r:.80}, expected at most {NAME_BYTES} bytes of text")
    return str(value)


def _pattern(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.80}, expected a regular expression")
    return Pattern(value).text


def _attrs(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.80}, expected an object")
    try:
        length = len(as_text(value).encode())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}, expected JSON values") from None
    if length > ATTRS_BYTES:
        raise ValueError(f"{length} bytes, expected at most {ATTRS_BYTES}")
    return value


def _shape(value: Any) -> list[int]:
    if not isinstance(value, list) or len(value) > 31 or any(type(n) is not int or n < 1 for n in value):
        raise ValueError(f"{value!r:.80}, expected a list of lengths of at least 1")
    return value


_READERS: dict[str, settings.Reader] = {
    "title": _text,
    "pattern": _pattern,
    "name": _text,
    "attrs": _attrs,
    "dtype": lambda value: value,
    "row_shape": _shape,
    **{key: settings.choice(*CHOICES[key]) for key in CHOICES},
    **dict.fromkeys(("keep_seconds", "keep_bytes", "quota_bytes", "ids_seconds"), settings.positive),
}
