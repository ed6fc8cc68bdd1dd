"""The SDK: what `/api/v1` offers, as methods typed with the documents of `clachan.contract`. HTTP only.

    with Client.from_credentials() as client:
        done = client.request("home.lake", Declaration(software="clachan.platform.lake"))
        for line in client.usage(tenant="home"): ...

A list is an iterator that fetches its pages as it goes. A document that can be waited for comes as a `Versioned`,
whose etag goes into the next call. Every error is a `ClientError`: `ApiError` when the controller refused (its
code, message, field, hint), `UnreachableError`, `UntrustedError`, `BadAnswerError`, `NoCredentialsError`.
"""

from clachan.client.client import Client, Requested
from clachan.client.errors import (
    ApiError,
    BadAnswerError,
    ClientError,
    NoCredentialsError,
    UnreachableError,
    UntrustedError,
)
from clachan.client.home import home
from clachan.client.node import fetch_ca, trusted_ca
from clachan.client.transport import Versioned

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
