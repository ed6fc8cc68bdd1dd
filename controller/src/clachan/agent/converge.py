"""From a group of hosts to settled slots: what happens in a worker's thread, one job at a time.

A job holds the lock of each of its slots from before the run until its services were started, so a push never works
on a slot at the same time. It gets what it needs of the memory and gives back what came of it; only the loop's thread
writes memory.
"""

import fcntl
import logging
import os
import pwd
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from clachan.agent import runs, slots
from clachan.agent.layout import AgentError, Layout
from clachan.agent.planning import Group, Host
from clachan.agent.processes import end_all_of
from clachan.agent.settings import NodeConfig
from clachan.agent.software import Software
from clachan.agent.supervisor import SlotServices, Supervisor, Unit
from clachan.contract.facts import MESSAGE_CHARS, RunFact, SupplyFact
from clachan.contract.inventory import Inventory, SupplyLine

log = logging.getLogger(__name__)

Services = Mapping[str, Mapping[str, str]]
"""Instance id -> service -> the digest that it was last started with."""


@dataclass
class Done:
    """What came of one host."""

    host: Host
    error: str | None = None
    postponed: bool = False
    """Somebody else (a push) holds the slot's lock: try again soon."""
    documents: slots.Documents = field(default_factory=slots.Documents)
    services: dict[str, str] = field(default_factory=dict)
    restarted: bool = False


@dataclass
class Result:
    hosts: list[Done]
    run: RunFact | None = None


class Converger:
    """The jobs; several may run at once, on different slots."""

    def __init__(
        self,
        layout: Layout,
        config: NodeConfig,
        software: Software,
        supervisor: Supervisor,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._layout = layout
        self._config = config
        self._software = software
        self._supervisor = supervisor
        self._stopping = stopping

    def converge(self, group: Group, inventory: Inventory, services: Services) -> Result:
        """Run the role of each host, then settle those that did not fail."""
        with ExitStack() as locks:
            done = {host.path: self._open(host, locks) for host in group.hosts}
            run = self._run(group, inventory, _good(done.values()), done)
            self._guarded(_good(done.values()), lambda good: self._settle(good, services))
        return Result(list(done.values()), run)

    def settle(self, hosts: Iterable[Host], services: Services) -> Result:
        """Without a run: supervise what stands in the slots, and finish restarts that a killed agent left."""
        with ExitStack() as locks:
            done = [self._open(host, locks) for host in hosts]
            self._guarded(_good(done), lambda good: self._settle(good, services))
        return Result(done)

    def remove(self, group: Group, inventory: Inventory) -> Result:
        """Run the role's absent entry, stop the services, end what is left of the slot's user, empty the slot."""
        with ExitStack() as locks:
            done = {host.path: self._open(host, locks) for host in group.hosts}
            run = None
            if self._software.has_entry(group.software, group.digest, group.entry):
                run = self._run(group, inventory, _good(done.values()), done)
            self._guarded(_good(done.values()), self._clear)
        return Result(list(done.values()), run)

    def supply(
        self, line: SupplyLine, inventory: Inventory, download: Callable[[str, Path], None]
    ) -> tuple[SupplyFact, RunFact | None]:
        """Make the software's files present, and run the role's supply entry when it has one."""
        fact = SupplyFact(supply=line.id, digest=line.digest, state=line.state)
        run = None
        try:
            if line.state == "present":
                self._software.bring(line.digest, inventory.software.get(line.digest), download)
                if self._software.has_entry(line.software, line.digest, "supply"):
                    outcome = self._run_supply(line, inventory)
                    run = outcome.fact
                    for message in outcome.failures.values():
                        fact = fact.model_copy(update={"state": "failed", "message": message})
        except (AgentError, OSError) as error:
            fact = fact.model_copy(update={"state": "failed", "message": str(error)[:MESSAGE_CHARS]})
        return fact, run

    # -- parts ----------------------------------------------------------------------------------------------------

    def _guarded(self, good: list[Done], work: Callable[[list[Done]], None]) -> None:
        """Do it; what goes wrong is these hosts' failure, to be tried again, and not the agent's end."""
        try:
            work(good)
        except Exception as error:
            if not isinstance(error, AgentError | OSError):
                log.exception("slots: an error that nobody foresaw")
            for one in good:
                one.error = one.error or f"{type(error).__name__}: {error}"

    def _open(self, host: Host, locks: ExitStack) -> Done:
        """Lock and prepare the slot."""
        slot = host.instance.slot
        try:
            slots.check_slot(slot, self._config)
            if not _lock(Path(self._config.slots_directory) / f"{slot.name}.lock", locks):
                return Done(host, error=f"slot {slot.name}: locked by another run", postponed=True)
            slots.prepare(Path(slot.directory), slot.user, self._config.mode == "root")
        except (AgentError, OSError, KeyError) as error:
            return Done(host, error=f"slot {slot.name}: {error}")
        return Done(host)

    def _run(self, group: Group, inventory: Inventory, good: list[Done], done: dict[str, Done]) -> RunFact | None:
        """Run Ansible for these hosts and note who failed."""
        if not good:
            return None
        paths = tuple(one.host.path for one in good)
        wanted = runs.Run(
            group.purpose,
            runs.restricted(inventory, paths),
            paths,
            self._software.collections(group.digest),
            software=group.software,
            entry=group.entry,
        )
        log.info("run %s: %s of %s", wanted.identity[:8], group.purpose, " ".join(paths))
        outcome = self._ansible(wanted)
        for path, message in outcome.failures.items():
            done[path].error = message
        return outcome.fact

    def _ansible(self, wanted: runs.Run) -> runs.Outcome:
        outcome = runs.run(wanted, self._layout.runs, self._layout.home, self._stopping)
        fact = outcome.fact
        log.info("run %s: %s, changed %d, failed %d", fact.run[:8], fact.status, fact.changed, len(fact.failures))
        runs.retain(self._layout.runs, self._config.runs_kept, self._config.runs_days)
        return outcome

    def _run_supply(self, line: SupplyLine, inventory: Inventory) -> runs.Outcome:
        node = inventory.node or self._config.node_name
        only_node = runs.restricted(inventory, [node] if node in inventory.records else [])
        supply = {"software": line.software, "digest": line.digest}
        records = {node: {**only_node.records.get(node, {}), "clachan_supply": supply}}
        only_node = only_node.model_copy(update={"records": records, "groupings": {"nodes": [node]}})
        found = self._software.collections(line.digest)
        wanted = runs.Run("supply", only_node, (node,), found, software=line.software, entry="supply")
        log.info("run %s: supply of %s", wanted.identity[:8], line.software)
        return self._ansible(wanted)

    def _settle(self, good: list[Done], services: Services) -> None:
        """Read what the roles left, and make exactly those services run."""
        for one in good:
            try:
                one.documents = slots.read(Path(one.host.instance.slot.directory))
            except AgentError as error:
                one.error = str(error)
        good = _good(good)
        self._supervisor.apply([self._services(one, services.get(one.host.instance.id, {})) for one in good])
        for one in good:
            one.services = {} if _stopped(one.host) else one.documents.digests

    def _services(self, one: Done, before: Mapping[str, str]) -> SlotServices:
        instance, digests = one.host.instance, one.documents.digests
        wanted = {} if _stopped(one.host) else one.documents.services
        one.restarted = any(before.get(name) != digests[name] for name in wanted)
        return SlotServices(
            slot=instance.slot.name,
            directory=Path(instance.slot.directory),
            user=instance.slot.user if self._config.mode == "root" else None,
            units={
                name: Unit(service.stop_seconds, restart=before.get(name) != digests[name])
                for name, service in wanted.items()
            },
        )

    def _clear(self, good: list[Done]) -> None:
        found = [one.host.instance.slot for one in good]
        self._supervisor.apply([SlotServices(slot.name, Path(slot.directory), None, {}) for slot in found])
        for slot in found:
            if self._config.mode == "root":
                end_all_of(pwd.getpwnam(slot.user).pw_uid)
            slots.empty(Path(slot.directory))


def _good(done: Iterable[Done]) -> list[Done]:
    return [one for one in done if one.error is None]


def _stopped(host: Host) -> bool:
    return host.instance.state == "stopped"


def _lock(path: Path, locks: ExitStack) -> bool:
    """Take the slot's lock without waiting; it is held until `locks` is closed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    locks.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
