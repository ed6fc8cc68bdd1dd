"""Who asks: the one `Principal`, from a bearer token or a node's certificate.

Both are kept in memory, so that a poll costs no query. Whatever changes them calls `forget` after its commit: a
revoked certificate is refused from then on, also on a connection that is open and in a poll that waits.
"""

import hashlib
import hmac
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select

from clachan.contract.api import PrincipalView
from clachan.server import clock
from clachan.server.db.engine import Database
from clachan.server.db.models import Certificate, Token
from clachan.server.services.refusals import Unauthenticated


@dataclass(frozen=True)
class Principal:
    """`tenants` None: of all tenants. `id` is the user's, node's or instance's."""

    kind: Literal["user", "node", "instance"]
    id: str
    name: str
    role: str
    tenants: frozenset[str] | None
    reveal: bool = False
    expires: str | None = None

    def sees(self, tenant: str | None) -> bool:
        return self.tenants is None or tenant in self.tenants

    @property
    def author(self) -> str:
        return self.name if self.kind == "user" else f"{self.kind}:{self.name}"

    def view(self) -> PrincipalView:
        return PrincipalView(
            kind=self.kind, name=self.name, role=self.role, tenants=sorted(self.tenants or ()), reveal=self.reveal
        )


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


class Principals:
    """Principals by the sha256 of their token or certificate."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, Principal] = {}
        self._generation = 0
        self._lock = threading.Lock()

    def forget(self) -> None:
        with self._lock:
            self._generation += 1
            self._known.clear()

    def known(self, digest: str) -> Principal | None:
        """Without a query; raises Unauthenticated when it has expired meanwhile."""
        principal = self._known.get(digest)
        if principal is not None:
            _refuse_expired(principal)
        return principal

    def by_token(self, token: str) -> Principal:
        digest = token_hash(token)
        return self.known(digest) or self._load(digest, self._of_token)

    def by_certificate(self, fingerprint: str) -> Principal:
        return self.known(fingerprint) or self._load(fingerprint, self._of_certificate)

    def _load(self, digest: str, find: Callable[[str], Principal]) -> Principal:
        # what was read before a revocation must not be kept after it
        generation = self._generation
        principal = find(digest)
        _refuse_expired(principal)
        with self._lock:
            if generation == self._generation:
                self._known[digest] = principal
        return principal

    def _of_token(self, digest: str) -> Principal:
        with self._database.read() as session:
            token = session.scalar(select(Token).where(Token.hash == digest))
            if token is None or not hmac.compare_digest(token.hash, digest):
                raise Unauthenticated("token: unknown, expected one that is valid")
            if token.instance is not None:
                owner, instance = frozenset({token.instance.tenant.name}), token.instance
                return Principal("instance", instance.id, instance.path, "instance", owner, expires=token.expires)
            assert token.user is not None
            user = token.user
            tenants = frozenset(tenant.name for tenant in user.tenants) if user.role == "member" else None
            return Principal("user", str(user.id), user.name, user.role, tenants, user.reveal, token.expires)

    def _of_certificate(self, fingerprint: str) -> Principal:
        with self._database.read() as session:
            certificate = session.get(Certificate, fingerprint)
            if certificate is None or certificate.revoked is not None or certificate.node.state == "revoked":
                raise Unauthenticated("certificate: unknown or revoked, expected that of a node")
            node = certificate.node
            owner = frozenset({node.owner.name}) if node.owner is not None else None
            return Principal("node", node.id, node.name, "node", owner, expires=certificate.expires)


def _refuse_expired(principal: Principal) -> None:
    if principal.expires is not None and principal.expires <= clock.now():
        what = "certificate" if principal.kind == "node" else "token"
        raise Unauthenticated(f"{what}: expired at {principal.expires}, expected a valid one")
