"""`clachan agent doctor` and the controller's question: what an agent needs, piece by piece, and on a node that has or
had virtual machines what there is for them, against what its instances say (module `clachan.platform.node_doctor`).
"""

import logging
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from clachan.agent import certificate, runs
from clachan.agent.about import platform_digest
from clachan.agent.layout import AgentError, Layout
from clachan.agent.link import Link
from clachan.agent.settings import NodeConfig
from clachan.agent.spool import Spool
from clachan.agent.supervisord import Supervisord
from clachan.client import ClientError
from clachan.contract.api import Answer, DoctorQuestion, Finding, Findings

log = logging.getLogger(__name__)

MACHINE = b'"clachan.platform.vm"'
MODULE = "clachan.platform.node_doctor"
MODULE_SECONDS = 50
"""Less than the controller waits for one that has taken up its question."""


class Doctor:
    """Answers the controller; one look at a time."""

    def __init__(self, layout: Layout, link: Link) -> None:
        self._layout, self._link, self._lock = layout, link, threading.Lock()

    def begin(self, question: DoctorQuestion) -> None:
        threading.Thread(target=self._answer, args=(question.id,), name="doctor", daemon=True).start()

    def _answer(self, question: str) -> None:
        with self._lock:
            findings = list(examine(self._layout))
        try:
            self._link.client().answer(question, Answer(findings=findings))
            log.info("question doctor: answered")
        except (ClientError, OSError) as error:
            log.warning("question doctor: %s", error)


def examine(layout: Layout) -> Iterator[Finding]:
    """One finding after the other; without a configuration there is nothing more to look at."""
    try:
        config = layout.load_config()
    except AgentError as error:
        yield _of_agent("configuration", False, str(error))
        return
    yield _of_agent("configuration", True, f"{config.slots} slots, mode {config.mode}")
    checks: dict[str, Callable[[], str]] = {
        "identity": lambda: _identity(layout),
        "key": lambda: _key(layout),
        "certificate": lambda: _certificate(layout),
        "controller": lambda: _controller(layout, config),
        "supervisor": lambda: f"{len(Supervisord(Path(config.supervisor_socket)).pids())} services of slots run",
        "platform collection": lambda: _platform(config),
        "ansible-playbook": _ansible,
        "spool": lambda: _spool(layout),
    }
    for what, check in checks.items():
        try:
            yield _of_agent(what, True, check())
        except (AgentError, ClientError, OSError, ValueError) as error:
            yield _of_agent(what, False, str(error))
    yield from _machines(layout, config)


def _of_agent(name: str, ok: bool, found: str) -> Finding:
    return Finding(kind="agent", name=name, ok=ok, found=found)


def _machines(layout: Layout, config: NodeConfig) -> Iterator[Finding]:
    """What there is for virtual machines; nothing on a node that never had any."""
    try:
        if config.mode != "root" or not _has_machines(layout):
            return
        platform = Path(config.platform_path).resolve()
        result = runs.ask(MODULE, {"home": str(layout.home)}, [platform], layout, MODULE_SECONDS)
        yield from Findings.model_validate({"findings": result["findings"]}).findings
    except (AgentError, OSError, KeyError, ValidationError) as error:
        yield _of_agent("machines", False, str(error))


def _has_machines(layout: Layout) -> bool:
    """Also when a slice merely names the software: then the look finds none, which costs two seconds."""
    left = (layout.node / "isolation", layout.home / "volumes", layout.home / "images")
    return any(path.exists() for path in left) or (layout.slice.exists() and MACHINE in layout.slice.read_bytes())


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


def _platform(config: NodeConfig) -> str:
    digest = platform_digest(Path(config.platform_path))
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
