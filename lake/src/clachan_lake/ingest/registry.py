"""Policies and tokens as the service knows them: in memory, so that a request costs no look into the database.

What it knows is one object that is replaced when something has changed: at once by `refresh` after a change of this
process, within a second for changes of others (`tending` calls it). Asking it is for any thread.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hmac import compare_digest
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from clachan_lake.access import token as tokens
from clachan_lake.access.guarding import CHALLENGE, unknown
from clachan_lake.access.principal import OWNER, Principal
from clachan_lake.access.token import Token
from clachan_lake.errors import TakenError
from clachan_lake.format import Document
from clachan_lake.ingest.usage import RETRY_SECONDS, QuotaError, Usage
from clachan_lake.local import LocalLake
from clachan_lake.names import check_name
from clachan_lake.policies import policy as policies
from clachan_lake.policies.policy import SYSTEM, Policy
from clachan_lake.refusal import RefusedError

log = logging.getLogger(__name__)
T = TypeVar("T")
FLUENT = "fluent."
"""What begins with it are fluentd's own messages."""
SHOWN = 10
NONE: Mapping[str, frozenset[str]] = MappingProxyType({})


@dataclass(frozen=True)
class Target:
    """Where a chunk goes. `kind` "dead": to the dead letters, for the reason `refused`. `lenient`: what a repeat would
    not mend is a dead letter instead of a refusal, since the sender would repeat it for ever."""

    kind: Literal["stream", "array", "dead"]
    name: str
    policy_name: str
    policy: Policy
    tag: str
    groups: Mapping[str, str]
    principal: Principal
    lenient: bool = False
    refused: str = ""

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """For when it is made."""
        return self.policy.attributes(self.tag, self.groups)


@dataclass(frozen=True)
class _Known:
    """`tokens` by digest; `window` see `Registry.window`."""

    policies: Mapping[str, Policy]
    tokens: Mapping[bytes, tuple[str, Token, Principal]]
    window: float


class Registry:
    def __init__(
        self, lake: LocalLake, token: str, others: Mapping[str, frozenset[str]] = NONE, dead_bytes: int = 256 << 20
    ) -> None:
        """`lake` is a session of its own, which `close` closes; `token` is the one of the service's file, `others` are
        those of further files, with their scopes; `dead_bytes` are kept of dead letters."""
        self._lake = lake
        self._own = [(tokens.digest(token), OWNER)]
        self._own += [(tokens.digest(other), Principal("", scopes)) for other, scopes in others.items()]
        self.usage = Usage()
        self.dead_bytes = dead_bytes
        self._lock = threading.Lock()
        self._seen = b""
        self._policies = _Watched("policies", policies.read)
        self._tokens = _Watched("tokens", tokens.read)
        self._known = _Known({}, {}, 0)
        self.refresh()

    def close(self) -> None:
        with self._lock:
            self._lake.close()

    def refresh(self) -> None:
        """Learn what was committed."""
        with self._lock:
            self._lake.refresh()
            if self._lake.tid == self._seen:
                return
            root = self._lake.root()
            if self._policies.refresh(root) | self._tokens.refresh(root):
                found = [(key, token) for key, token in self._tokens.items()]
                self._known = _Known(
                    dict(self._policies.items()),
                    {bytes.fromhex(token.sha256): (key, token, _principal(key, token)) for key, token in found},
                    max((token.same_content_seconds for _, token in found), default=0),
                )
            self._seen = self._lake.tid

    @property
    def window(self) -> float:
        """The longest time, in seconds, for which equal content of a token is recognised."""
        return self._known.window

    @property
    def policies(self) -> Mapping[str, Policy]:
        return self._known.policies

    def principal(self, token: str) -> Principal:
        """Whose token it is; raises RefusedError (401)."""
        given = tokens.digest(token)
        for own, holder in self._own:
            if compare_digest(given, own):
                return holder
        found = self._known.tokens.get(given)
        # the table's own comparison is of digests, of which a sender can aim at none
        if found is None or not compare_digest(given, bytes.fromhex(found[1].sha256)):
            raise unknown()
        key, known, principal = found
        if known.revoked is not None or known.expires is not None:
            _check_valid(key, known)
        return principal

    def resolve(self, name: str, tag: str, principal: Principal, *, length: int = 0, lenient: bool = False) -> Target:
        """Where `length` bytes go that come to the policy `name` with a tag. `lenient`: see Target. Raises RefusedError
        (404 no such policy, 400 a tag that it refuses, 413 and 507 its quota), TakenError for a name that cannot be."""
        policy = self._known.policies.get(name)
        if policy is None:
            raise RefusedError(404, f"policy: {name!r:.80}, expected one of {self._names()}")
        place = policy.place(tag)
        ours = lenient and tag.startswith(FLUENT) and "fluent" not in policy.pattern
        if place is None or ours:
            reason = (
                f"reference: {tag!r:.200}, expected a tag that the pattern of policy {name} matches: "
                f"{policy.pattern!r:.200}"
            )
            if not lenient and policy.unmatched != "dead":
                raise RefusedError(400, reason, field="reference")
            return Target("dead", tag, name, policy, tag, {}, principal, lenient, reason)
        made, groups = place
        try:
            check_target(policy.into, made)
        except TakenError as error:
            if not lenient:
                raise
            return Target("dead", tag, name, policy, tag, {}, principal, lenient, str(error))
        if policy.quota_bytes is not None:
            self._check_room(name, policy, length)
        return Target(
            "array" if policy.into == "array" else "stream", made, name, policy, tag, groups, principal, lenient
        )

    def _check_room(self, name: str, policy: Policy, length: int) -> None:
        assert policy.quota_bytes is not None
        if length > policy.quota_bytes:
            raise RefusedError(
                413, f"body: {length} bytes, expected at most the quota_bytes of policy {name}: {policy.quota_bytes}"
            )
        try:
            self.usage.check_room(name, policy, length)
        except QuotaError as error:
            raise RefusedError(507, str(error), headers={"Retry-After": str(RETRY_SECONDS)}) from None

    def _names(self) -> str:
        known = sorted(self._known.policies)
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        return ", ".join(known[:SHOWN]) + more


def check_target(kind: str, name: str) -> None:
    """Raises TakenError for a name that no sender may give."""
    check_name(kind, name)
    if name.startswith(SYSTEM):
        raise TakenError(f"{kind} name: {name!r:.80}, expected none of the lake's own, which begin with {SYSTEM}")


def _principal(key: str, token: Token) -> Principal:
    return Principal(key, frozenset(token.scopes), token.expires, token.same_content_seconds)


def _check_valid(key: str, token: Token) -> None:
    if not token.valid(time.time_ns() // 10**6):
        why = "revoked" if token.revoked is not None else "expired"
        raise RefusedError(401, f"credentials: token {key} is {why}, expected one that holds", headers=CHALLENGE)


class _Watched(Generic[T]):
    """The documents of one kind, each read again only when it is another one than before."""

    def __init__(self, kind: str, read: Callable[[str, Any], T]) -> None:
        self._kind = kind
        self._read = read
        self._known: dict[str, tuple[Document, bytes, T | None]] = {}

    def items(self) -> Iterator[tuple[str, T]]:
        for key, (_, _, value) in self._known.items():
            if value is not None:
                yield key, value

    def refresh(self, root: Any) -> bool:
        """Whether anything has changed."""
        before = self._known
        self._known = {key: self._look(key, document) for key, document in root[self._kind].items()}
        return before.keys() != self._known.keys() or any(
            before[key][1] != serial for key, (_, serial, _) in self._known.items()
        )

    def _look(self, key: str, document: Document) -> tuple[Document, bytes, T | None]:
        found = self._known.get(key)
        # what another commit changed, this session has let go of: whatever is still loaded is as it was read
        if found and found[0] is document and document._p_changed is not None:
            return found
        document._p_activate()
        if found and found[1] == document._p_serial:
            return document, found[1], found[2]
        try:
            return document, document._p_serial, self._read(key, json.loads(document.text))
        except ValueError as error:
            log.warning("not in force: %s", error)
            return document, document._p_serial, None
