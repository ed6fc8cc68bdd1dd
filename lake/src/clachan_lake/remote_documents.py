"""Policies, tokens and dead letters of a lake at a URL. Every call is one request."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import requests

from clachan_lake.errors import MissingError
from clachan_lake.interface import DeadLetters, Policies, Tokens

DESCRIBED = ("policy", "revision", "created", "modified")
"""What the server says of a policy beside its document."""


class Caller(Protocol):
    """What is needed of the lake; errors are those of `RemoteLake.call`."""

    def call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, *, body: Any = None, **parameters: Any
    ) -> requests.Response: ...

    def items(self, path: str, **parameters: Any) -> Iterator[dict[str, Any]]: ...


class RemotePolicies(Policies):
    def __init__(self, lake: Caller) -> None:
        self._lake = lake

    def __getitem__(self, name: str) -> dict[str, Any]:
        found = self._lake.call("GET", "/policies/meta", name=name).json()
        return {key: value for key, value in found.items() if key not in DESCRIBED}

    def __iter__(self) -> Iterator[str]:
        return (str(item["policy"]) for item in self._lake.items("/policies"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def declare(self, name: str, /, **keys: Any) -> bool:
        answer = self._lake.call("PUT", "/policies/meta", body=keys, name=name)
        return answer.headers["Clachan-Changed"] == "true"

    def delete(self, name: str) -> None:
        self._lake.call("DELETE", "/policies/meta", name=name)


class RemoteTokens(Tokens):
    def __init__(self, lake: Caller) -> None:
        self._lake = lake

    def __getitem__(self, key: str) -> dict[str, Any]:
        for item in self._lake.items("/tokens"):
            if item["id"] == key:
                return {name: value for name, value in item.items() if name != "id"}
        raise MissingError(f"tokens, {key!r}: none of this name")

    def __iter__(self) -> Iterator[str]:
        return (str(item["id"]) for item in self._lake.items("/tokens"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def create(self, /, **order: Any) -> tuple[str, str]:
        made = self._lake.call("POST", "/tokens", body=order).json()
        return made["id"], made["token"]

    def revoke(self, key: str) -> None:
        self._lake.call("DELETE", "/tokens/meta", id=key)


class RemoteDead(DeadLetters):
    def __init__(self, lake: Caller) -> None:
        self._lake = lake

    def __getitem__(self, number: int) -> dict[str, Any]:
        found = self._lake.call("GET", "/dead/meta", number=number).json()
        return {key: value for key, value in found.items() if key != "number"}

    def __iter__(self) -> Iterator[int]:
        return (int(item["number"]) for item in self._lake.items("/dead"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def read(self, number: int) -> bytes:
        return self._lake.call("GET", "/dead/data", number=number).content

    def replay(self, number: int) -> dict[str, Any]:
        """Send it to its policy again; what came of it. Raises TakenError when it is refused again, and stays."""
        done: dict[str, Any] = self._lake.call("POST", "/dead/replay", number=number).json()
        return done

    def delete(self, number: int) -> None:
        self._lake.call("DELETE", "/dead/meta", number=number)
