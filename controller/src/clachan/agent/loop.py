"""The agent's loop: takes events, makes passes, and is the only one who changes memory.

An event is a function that another thread hands over; it runs here. A pass follows when something changed, and at
least every `pass_seconds`.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from clachan.agent import runs
from clachan.agent.about import about
from clachan.agent.converge import Converger, Result
from clachan.agent.doctor import Doctor
from clachan.agent.layout import AgentError, Layout
from clachan.agent.link import Answers, Link, Renewal, Reporter, Slices, keep_doing
from clachan.agent.memory import Memory, Supply
from clachan.agent.planning import Group, Host, Plan, backoff, hosts_of, plan
from clachan.agent.progress import Progress
from clachan.agent.settings import Identity, NodeConfig
from clachan.agent.software import Download, Software
from clachan.agent.spool import Spool
from clachan.agent.streams import Carrier
from clachan.agent.supervisor import Supervisor
from clachan.agent.usage import Meter, meter_until
from clachan.agent.watch import ServiceProcesses, Watch
from clachan.client import ClientError
from clachan.contract.facts import NodeFact, RunFact, SupplyFact
from clachan.contract.inventory import Inventory, SupplyLine

log = logging.getLogger(__name__)

RUNS_AT_ONCE = 2
CHECKERS = 8

Event = Callable[[], object]


class Agent:
    """One node's agent. `run` blocks until `stop` is set."""

    def __init__(
        self,
        layout: Layout,
        config: NodeConfig,
        identity: Identity,
        supervisor: Supervisor,
        download: Download | None = None,
    ) -> None:
        """`download` fetches an artifact; default: from the controller."""
        self._layout = layout
        self._config = config
        self._node = identity
        self.stop = threading.Event()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        runs.clear_leftovers(layout.runs)
        self.memory = Memory(layout.state)
        self.spool = Spool(layout.spool, identity.id)
        self._software = Software(layout.software, Path(config.platform_path), of_image=config.of_image)
        self._converger = Converger(layout, config, self._software, supervisor, self.stop.is_set)
        self._jobs = ThreadPoolExecutor(RUNS_AT_ONCE + 1, "job")
        self._checks = ThreadPoolExecutor(CHECKERS, "check")
        self._services = ServiceProcesses(supervisor)
        watch = Watch(self._services, self._checks.submit, self._checked)
        self.progress = Progress(config, self.memory, self.spool, watch)
        self._link = Link(layout, config)
        self._download = download or self._from_controller
        self._slices = Slices(layout, self._link, lambda inventory: self._events.put(lambda: self.take(inventory)))
        self._inventory: Inventory | None = None
        self._hosts: dict[str, Host] = {}
        self._busy: set[str] = set()
        self._runs = 0
        self._supplying = False
        self._in_use: list[str] = []
        self._dirty = True
        self._tidy = False

    # -- life -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._report_node()
        if inventory := self._slices.load():
            self.take(inventory)
        for what, step in self._threads().items():
            threading.Thread(target=keep_doing, args=(self.stop, what, step), name=what, daemon=True).start()
        meter = Meter(self.spool, self._config.usage_seconds, self._services.find)
        usage = (self.stop, meter, self._config.usage_seconds, lambda: self.progress.metered)
        threading.Thread(target=meter_until, args=usage, name="usage", daemon=True).start()
        log.info("agent of node %s: started", self._node.name)
        while not self.stop.is_set():
            self.step()
        self.close()
        log.info("agent of node %s: stopped", self._node.name)

    def close(self) -> None:
        """End the jobs and release the files."""
        self._jobs.shutdown(wait=True, cancel_futures=True)
        self._checks.shutdown(wait=False, cancel_futures=True)
        self.memory.close()
        self.spool.close()

    def _threads(self) -> dict[str, Callable[[], None]]:
        reporter = Reporter(self.spool, self._link, self.stop)
        return {
            "poll": self._slices.poll,
            "report": reporter.step,
            "questions": self._answers().step,
            "certificate": Renewal(self._layout, self._link, self.stop).step,
        }

    def _answers(self) -> Answers:
        return Answers(self._link, self._host, Carrier(self._link).begin, Doctor(self._layout, self._link).begin)

    def end(self) -> None:
        """Make `run` return soon; may be called from a signal handler or any thread."""
        self.stop.set()
        self._events.put(lambda: None)

    def step(self) -> None:
        """Wait for an event or until something is due, then do it, and make a pass when that may bring something."""
        due = self.progress.watch.next_due()
        longest = self._config.pass_seconds
        timeout = longest if due is None else min(longest, max(0.0, due - time.monotonic()))
        try:
            event = self._events.get(timeout=timeout) if not self._dirty else self._events.get_nowait()
            while True:
                event()
                self._dirty = True
                event = self._events.get_nowait()
        except queue.Empty:
            pass
        if self.progress.check_due() or timeout >= longest:
            self._dirty = True
        if self._dirty and not self.stop.is_set():
            self._dirty = False
            self._pass()

    def _checked(self, *result: Any) -> None:
        self._events.put(lambda: self.progress.checked(*result))

    def _job(self, work: Callable[[], Any], after: Callable[[Any], None]) -> None:
        """Run `work` in a job's thread, then `after` with its result here."""

        def take(future: Future[Any]) -> None:
            # an error that the job did not foresee is raised here, in the loop: the agent ends, whoever supervises it
            # starts it again, and it goes on from what is on disk
            if not future.cancelled():
                self._events.put(lambda: after(future.result()))

        self._jobs.submit(work).add_done_callback(take)

    # -- passes ---------------------------------------------------------------------------------------------------

    def take(self, inventory: Inventory) -> None:
        """A slice arrived."""
        self._inventory = inventory
        self._dirty = True
        self._hosts, problems = hosts_of(inventory)
        for problem in problems:
            log.error("slice: %s; left alone", problem)
        self.progress.take(self._hosts)
        self._tidy = True
        lines = {line.id for line in inventory.supplies}
        for gone in [supply for supply in self.memory.supplies if supply not in lines]:
            self.memory.forget_supply(gone)

    def plan(self) -> Plan:
        """What a pass would start now."""
        assert self._inventory is not None  # there is a slice
        digests = {host.instance.digest for host in self._hosts.values()}
        ready = {digest for digest in digests if self._software.present(digest)}
        known = self.memory
        lines = self._inventory.supplies
        return plan(self._hosts, known.instances, lines, known.supplies, ready=ready, busy=self._busy, now=time.time())

    def _pass(self) -> None:
        if self._inventory is None:
            return
        self._adopt()
        todo = self.plan()
        if not self._supplying:
            self._bring(todo, self._inventory)
        for group in todo.groups:
            if self._runs < RUNS_AT_ONCE:
                self._start(group, self._inventory)

    def _start(self, group: Group, inventory: Inventory) -> None:
        """Start a run in a job's thread."""
        hosts = tuple(host for host in group.hosts if self.progress.begin(host))
        if not hosts:
            return
        group = replace(group, hosts=hosts)
        self._occupy(hosts, group.digest)
        services = self.progress.services(hosts)

        def work() -> Result:
            if group.purpose == "absent":
                return self._converger.remove(group, inventory)
            return self._converger.converge(group, inventory, services)

        self._job(work, lambda result: self._ended(result, hosts, group.digest))

    def _occupy(self, hosts: tuple[Host, ...], digest: str) -> None:
        self._runs += 1
        self._in_use.append(digest)
        self._busy |= {host.instance.id for host in hosts}

    def _ended(self, result: Result, hosts: tuple[Host, ...], digest: str) -> None:
        self._runs -= 1
        self._in_use.remove(digest)
        self._tidy = True
        self._busy -= {host.instance.id for host in hosts}
        if not self.stop.is_set():  # a run that we killed says nothing of its hosts: they are done again
            self.progress.ended(result)

    def _adopt(self) -> None:
        """Supervise and watch again, without a run, what was applied before or was pushed by an operator."""
        found = [*self.progress.unwatched(), *self.progress.pushed()]
        hosts = tuple(host for host in found if host.instance.id not in self._busy)
        if hosts:
            self._occupy(hosts, "")
            services = self.progress.services(hosts)
            self._job(lambda: self._converger.settle(hosts, services), lambda result: self._ended(result, hosts, ""))

    # -- supplies -------------------------------------------------------------------------------------------------

    def _bring(self, todo: Plan, inventory: Inventory) -> None:
        """One thing at a time, in a lane of its own, so that runs of instances go on beside it."""
        if todo.supplies and self._runs < RUNS_AT_ONCE:
            self._supply(todo.supplies[0], inventory)
        elif todo.fetch:
            self._fetch(todo.fetch[0], inventory)
        elif self._tidy and not todo.supplies:
            self._tidy = False
            self._remove_unused(inventory)

    def _remove_unused(self, inventory: Inventory) -> None:
        """Remove the files of software that neither the slice nor a run needs any more."""
        needed = {host.instance.digest for host in self._hosts.values()} | set(self._in_use)
        needed |= {line.digest for line in inventory.supplies if line.state == "present"}
        self._supplying = True

        def after(removed: list[str]) -> None:
            self._supplying = False
            for digest in removed:
                log.info("software %s: removed, nothing needs it", digest[:12])

        self._job(lambda: self._software.keep_only(needed), after)

    def _supply(self, line: SupplyLine, inventory: Inventory) -> None:
        """Make a supply present or absent; its run counts as one of those at once."""
        users = sorted(host.path for host in self._hosts.values() if host.instance.digest == line.digest)
        if line.state == "absent" and users:
            message = f"software {line.software}: still used by {', '.join(users[:5])}, expected no instance of it"
            self._supplied(line, SupplyFact(supply=line.id, digest=line.digest, state="failed", message=message))
            return
        self._supplying = True
        self._runs += 1

        def after(result: tuple[SupplyFact, RunFact | None]) -> None:
            self._supplying = False
            self._runs -= 1
            fact, run = result
            if run:
                self.spool.add(run)
            self._supplied(line, fact)

        self._job(lambda: self._converger.supply(line, inventory, self._download), after)

    def _supplied(self, line: SupplyLine, fact: SupplyFact) -> None:
        known = self.memory.supplies.get(line.id)
        failures = (known.failures if known and known.digest == line.digest else 0) + 1
        failed = fact.state == "failed"
        if failed:
            log.error("supply of %s: %s", line.software, fact.message)
        else:
            log.info("supply of %s: %s", line.software, fact.state)
        if known is None or (known.digest, known.state, known.message) != (fact.digest, fact.state, fact.message):
            self.spool.add(fact)
        self.memory.save_supply(
            Supply(
                id=line.id,
                digest=line.digest,
                state=fact.state,
                failures=failures if failed else 0,
                retry_at=time.time() + backoff(failures) if failed else None,
                message=fact.message,
            )
        )

    def _fetch(self, digest: str, inventory: Inventory) -> None:
        """Bring the files of software that instances need and no supply brings."""
        self._supplying = True

        def work() -> str | None:
            try:
                self._software.bring(digest, inventory.software.get(digest), self._download)
            except Exception as error:  # the network's, the disk's, the artifact's
                return f"software {digest[:12]}: {error}"
            return None

        def after(error: str | None) -> None:
            self._supplying = False
            if error:
                self.progress.cannot_begin([h for h in self._hosts.values() if h.instance.digest == digest], error)

        self._job(work, after)

    def _from_controller(self, sha256: str, destination: Path) -> None:
        try:
            self._link.client().download_artifact(sha256, destination)
        except ClientError as error:
            raise AgentError(f"artifact {sha256[:12]}: {error}") from error

    # -- the node -------------------------------------------------------------------------------------------------

    def _host(self, instance: str) -> Host | None:
        return self._hosts.get(instance)

    def _report_node(self) -> None:
        """Tell what this node is, when that is news."""
        fact = NodeFact.model_validate(about(self._config.model_dump()))
        text = fact.model_dump_json()
        if self.memory.notes.get("node") != text:
            self.spool.add(fact)
            self.memory.note("node", text)
