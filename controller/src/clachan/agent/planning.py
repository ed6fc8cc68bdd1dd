"""The pass: what is to be done now, decided from the slice and the memory alone (no I/O, no clock of its own)."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue, ValidationError

from clachan.agent.memory import Instance, Supply
from clachan.agent.software import PLATFORM
from clachan.contract.facts import canonical
from clachan.contract.inventory import InstanceVariables, Inventory, SupplyLine

FIRST_BACKOFF = 5.0
LONGEST_BACKOFF = 300.0
STEADY_SECONDS = 300.0
"""An instance that was converged for so long has its failures forgotten."""
HOSTS_PER_RUN = 100

Purpose = Literal["converge", "absent"]
_Key = tuple[Purpose, str, str, str]


@dataclass(frozen=True)
class Host:
    """An instance in the slice."""

    path: str
    instance: InstanceVariables
    variables: dict[str, JsonValue]
    digest: str
    """Of all variables: what the slot's content is made of."""


@dataclass(frozen=True)
class Group:
    """Hosts for one run: of one software and one of its entry points, so that its role is loaded once for all."""

    purpose: Purpose
    software: str
    digest: str
    entry: str
    hosts: tuple[Host, ...]


@dataclass(frozen=True)
class Plan:
    groups: tuple[Group, ...]
    supplies: tuple[SupplyLine, ...]
    """To be made present or absent."""
    fetch: tuple[str, ...]
    """Digests of software that instances wait for and no supply brings."""


def backoff(failures: int) -> float:
    """Seconds until the next try after so many failures: 5, 10, 20 ... at most 300; it never stops."""
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(max(failures - 1, 0), 10))


def hosts_of(inventory: Inventory) -> tuple[dict[str, Host], list[str]]:
    """Instance id -> host, and what is wrong with the hosts that cannot be read (they are left alone)."""
    hosts: dict[str, Host] = {}
    problems = []
    for path, variables in inventory.records.items():
        if "clachan_instance" not in variables:
            continue
        try:
            instance = InstanceVariables.model_validate(variables["clachan_instance"])
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            problems.append(f"host {path}: {'.'.join(map(str, first['loc']))} {first['msg']}")
            continue
        digest = hashlib.sha256(canonical(variables)).hexdigest()
        hosts[instance.id] = Host(path, instance, variables, digest)
    return hosts, problems


def due(host: Host, known: Instance | None, now: float) -> bool:
    """Whether the host needs a run: it changed, it was left half done, or its time to try again has come."""
    if host.instance.state == "waiting":
        return False
    if known is None or known.tried != host.digest:
        return True
    if known.retry_at is not None:
        # a clock that was set back must not put the next try off for longer than the longest back-off
        return now >= known.retry_at or now < known.retry_at - LONGEST_BACKOFF
    return known.applied != host.digest and known.phase != "gone"


def plan(
    hosts: Mapping[str, Host],
    memory: Mapping[str, Instance],
    lines: Collection[SupplyLine],
    supplies: Mapping[str, Supply],
    *,
    ready: Collection[str],
    busy: Collection[str],
    now: float,
) -> Plan:
    """`ready`: digests of software whose files are on this node; `busy`: ids of the instances in a run.

    An instance waits for its software's files and, when there is one, for its supply.
    """
    open_lines = tuple(line for line in lines if _supply_due(line, supplies.get(line.id), now))
    unsupplied = {
        (line.software, line.digest)
        for line in lines
        if line.state == "present" and not _supplied(line, supplies.get(line.id))
    }
    waiting_for: set[str] = set()
    groups: dict[_Key, list[Host]] = {}
    for identity, host in hosts.items():
        if identity in busy or not due(host, memory.get(identity), now):
            continue
        software = (host.instance.software, host.instance.digest)
        # what a former platform made, the present one removes: the former's files never come again
        if host.instance.state == "absent" and (software[1] in ready or software[0].startswith(f"{PLATFORM}.")):
            groups.setdefault(("absent", *software, "absent"), []).append(host)
        elif host.instance.digest not in ready:
            waiting_for.add(host.instance.digest)
        elif software not in unsupplied:
            groups.setdefault(("converge", *software, host.instance.type), []).append(host)
    brought = {line.digest for line in lines if line.state == "present"}
    return Plan(
        tuple(group for key, found in groups.items() for group in _groups(key, found)),
        open_lines,
        tuple(sorted(waiting_for - brought)),
    )


def _groups(key: _Key, hosts: list[Host]) -> Iterable[Group]:
    for start in range(0, len(hosts), HOSTS_PER_RUN):
        yield Group(*key, tuple(hosts[start : start + HOSTS_PER_RUN]))


def _supplied(line: SupplyLine, known: Supply | None) -> bool:
    return known is not None and known.digest == line.digest and known.state == "present"


def _supply_due(line: SupplyLine, known: Supply | None, now: float) -> bool:
    if known is None or known.digest != line.digest:
        return True
    if known.state == "failed":
        retry_at = known.retry_at or 0
        return now >= retry_at or now < retry_at - LONGEST_BACKOFF
    return known.state != line.state
