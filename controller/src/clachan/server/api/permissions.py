"""Who may call what: the one matrix. A route without a line here does not start; a test holds both equal.

That a member sees only what is of its tenants, an instance only itself and a node only its own, is in the services.
"""

from dataclasses import dataclass

from clachan.server.services.principals import Principal

API = "/api/v1"
ADMIN = frozenset({"admin"})
OPERATORS = frozenset({"admin", "operator"})
USERS = frozenset({"admin", "operator", "member"})


@dataclass(frozen=True)
class Access:
    roles: frozenset[str] = frozenset()
    node: bool = False
    instance: bool = False
    anyone: bool = False

    def admits(self, principal: Principal) -> bool:
        if principal.kind == "user":
            return principal.role in self.roles
        return self.node if principal.kind == "node" else self.instance


ANYONE = Access(anyone=True)
NODE = Access(node=True)
ADMINS = Access(ADMIN)
OPERATOR = Access(OPERATORS)
USER = Access(USERS)

MATRIX: dict[tuple[str, str], Access] = {
    ("GET", "/healthz"): ANYONE,
    ("GET", f"{API}/openapi.json"): ANYONE,
    ("GET", f"{API}/ca"): ANYONE,
    ("POST", f"{API}/join"): ANYONE,
    ("GET", f"{API}/principal"): Access(USERS, node=True, instance=True),
    ("GET", f"{API}/accounts"): OPERATOR,
    ("POST", f"{API}/accounts"): ADMINS,
    ("GET", f"{API}/tenants"): USER,
    ("POST", f"{API}/tenants"): OPERATOR,
    ("GET", f"{API}/users"): ADMINS,
    ("POST", f"{API}/users"): ADMINS,
    ("GET", f"{API}/tokens"): USER,
    ("POST", f"{API}/tokens"): USER,
    ("DELETE", f"{API}/tokens/{{identifier}}"): USER,
    ("GET", f"{API}/join-tokens"): OPERATOR,
    ("POST", f"{API}/join-tokens"): OPERATOR,
    ("DELETE", f"{API}/join-tokens/{{identifier}}"): OPERATOR,
    ("GET", f"{API}/nodes/self/inventory"): NODE,
    ("POST", f"{API}/nodes/self/reports"): NODE,
    ("POST", f"{API}/nodes/self/certificate"): NODE,
    ("POST", f"{API}/nodes/self/join-tokens"): NODE,
    ("GET", f"{API}/nodes/self/questions"): NODE,
    ("POST", f"{API}/nodes/self/answers/{{identifier}}"): NODE,
    ("GET", f"{API}/nodes/self/streams/{{identifier}}"): NODE,
    ("POST", f"{API}/nodes/self/streams/{{identifier}}"): NODE,
    ("GET", f"{API}/nodes"): OPERATOR,
    ("GET", f"{API}/nodes/{{name}}"): OPERATOR,
    ("PUT", f"{API}/nodes/{{name}}"): OPERATOR,
    ("DELETE", f"{API}/nodes/{{name}}"): OPERATOR,
    ("GET", f"{API}/nodes/{{name}}/doctor"): USER,
    ("GET", f"{API}/software"): USER,
    ("POST", f"{API}/software"): OPERATOR,
    ("GET", f"{API}/software/{{fqcn}}"): USER,
    ("GET", f"{API}/artifacts/{{sha256}}"): Access(USERS, node=True),
    ("GET", f"{API}/images"): USER,
    ("GET", f"{API}/images/{{sha256}}"): Access(USERS, node=True),
    ("PUT", f"{API}/images/{{sha256}}"): OPERATOR,
    ("DELETE", f"{API}/images/{{sha256}}"): OPERATOR,
    ("GET", f"{API}/images/{{sha256}}/disk"): Access(USERS, node=True),
    ("PUT", f"{API}/images/{{sha256}}/disk"): OPERATOR,
    ("GET", f"{API}/supplies"): OPERATOR,
    ("GET", f"{API}/supplies/{{node}}/{{fqcn}}"): OPERATOR,
    ("PUT", f"{API}/supplies/{{node}}/{{fqcn}}"): OPERATOR,
    ("GET", f"{API}/instances"): USER,
    ("GET", f"{API}/instances/{{path}}"): Access(USERS, instance=True),
    ("PUT", f"{API}/instances/{{path}}"): USER,
    ("DELETE", f"{API}/instances/{{path}}"): USER,
    ("GET", f"{API}/instances/{{path}}/revisions"): USER,
    ("GET", f"{API}/instances/{{path}}/logs"): USER,
    ("POST", f"{API}/instances/{{path}}/streams"): USER,
    ("GET", f"{API}/instances/{{path}}/streams/{{identifier}}"): USER,
    ("POST", f"{API}/instances/{{path}}/streams/{{identifier}}"): USER,
    ("GET", f"{API}/inventory"): USER,
    ("POST", f"{API}/inventory/reveal"): USER,
    ("GET", f"{API}/usage"): USER,
    ("GET", f"{API}/events"): USER,
}
