"""Transformations of a lake at a URL. Each change is a request."""

from collections.abc import Iterator
from typing import Any, Protocol

from clachan_lake.errors import MissingError
from clachan_lake.interface import Transformations

FIGURES = frozenset(
    {"transformation", "revision", "created", "modified", "sources", "lag_bytes", "lag_seconds", "troubled", "dead"}
)
"""What is told beside the document."""


class Caller(Protocol):
    """What is needed of the lake."""

    def call(self, method: str, path: str, *, body: Any = None, **parameters: Any) -> Any: ...

    def items(self, path: str, **parameters: Any) -> Iterator[dict[str, Any]]: ...


class RemoteTransformations(Transformations):
    def __init__(self, lake: Caller) -> None:
        self._lake = lake

    def __getitem__(self, name: str) -> dict[str, Any]:
        return {key: value for key, value in self.describe(name).items() if key not in FIGURES}

    def __iter__(self) -> Iterator[str]:
        return (str(item["transformation"]) for item in self._lake.items("/transformations"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self.describe(name))
        except MissingError:
            return False

    def declare(self, name: str, /, **keys: Any) -> bool:
        answer = self._lake.call("PUT", "/transformations/meta", body=keys, name=name)
        return bool(answer.headers["Clachan-Changed"] == "true")

    def delete(self, name: str) -> None:
        self._lake.call("DELETE", "/transformations/meta", name=name)

    def pause(self, name: str) -> bool:
        return bool(self._act(name, "pause"))

    def resume(self, name: str) -> bool:
        return bool(self._act(name, "resume"))

    def retry(self, name: str, source: str | None = None) -> int:
        return self._act(name, "retry", source)

    def backfill(self, name: str, source: str | None = None) -> int:
        return self._act(name, "backfill", source)

    def describe(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._lake.call("GET", "/transformations/meta", name=name).json()
        return found

    def positions(self, name: str, after: str = "", limit: int = 100) -> list[dict[str, Any]]:
        page = self._lake.call("GET", "/transformations/positions", name=name, cursor=after, limit=limit).json()
        return list(page["items"])

    def _act(self, name: str, action: str, source: str | None = None) -> int:
        answer = self._lake.call("POST", "/transformations/action", name=name, action=action, source=source)
        return int(answer.json()["sources"])
