"""How instances come along: from what runs and checks gave to memory and facts.

new -> applied (its run ended well, its services were started) -> converged (its promises passed) -> gone
"""

import hashlib
import logging
import pwd
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from clachan.agent.converge import Done, Result, Services
from clachan.agent.memory import Instance, Memory, Outage
from clachan.agent.planning import STEADY_SECONDS, Host, backoff
from clachan.agent.promises import Place
from clachan.agent.redaction import Redactor, sealed_values
from clachan.agent.settings import NodeConfig
from clachan.agent.slots import Documents, stamp
from clachan.agent.spool import Spool, timestamp
from clachan.agent.usage import Metered
from clachan.agent.watch import Watch, Watched
from clachan.contract.facts import (
    MESSAGE_CHARS,
    Content,
    InstanceFact,
    OutageFact,
    PromiseResult,
    PromisesFact,
    RequestsFact,
    canonical,
)
from clachan.contract.inventory import ObservedState

log = logging.getLogger(__name__)

POSTPONED_SECONDS = 2.0
QUIET_SECONDS = 2.0
"""After a start, failing promises are told only when they still fail then."""
MESSAGE_SECONDS = 300.0
"""Messages of promises that pass as before, as of how far something is, are told so seldom."""


class Progress:
    """Only the loop's thread uses it; `metered` may be read by any."""

    def __init__(self, config: NodeConfig, memory: Memory, spool: Spool, watch: Watch) -> None:
        self._config = config
        self._memory = memory
        self._spool = spool
        self.watch = watch
        self._hosts: Mapping[str, Host] = {}
        self._documents: dict[str, Documents] = {}
        self.metered: tuple[Metered, ...] = ()

    def take(self, hosts: Mapping[str, Host]) -> None:
        """A slice arrived: forget what was removed; what is missing otherwise is left alone, unwatched."""
        self._hosts = hosts
        for identity, known in list(self._memory.instances.items()):
            if identity in hosts:
                continue
            self.watch.end(identity)
            self._documents.pop(identity, None)
            if known.phase == "gone":
                self._memory.forget(identity)
        for host in hosts.values():
            self._returned(host)
        self._meter()

    def _returned(self, host: Host) -> None:
        """One that waited for a reference and is as it was before needs no run, but the controller must hear of it."""
        known = self._memory.instances.get(host.instance.id)
        if known is None:
            return
        if host.instance.state == "waiting":
            if known.state != "waiting":
                self._save(known.model_copy(update={"state": "waiting"}))
        elif known.state == "waiting" and self.is_applied(host) and known.phase == "converged":
            state: ObservedState = "stopped" if known.stopped else "failing" if known.outage else "started"
            fact = self._state(host, state, known.outage.message if known.outage else "")
            self._save(known.model_copy(update={"state": state}), fact)

    def is_applied(self, host: Host) -> bool:
        known = self._memory.instances.get(host.instance.id)
        return known is not None and known.phase in {"applied", "converged"} and known.applied == host.digest

    def unwatched(self) -> list[Host]:
        """Those that were applied and are not looked after: the agent has just started, or they were away."""
        return [one for one in self._hosts.values() if one.instance.id not in self._documents and self.is_applied(one)]

    def pushed(self) -> list[Host]:
        """Those whose slot somebody else wrote to since it was read: an operator's push."""
        return [one for one in self._hosts.values() if self.is_applied(one) and self._was_pushed(one)]

    def _was_pushed(self, host: Host) -> bool:
        known = self._documents.get(host.instance.id)
        return known is not None and known.stamp != stamp(Path(host.instance.slot.directory))

    def services(self, hosts: Iterable[Host]) -> Services:
        known = self._memory.instances
        return {h.instance.id: dict(known[h.instance.id].services) for h in hosts if h.instance.id in known}

    # -- runs -----------------------------------------------------------------------------------------------------

    def begin(self, host: Host) -> bool:
        """A run begins; False when it may not."""
        known = self._known(host)
        again = known.state == "failed" and known.tried == host.digest
        news = known.applied != host.digest and host.instance.state != "absent" and not again
        known = known.model_copy(
            update={
                "tried": host.digest,
                "path": host.path,
                "retry_at": None,
                "failures": known.failures if known.tried == host.digest else 0,
            }
        )
        if holder := self._holder(known):
            self._save(known)
            self._fail(host, f"slot {known.slot}: still holds {holder.path} ({holder.id}), expected it to be free")
            return False
        self.watch.end(known.id)
        facts: list[Content] = []
        if news:
            facts.append(self._state(host, "converging"))
            known = known.model_copy(update={"state": "converging"})
        self._save(known, *facts)
        return True

    def _known(self, host: Host) -> Instance:
        slot = host.instance.slot
        new = Instance(id=host.instance.id, path=host.path, slot=slot.name, user=slot.user)
        return self._memory.instances.get(host.instance.id) or new

    def _holder(self, wanting: Instance) -> Instance | None:
        """Another instance whose content is still in the slot: never mix two of them."""
        others = (one for one in self._memory.instances.values() if one.slot == wanting.slot and one.id != wanting.id)
        return next((one for one in others if one.phase != "gone"), None)

    def ended(self, result: Result) -> None:
        """A run, or settling without one, ended."""
        if result.run:
            self._spool.add(result.run)
        for done in result.hosts:
            if done.postponed:
                self._save(self._known(done.host).model_copy(update={"retry_at": time.time() + POSTPONED_SECONDS}))
            elif done.error is not None:
                self._save(self._known(done.host).model_copy(update={"applied": None}))
                self._fail(done.host, done.error)
            elif done.host.instance.state == "absent":
                self._removed(done.host)
            else:
                self._applied(done)
        self._meter()

    def cannot_begin(self, hosts: Iterable[Host], reason: str) -> None:
        for host in hosts:
            self._save(self._known(host).model_copy(update={"tried": host.digest}))
            self._fail(host, reason)

    def _fail(self, host: Host, message: str) -> None:
        """Another try after a pause that grows; told once while the reason stays the same."""
        known = self._known(host)
        failures = known.failures + 1
        message = _redactor(host).text(message)[:MESSAGE_CHARS]
        log.warning("instance %s: failed (%d): %s", host.path, failures, message)
        update = {
            "failures": failures,
            "retry_at": time.time() + backoff(failures),
            "message": message,
            "state": "failed",
        }
        news = (known.state, known.message) != ("failed", message)
        self._save(known.model_copy(update=update), *([self._state(host, "failed", message)] if news else []))

    def _removed(self, host: Host) -> None:
        known = self._known(host)
        self.watch.end(known.id)
        self._documents.pop(known.id, None)
        facts: list[Content] = [*self._outage_ended(known), self._state(host, "absent")]
        log.info("instance %s: absent", host.path)
        gone: dict[str, object] = {"phase": "gone", "services": {}, "outage": None, "state": "absent"}
        self._save(known.model_copy(update=gone | {"applied": host.digest}), *facts)

    def _applied(self, done: Done) -> None:
        """The slot's content is there and its services run: now its promises must pass."""
        host, known = done.host, self._known(done.host)
        adopted = known.phase == "converged" and known.applied == host.digest and not done.restarted
        healing = known.tried == host.digest and known.outage is not None
        self._documents[known.id] = done.documents
        update = {
            "applied": host.digest,
            "tried": host.digest,
            "revision": host.instance.revision,
            "services": done.services,
            "stopped": host.instance.state == "stopped",
            "phase": "converged" if adopted and not healing else "applied",
        }
        known = known.model_copy(update=update)
        facts: list[Content] = []
        requests = _digest(done.documents)
        if known.requests != requests:
            facts.append(self._requests(host, done.documents))
        known = known.model_copy(update={"requests": requests})
        self._save(known, *facts)
        if known.stopped:
            self._stopped(host)
            return
        watched = self._watch(host, done.documents)
        if not watched.promises:
            self._evaluate(known.id)

    def _watch(self, host: Host, documents: Documents) -> Watched:
        slot = host.instance.slot
        user = slot.user if self._config.mode == "root" else None
        place = Place(Path(slot.directory), user)
        return self.watch.begin(
            host.instance.id,
            slot.name,
            place,
            documents.promises,
            _redactor(host),
            children=_lacking(host, documents),
        )

    def _stopped(self, host: Host) -> None:
        known = self._known(host)
        self.watch.end(known.id)
        facts = [*self._outage_ended(known), self._state(host, "stopped")]
        log.info("instance %s: stopped", host.path)
        self._save(
            known.model_copy(update={"phase": "converged", "outage": None, "failures": 0, "state": "stopped"}), *facts
        )

    # -- promises -------------------------------------------------------------------------------------------------

    def check_due(self) -> bool:
        """Do the checks that are due; True when one brought something that a pass should see."""
        changed = [self._evaluate(instance) for instance in self.watch.run_due()]
        return any(changed)

    def checked(self, instance: str, generation: int, promise: str, result: PromiseResult) -> None:
        """A check ended in another thread."""
        if self.watch.deliver(instance, generation, promise, result):
            self._evaluate(instance)

    def _evaluate(self, identity: str) -> bool:
        """Compare what the promises say with what is known of the instance; True when that changed."""
        one, known, host = self.watch.watched[identity], self._memory.instances[identity], self._hosts.get(identity)
        if host is None:
            return False
        failing = one.failing
        facts: list[Content] = []
        if known.phase == "applied":
            if not failing:
                known, facts = self._converged(host, known)
            elif self._impatient(one) and known.retry_at is None:
                self._fail(host, _sentence(failing))
                known = self._memory.instances[identity]
        else:
            known, facts = self._steady(host, known, one)
        results, told = self._results(one, known)
        if not facts and not told:
            return False
        self._save(known.model_copy(update={"results": results}), *facts, *told)
        self._meter()
        return True

    def _impatient(self, one: Watched) -> bool:
        return time.monotonic() - one.began > self._config.patience_seconds and not one.waits_for_children

    def _converged(self, host: Host, known: Instance) -> tuple[Instance, list[Content]]:
        log.info("instance %s: started", host.path)
        healed = known.outage is not None
        update = {
            "phase": "converged",
            "converged_at": time.time(),
            "retry_at": None,
            "failures": known.failures if healed else 0,
            "message": "",
            "state": "started",
            "outage": None,
        }
        facts = [*self._outage_ended(known), self._state(host, "started")]
        return known.model_copy(update=update), facts

    def _steady(self, host: Host, known: Instance, one: Watched) -> tuple[Instance, list[Content]]:
        """Of a converged instance: an outage begins or ends."""
        failing = {name: result.message for name, result in one.results.items() if not result.ok}
        if failing and known.outage is None:
            steady = time.time() - known.converged_at > STEADY_SECONDS
            failures = 1 if steady else known.failures + 1
            outage = Outage(began=timestamp(), promises=sorted(failing), message=_sentence(failing)[:MESSAGE_CHARS])
            log.warning("instance %s: outage: %s", host.path, outage.message)
            update = {
                "outage": outage,
                "failures": failures,
                "retry_at": time.time() + backoff(failures),
                "state": "failing",
                "message": outage.message,
            }
            began = OutageFact(
                instance=known.id, phase="began", began=outage.began, promises=outage.promises, message=outage.message
            )
            return known.model_copy(update=update), [began, self._state(host, "failing", outage.message)]
        if known.outage is not None and not one.failing:
            return self._converged(host, known)
        return known, []

    def _results(self, one: Watched, known: Instance) -> tuple[dict[str, PromiseResult], list[Content]]:
        """The results to be remembered as reported, and the fact that reports them, if they are news."""
        now = time.monotonic()
        quiet = known.phase == "applied" and now - one.began < QUIET_SECONDS
        incomplete = len(one.results) < len(one.promises)
        before, after = ({name: result.ok for name, result in told.items()} for told in (known.results, one.results))
        same = before == after and (now - one.told < MESSAGE_SECONDS or known.results == one.results)
        if quiet or incomplete or same:
            return known.results, []
        one.told = now
        return dict(one.results), [PromisesFact(instance=known.id, results=dict(one.results))]

    # -- facts ----------------------------------------------------------------------------------------------------

    def _state(self, host: Host, state: ObservedState, message: str = "") -> InstanceFact:
        documents = self._documents.get(host.instance.id) if state in {"started", "stopped", "failing"} else None
        return InstanceFact(
            instance=host.instance.id,
            revision=host.instance.revision,
            state=state,
            message=message,
            published=documents.published if documents else None,
        )

    def _requests(self, host: Host, documents: Documents) -> RequestsFact:
        return RequestsFact(
            instance=host.instance.id, revision=host.instance.revision, children=dict(documents.requests)
        )

    def _outage_ended(self, known: Instance) -> list[Content]:
        outage = known.outage
        if outage is None:
            return []
        log.info("instance %s: outage ended", known.path)
        return [
            OutageFact(
                instance=known.id,
                phase="ended",
                began=outage.began,
                ended=timestamp(),
                promises=outage.promises,
                message=outage.message,
            )
        ]

    def _save(self, known: Instance, *facts: Content) -> None:
        """Facts first: killed between the two, they are told again, which is harmless; the other way they were lost."""
        if facts:
            self._spool.add(*facts)
        self._memory.save(known)

    def _uid(self, host: Host) -> int | None:
        """Of the slot's user, where each slot has one of its own."""
        try:
            return pwd.getpwnam(host.instance.slot.user).pw_uid if self._config.mode == "root" else None
        except KeyError:
            return None

    def _meter(self) -> None:
        """Whose use is to be measured: all that are started, also while a promise fails."""
        self.metered = tuple(
            Metered(identity, Path(host.instance.slot.directory), keys, self._uid(host), _kept(host))
            for identity, host in self._hosts.items()
            if (known := self._memory.instances.get(identity))
            and known.phase in {"applied", "converged"}
            and not known.stopped
            and (keys := tuple((known.slot, service) for service in known.services)) is not None
        )


def _kept(host: Host) -> tuple[Path, ...]:
    """Where a role keeps what is to outlive the slot: the home is two levels above it."""
    home = Path(host.instance.slot.directory).parents[1]
    return tuple(home / kind / host.instance.path for kind in ("volumes", "backups"))


def _digest(documents: Documents) -> str:
    """Of the children that an instance wants."""
    children = {name: one.model_dump(mode="json", by_alias=True) for name, one in documents.requests.items()}
    return hashlib.sha256(canonical(children)).hexdigest()


def _redactor(host: Host) -> Redactor:
    return Redactor(sealed_values(host.variables, host.instance.sealed))


def _sentence(failing: Mapping[str, str]) -> str:
    return "; ".join(f"promise {name}: {message}" for name, message in sorted(failing.items()))


def _lacking(host: Host, documents: Documents) -> dict[str, str]:
    """The children that are not in their wanted state, and what they are; those not requested any more are to go."""
    seen = {name: child.state for name, child in host.instance.children.items()}
    found = {name: (seen.get(name, "requested"), wanted.state) for name, wanted in documents.requests.items()}
    going = dict.fromkeys(seen.keys() - found.keys(), "going")
    return {name: state for name, (state, wanted) in found.items() if wanted not in {state, "absent"}} | going
