"""Who makes a request, as far as the lake knows: a token that holds."""

from dataclasses import dataclass

from clachan_lake.access.scopes import ADMIN, allow


@dataclass(frozen=True, slots=True)
class Principal:
    """`id` is the token's; "" for those in files of the service."""

    id: str
    scopes: frozenset[str]
    expires: int | None = None
    same_content_seconds: float = 0

    def may(self, scope: str) -> bool:
        return allow(self.scopes, scope)


OWNER = Principal("", frozenset({ADMIN}))
"""The holder of the token file."""
