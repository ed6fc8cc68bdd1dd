"""What `clachan-lake serve` is told: one JSON file. Unknown keys, wrong types and values name the key."""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clachan_lake import settings
from clachan_lake.access.scopes import check_scope
from clachan_lake.policies import policy as policies
from clachan_lake.transform import document as transformations

ANCESTOR = re.compile(r"\*|'self'|https?://(\*\.)?[a-zA-Z0-9.-]+(:([0-9]{1,5}|\*))?")
TRANSFORMATIONS = frozenset({"wav"})


@dataclass(frozen=True)
class Policy:
    """What is done with the data of one endpoint; `transformation` runs when a stream has ended."""

    transformation: str | None = None
    document: dict[str, Any] | None = None
    """What the policy is at each start of the service; None: made when it is not there, and then left alone."""


def _policies() -> dict[str, Policy]:
    return {"raw": Policy(), "wav": Policy("wav")}


@dataclass(frozen=True)
class TokenFile:
    """A token that holds as long as the service runs, in the first line of a file, and what it may do."""

    file: Path
    scopes: frozenset[str]


@dataclass(frozen=True)
class Config:
    folder: Path
    """The lake's own folder; the parent must exist."""
    socket: Path
    """The unix socket for processes of this machine, at most 107 bytes long."""
    token_file: Path
    """Its first line is the token that may do everything."""
    tokens: tuple[TokenFile, ...] = ()
    """Others, for those who need less."""
    host: str = "127.0.0.1"
    port: int = 8075
    """0: a free one, told in `address_file`."""
    address_file: Path | None = None
    """Where the service writes its URL once it listens."""
    certificate: Path | None = None
    """PEM; with it and its `key` the service speaks TLS, and only that."""
    key: Path | None = None
    frame_ancestors: tuple[str, ...] = ("*",)
    """Whose pages may show a gadget in a frame: sources of CSP's frame-ancestors, as https://example.org."""
    policies: dict[str, Policy] = field(default_factory=_policies)
    transformations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What they are at each start of the service."""
    maximum_body_mib: int = 64
    """A longer request is refused with 413."""
    dead_mib: int = 256
    """As much is kept of what no policy took; with more, such requests are refused with 507."""
    minimum_free_mib: int = 64
    """With less free space on the disk, requests are refused with 507."""
    idle_seconds: int = 300
    """A stream that got nothing for so long has ended."""
    history_seconds: int = 30 * 86400
    """How long what was changed or truncated can still be read as it was."""
    pack_seconds: int = 86400
    """So often the history that is older is packed away; 0: never."""
    worker_seconds: int = 10
    """How long the worker of transformations stays after its last work."""
    job_lease_seconds: float = 30.0
    """A worker that was not heard of for so long has lost its job to another."""
    job_keep_seconds: float = 90 * 86400.0
    """How long jobs are kept when they have ended, with what they returned."""

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def incoming(self) -> Path:
        return self.folder / "incoming"


def load(path: Path) -> Config:
    """Raises ValueError that names the file and the key, OSError when the file cannot be read."""
    config = settings.load(
        path,
        Config,
        {
            "tokens": _read_tokens,
            "policies": _read_policies,
            "transformations": _read_transformations,
            "frame_ancestors": _read_ancestors,
        },
    )
    if (config.certificate is None) != (config.key is None):
        missing = "certificate" if config.certificate is None else "key"
        raise ValueError(f"file {path}, key {missing}: missing, expected certificate and key, or neither")
    if config.certificate:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.certificate, config.key)
        except OSError as error:
            pair = f"{config.certificate} with {config.key}"
            raise ValueError(
                f"file {path}, key certificate: {pair}: {error}, expected PEM files that belong together"
            ) from None
    return config


def _read_ancestors(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and ANCESTOR.fullmatch(one) for one in value):
        raise ValueError(f"{value!r:.80}, expected a list of '*', \"'self'\" or origins as https://example.org")
    return tuple(value)


def _read_tokens(value: Any) -> tuple[TokenFile, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.80}, expected a list of objects with file and scopes")
    return tuple(settings.read(one, TokenFile, {"scopes": _read_scopes}, f"token {i}") for i, one in enumerate(value))


def _read_scopes(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r:.80}, expected a list of scopes")
    return frozenset(check_scope(scope) for scope in value)


def _read_policies(value: Any) -> dict[str, Policy]:
    """A list of names, each with a transformation or none, and keys of the policy's document; its key `name` is here
    `target`, as `name` is the policy's."""
    found: dict[str, Policy] = {}
    for name, item in _named(value, "policy"):
        made = item.pop("transformation", None) or "none"
        if made not in {"none", *TRANSFORMATIONS}:
            expected = f"expected none or {' or '.join(sorted(TRANSFORMATIONS))}"
            raise ValueError(f"policy {name}, key transformation: {made!r:.80}, {expected}")
        if "target" in item:
            item["name"] = item.pop("target")
        policies.read(name, item)
        found[name] = Policy(None if made == "none" else made, item or None)
    return found


def _read_transformations(value: Any) -> dict[str, dict[str, Any]]:
    """A list of names, each with keys of the transformation's document."""
    found = dict(_named(value, "transformation"))
    for name, item in found.items():
        transformations.read(name, item)
    return found


def _named(value: Any, what: str) -> list[tuple[str, dict[str, Any]]]:
    """The items of a list, each with the name that it has; what is null in one is as if it were not there."""
    expected = f"expected a list of objects, each with another name of a {what}"
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.80}, {expected}")
    found: dict[str, dict[str, Any]] = {}
    for item in value:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name in found:
            raise ValueError(f"{item!r:.80}, {expected}")
        found[name] = {key: it for key, it in item.items() if key != "name" and it is not None}
    return list(found.items())
