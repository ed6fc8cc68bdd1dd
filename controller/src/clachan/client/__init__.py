"""The SDK: what `/api/v1` offers, as methods typed with the documents of `clachan.contract`. HTTP only.

    with Client.from_credentials() as client:
        done = client.request("home.lake", Declaration(software="clachan.platform.lake"))
        for line in client.usage(tenant="home"): ...

A list is an iterator that fetches its pages as it goes. A document that can be waited for comes as a `Versioned`,
whose etag goes into the next call. Every error is a `ClientError`: `ApiError` when the controller refused (its
code, message, field, hint), `UnreachableError`, `UntrustedError`, `BadAnswerError`, `NoCredentialsError`.

`Client` and what it needs are imported at their first use: a stream (`clachan.client.streams`) does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clachan.client.errors import (
    ApiError,
    BadAnswerError,
    ClientError,
    NoCredentialsError,
    UnreachableError,
    UntrustedError,
)
from clachan.client.home import home

if TYPE_CHECKING:
    from clachan.client.client import Client, Requested
    from clachan.client.transport import Versioned
    from clachan.client.trust import fetch_ca, trusted_ca

_PLACES = {
    "Client": "client",
    "Requested": "client",
    "Versioned": "transport",
    "fetch_ca": "trust",
    "trusted_ca": "trust",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


__all__ = [
    "ApiError",
    "BadAnswerError",
    "Client",
    "ClientError",
    "NoCredentialsError",
    "Requested",
    "UnreachableError",
    "UntrustedError",
    "Versioned",
    "fetch_ca",
    "home",
    "trusted_ca",
]
