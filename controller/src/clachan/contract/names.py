"""Names: an instance's path is `tenant.root[.child...]`, host name, URL and unique key in one."""

import re
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

NAME = r"[a-z][a-z0-9_]{0,30}"
PATH = rf"{NAME}(\.{NAME}){{1,7}}"
FQCN = r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*"
RESERVED_TYPES = frozenset({"supply", "absent"})
CONTROLLER = "controller.clachan.internal"
"""The controller as VMs know it: its certificate always has this name, whatever else it is called."""
RESERVED_TENANTS = frozenset({"self", "all", "ungrouped", "localhost"})


def _matches(pattern: str, what: str) -> AfterValidator:
    # \Z, not $: a trailing newline is not part of a name
    compiled = re.compile(rf"{pattern}\Z")

    def check(value: str) -> str:
        if not compiled.match(value):
            raise ValueError(f"{what} {value!r}, expected {pattern}")
        return value

    return AfterValidator(check)


Name = Annotated[str, _matches(NAME, "name")]
Path = Annotated[str, StringConstraints(max_length=255), _matches(PATH, "path")]
Fqcn = Annotated[str, StringConstraints(max_length=128), _matches(FQCN, "software")]
Sha256 = Annotated[str, _matches(r"[0-9a-f]{64}", "sha256")]


def _links(given: list[str]) -> list[str]:
    found: dict[int, str] = {}
    for text in given:
        try:
            one = ip_address(text)
        except ValueError:
            break
        inner = one.is_loopback or one.is_link_local or one.is_unspecified or "%" in text
        if inner or one.is_multicast or one.is_reserved or one.version in found:
            break
        found[one.version] = str(one)
    else:
        return [found[version] for version in sorted(found)]
    raise ValueError(
        f"links {given}, expected at most one IPv4 and one IPv6 address of a host, neither loopback nor link-local"
    )


Links = Annotated[list[str], AfterValidator(_links)]
"""Where other nodes reach a node: IPv4 first."""


def is_name(value: str) -> bool:
    return re.fullmatch(NAME, value) is not None


def is_path(value: str) -> bool:
    return len(value) <= 255 and re.fullmatch(PATH, value) is not None


def tenant_of(path: str) -> str:
    return path.partition(".")[0]


def parent_of(path: str) -> str | None:
    """The parent's path; None for a root instance."""
    return path.rpartition(".")[0] if path.count(".") > 1 else None


def root_of(path: str) -> str:
    """The name of the root instance of the tree that the path is in."""
    return path.split(".")[1]
