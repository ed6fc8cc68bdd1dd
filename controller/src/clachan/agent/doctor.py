"""`clachan agent doctor`: what an agent needs, looked at piece by piece."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clachan.agent import certificate
from clachan.agent.layout import AgentError, Layout, NodeConfig
from clachan.agent.link import Link
from clachan.agent.software import Software
from clachan.agent.spool import Spool
from clachan.agent.supervisord import Supervisord
from clachan.client import ClientError


@dataclass(frozen=True)
class Finding:
    what: str
    ok: bool
    found: str


def examine(layout: Layout) -> Iterator[Finding]:
    """One finding after the other; without a configuration there is nothing more to look at."""
    try:
        config = layout.load_config()
    except AgentError as error:
        yield Finding("configuration", False, str(error))
        return
    yield Finding("configuration", True, f"{config.slots} slots, mode {config.mode}")
    checks: dict[str, Callable[[], str]] = {
        "identity": lambda: _identity(layout),
        "key": lambda: _key(layout),
        "certificate": lambda: _certificate(layout),
        "controller": lambda: _controller(layout, config),
        "supervisor": lambda: f"{len(Supervisord(Path(config.supervisor_socket)).pids())} services of slots run",
        "platform collection": lambda: _platform(layout, config),
        "ansible-playbook": _ansible,
        "spool": lambda: _spool(layout),
    }
    for what, check in checks.items():
        try:
            yield Finding(what, True, check())
        except (AgentError, ClientError, OSError, ValueError) as error:
            yield Finding(what, False, str(error))


def _identity(layout: Layout) -> str:
    identity = layout.load_identity()
    return f"node {identity.name} ({identity.id})"


def _key(layout: Layout) -> str:
    if certificate.exposed(layout.key):
        raise AgentError(f"file {layout.key}: others may read it, expected mode 0600")
    return "readable by its owner only"


def _certificate(layout: Layout) -> str:
    _, end = certificate.life(layout.certificate)
    left = end - datetime.now(UTC)
    if left.total_seconds() < 0:
        raise AgentError(f"certificate: ended {end:%Y-%m-%d}, expected a valid one: join again")
    return f"valid for {left.days} days"


def _controller(layout: Layout, config: NodeConfig) -> str:
    health = Link(layout, config).client().health()
    if health.status != "ok":
        raise AgentError(f"controller {config.controller_url}: {health.checks}, expected ok")
    return f"{config.controller_url} answers, version {health.version}"


def _platform(layout: Layout, config: NodeConfig) -> str:
    digest = Software(layout.software, Path(config.platform_path)).platform_digest()
    if digest is None:
        raise AgentError(f"folder {config.platform_path}: no MANIFEST.json, expected an installed clachan.platform")
    return f"digest {digest[:12]}"


def _ansible() -> str:
    found = shutil.which("ansible-playbook", path=str(Path(sys.executable).parent))
    if found is None:
        raise AgentError(f"ansible-playbook: not in {Path(sys.executable).parent}, expected the agent's environment")
    return found


def _spool(layout: Layout) -> str:
    spool = Spool(layout.spool, "")
    try:
        return f"{spool.waiting()} facts wait, {len(spool.aside())} set aside"
    finally:
        spool.close()
