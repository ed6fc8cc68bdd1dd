"""`Client`: the users' routes, over the routes of nodes and of images, over the transport."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from clachan.client.home import load_credentials
from clachan.client.images import ImageRoutes
from clachan.client.node import NodeRoutes, WrappedInventory
from clachan.client.transport import API, Versioned
from clachan.contract.api import (
    AccountDeclaration,
    AccountView,
    Declaration,
    EventView,
    Findings,
    Health,
    InstanceView,
    JoinTokenDeclaration,
    JoinTokenView,
    LogsView,
    NodeChange,
    NodeView,
    Page,
    PrincipalView,
    Revealed,
    RevealRequest,
    RevisionView,
    SupplyDeclaration,
    SupplyView,
    TenantDeclaration,
    TenantView,
    TokenDeclaration,
    TokenView,
    UsageView,
    UserDeclaration,
    UserView,
)
from clachan.contract.inventory import Inventory
from clachan.contract.software import SoftwareView

UPLOAD_SECONDS = 300.0
LOGS_SECONDS = 20.0
DOCTOR_SECONDS = 90.0


@dataclass(frozen=True)
class Requested:
    """What a request came to: the instance, and whether it made a new revision."""

    instance: InstanceView
    made: bool


class Client(NodeRoutes, ImageRoutes):
    """One controller, as a user, an instance (both by token) or a node (by certificate)."""

    @classmethod
    def from_credentials(cls, home: Path | None = None) -> Self:
        """For the controller of credentials.json in `home` and of the environment; raises NoCredentialsError."""
        known = load_credentials(home)
        return cls(known.url, token=known.token, ca_file=known.ca_file)

    def health(self) -> Health:
        return self._get("/healthz", Health)

    def principal(self) -> PrincipalView:
        """Who the controller takes us for."""
        return self._get(f"{API}/principal", PrincipalView)

    # -- accounts, tenants, users, tokens ---------------------------------------------------------------------------

    def accounts(self) -> Iterator[AccountView]:
        return self._pages(f"{API}/accounts", Page[AccountView])

    def create_account(self, declaration: AccountDeclaration) -> AccountView:
        return self._post(f"{API}/accounts", declaration, AccountView, idempotent=True)

    def tenants(self) -> Iterator[TenantView]:
        return self._pages(f"{API}/tenants", Page[TenantView])

    def create_tenant(self, declaration: TenantDeclaration) -> TenantView:
        return self._post(f"{API}/tenants", declaration, TenantView, idempotent=True)

    def users(self) -> Iterator[UserView]:
        return self._pages(f"{API}/users", Page[UserView])

    def create_user(self, declaration: UserDeclaration) -> UserView:
        return self._post(f"{API}/users", declaration, UserView, idempotent=True)

    def tokens(self) -> Iterator[TokenView]:
        return self._pages(f"{API}/tokens", Page[TokenView])

    def create_token(self, declaration: TokenDeclaration) -> TokenView:
        """The only answer that has the token itself."""
        return self._post(f"{API}/tokens", declaration, TokenView, idempotent=False)

    def delete_token(self, identifier: str) -> None:
        self._delete(f"{API}/tokens/{identifier}")

    # -- nodes, software, supplies ----------------------------------------------------------------------------------

    def join_tokens(self) -> Iterator[JoinTokenView]:
        return self._pages(f"{API}/join-tokens", Page[JoinTokenView])

    def create_join_token(self, declaration: JoinTokenDeclaration) -> JoinTokenView:
        """The only answer that has the join token itself."""
        return self._post(f"{API}/join-tokens", declaration, JoinTokenView, idempotent=False)

    def delete_join_token(self, identifier: str) -> None:
        self._delete(f"{API}/join-tokens/{identifier}")

    def nodes(self) -> Iterator[NodeView]:
        return self._pages(f"{API}/nodes", Page[NodeView])

    def node(self, name: str) -> NodeView:
        return self._get(f"{API}/nodes/{name}", NodeView)

    def change_node(self, name: str, change: NodeChange) -> NodeView:
        """What `change` leaves None stays as it is."""
        return self._put(f"{API}/nodes/{name}", change, NodeView)

    def revoke_node(self, name: str) -> None:
        self._delete(f"{API}/nodes/{name}")

    def examine_node(self, name: str) -> Findings:
        """What is on a node against what should be; ApiError timeout when it does not answer."""
        response = self._once("GET", f"{API}/nodes/{name}/doctor", answer_seconds=DOCTOR_SECONDS)
        return self._parsed(response, Findings)

    def register_software(self, artifact: Path) -> list[SoftwareView]:
        """Upload a collection's artifact (tar.gz); answers every software in it."""
        with artifact.open("rb") as body:
            response = self._once(
                "POST",
                f"{API}/software",
                data=body,
                headers={"Content-Type": "application/gzip"},
                answer_seconds=UPLOAD_SECONDS,
            )
        return self._parsed(response, Page[SoftwareView]).items

    def software(self) -> Iterator[SoftwareView]:
        return self._pages(f"{API}/software", Page[SoftwareView])

    def software_view(self, software: str, digest: str | None = None) -> SoftwareView:
        """One build of a software; the newest registered without `digest`."""
        return self._get(f"{API}/software/{software}", SoftwareView, {"digest": digest})

    def supplies(self) -> Iterator[SupplyView]:
        return self._pages(f"{API}/supplies", Page[SupplyView])

    def supply(self, node: str, software: str, declaration: SupplyDeclaration) -> SupplyView:
        return self._put(f"{API}/supplies/{node}/{software}", declaration, SupplyView)

    def supply_view(self, node: str, software: str) -> SupplyView:
        return self._get(f"{API}/supplies/{node}/{software}", SupplyView)

    # -- instances --------------------------------------------------------------------------------------------------

    def instances(
        self, tenant: str | None = None, state: str | None = None, software: str | None = None
    ) -> Iterator[InstanceView]:
        query = {"tenant": tenant, "state": state, "software": software}
        return self._pages(f"{API}/instances", Page[InstanceView], query)

    def instance(self, path: str, *, reveal: bool = False) -> InstanceView:
        """`reveal`: with secrets; needs the permission, and is an event."""
        return self._get(f"{API}/instances/{path}", InstanceView, {"reveal": "true" if reveal else None})

    def poll_instance(self, path: str, etag: str | None = None, wait: int = 0) -> Versioned[InstanceView] | None:
        """The instance when it differs from `etag`; None when it is the same still after `wait` seconds."""
        return self._poll(f"{API}/instances/{path}", InstanceView, etag, wait)

    def request(self, path: str, declaration: Declaration, *, dry_run: bool = False) -> Requested:
        """Declare an instance; `dry_run` validates and answers what would be, changing nothing."""
        query = {"dry_run": "true" if dry_run else None}
        response = self._call("PUT", f"{API}/instances/{path}", body=declaration, query=query)
        made = response.headers.get("Clachan-Revision-Made") == "true"
        return Requested(self._parsed(response, InstanceView), made)

    def delete_instance(self, path: str) -> InstanceView | None:
        """Want the instance absent; None when nothing of it is left to show."""
        response = self._delete(f"{API}/instances/{path}")
        return self._parsed(response, InstanceView) if response.content else None

    def revisions(self, path: str) -> Iterator[RevisionView]:
        return self._pages(f"{API}/instances/{path}/revisions", Page[RevisionView])

    def logs(self, path: str, service: str | None = None, lines: int = 100) -> dict[str, str]:
        """Service -> the last lines of its log, asked of the node; ApiError timeout when that does not answer."""
        return self._parsed(
            self._once(
                "GET",
                f"{API}/instances/{path}/logs",
                query={"service": service, "lines": lines},
                answer_seconds=LOGS_SECONDS,
            ),
            LogsView,
        ).logs

    # -- what is, what was -------------------------------------------------------------------------------------------

    def inventory(self) -> Inventory:
        """All that the caller may see, secrets as <secret>."""
        return self._get(f"{API}/inventory", WrappedInventory).inventory

    def reveal(self, hosts: Iterable[str]) -> dict[str, dict[str, object]]:
        """Host -> its sealed variables with their values; needs the permission, and is an event."""
        answer = self._post(f"{API}/inventory/reveal", RevealRequest(hosts=list(hosts)), Revealed, idempotent=True)
        return {host: dict(values) for host, values in answer.variables.items()}

    def usage(
        self,
        tenant: str | None = None,
        path: str | None = None,
        meter: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> Iterator[UsageView]:
        """Usage records, one per instance, meter and UTC window; `since` and `until` are RFC 3339 times."""
        query = {"tenant": tenant, "path": path, "meter": meter, "since": since, "until": until}
        return self._pages(f"{API}/usage", Page[UsageView], query)

    def events(
        self, kind: str | None = None, path: str | None = None, node: str | None = None, after: int | None = None
    ) -> Iterator[EventView]:
        """Events, oldest first; only those with an id above `after`."""
        query = {"kind": kind, "path": path, "node": node, "after": after}
        return self._pages(f"{API}/events", Page[EventView], query)
