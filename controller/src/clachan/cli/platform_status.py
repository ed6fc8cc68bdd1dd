"""`clachan status`: what runs where, from the supervisors of this machine and from the controller."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clachan.cli import platform_processes

if TYPE_CHECKING:
    from clachan.contract.api import InstanceView, NodeView

NEEDED = ("agent", "controller", "supervisord")
MIB = 1024 * 1024


@dataclass(frozen=True)
class Running:
    """A program of this machine; memory in bytes, of all its processes."""

    name: str
    state: str
    pid: int | None
    memory: int


@dataclass(frozen=True)
class Found:
    """What `look` saw."""

    home: Path
    url: str | None
    error: str | None
    """Why the controller could not be asked."""
    programs: list[Running] = field(default_factory=list)
    nodes: "list[NodeView]" = field(default_factory=list)
    instances: "list[InstanceView]" = field(default_factory=list)

    @property
    def up(self) -> bool:
        running = {program.name for program in self.programs if program.state == "RUNNING"}
        return self.error is None and running.issuperset(NEEDED)

    def memory_of(self, instance: "InstanceView") -> int:
        """Bytes of the instance's services, when they are on this machine."""
        prefix = f"slot-{instance.slot.name}_" if instance.slot else "-"
        return sum(program.memory for program in self.programs if program.name.startswith(prefix))


def look(home: Path) -> Found:
    from clachan.client import Client, ClientError
    from clachan.client.home import load_credentials

    running = [_measured(program) for program in platform_processes.programs(home)]
    url = None
    try:
        url = load_credentials(home).url
        with Client.from_credentials(home) as client:
            return Found(home, url, None, running, list(client.nodes()), list(client.instances()))
    except ClientError as error:
        return Found(home, url, str(error), running)


def _measured(program: platform_processes.Program) -> Running:
    # supervisord's own: what it keeps running is counted where it belongs
    measure = platform_processes.resident_one if program.name == "supervisord" else platform_processes.resident
    return Running(program.name, program.state, program.pid, measure(program.pid) if program.pid else 0)


def print_json(found: Found) -> None:
    document = {
        "home": str(found.home),
        "url": found.url,
        "up": found.up,
        "error": found.error,
        "programs": [asdict(program) for program in found.programs],
        "nodes": [node.model_dump(mode="json", by_alias=True) for node in found.nodes],
        "instances": [instance.model_dump(mode="json", by_alias=True) for instance in found.instances],
    }
    print(json.dumps(document, indent=2))


def show(found: Found) -> None:
    from clachan.cli.output import table

    print(f"home        {found.home}")
    trouble = f": {found.error.removeprefix(f'controller {found.url}: ')}" if found.error else ""
    print(f"controller  {found.url or 'none yet'}{trouble}\n")
    if not found.programs:
        print("Nothing runs. `clachan up` starts it.")
        return
    table(
        ("PROGRAM", "STATE", "PID", "MEMORY"),
        [
            (one.name, one.state.lower(), one.pid, _mib(one.memory))
            for one in found.programs
            if not one.name.startswith("slot-")
        ],
    )
    if found.nodes:
        print()
        table(("NODE", "STATE", "MODE", "SLOTS", "ADDRESSES"), [_node(node) for node in found.nodes])
    if found.instances:
        print()
        table(
            ("INSTANCE", "SOFTWARE", "STATE", "PROMISES", "NODE", "ADDRESS", "MEMORY"),
            [_instance(found, instance) for instance in found.instances],
        )


def _node(node: "NodeView") -> tuple[object, ...]:
    state = node.state if node.online or node.state != "active" else "offline"
    return node.name, state, node.mode, f"{node.slots_used} of {node.slots} used", node.addresses.ipv4


def _instance(found: Found, instance: "InstanceView") -> tuple[object, ...]:
    promises = instance.observed.promises
    address = instance.published.get("url") or (instance.slot.addresses.ipv4 if instance.slot else None)
    return (
        instance.path,
        instance.software,
        instance.observed.state,
        f"{sum(promise.ok for promise in promises.values())} of {len(promises)} pass",
        instance.node,
        address,
        _mib(found.memory_of(instance)),
    )


def _mib(count: int) -> str | None:
    return f"{count / MIB:.0f} MiB" if count else None


def show_next_steps(found: Found, page: Path | None) -> None:
    """What a newcomer may do now."""
    command = command_name()
    steps = [
        (f"{command} status", "what runs where"),
        (f"{command} instance list", "the instances and their promises"),
        (f"{command} instance show home.lake --reveal", "url: the lake's pages; token: to log in there"),
        (f"{command} instance logs home.lake", "what the lake says"),
        (f"{command} demo --input DIR", "bring WAV recordings of your own through the lake"),
        (f"{command} lab open", "the lab in the browser; up --lab orders one"),
        (f"{command} demo usage", "in a notebook: what the platform consumes; demo wav: a recording"),
        (f"{command} down", "stop everything, keep the data"),
    ]
    print("\nNext:")
    if page is not None:
        print(f"  open {page}")
    width = max(len(name) for name, _ in steps)
    for name, what in steps:
        print(f"  {name.ljust(width)}  {what}")


def command_name() -> str:
    """As the user calls this command."""
    import os

    return "./clachan" if "CLACHAN_CHECKOUT" in os.environ else "clachan"
