"""One run of Ansible: a fresh private directory, the inventory of its hosts only, redacted output, a result by host.

    runs/RUN/            0700
      run.json           how it ended (a RunFact)
      output.log         what Ansible printed, redacted
      slice.json, clachan.yml, ansible/, artifacts/      only while it runs: they hold secrets

ansible-runner's own event files are not kept; its callback's partial ones go with artifacts/. A directory without
run.json is of a run that a kill cut short; the agent's next start ends and removes it (`clear_leftovers`).
"""

import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clachan.agent.layout import AgentError, Layout
from clachan.agent.processes import end_marked
from clachan.agent.redaction import Redactor, sealed_values
from clachan.agent.spool import timestamp
from clachan.contract.facts import MESSAGE_CHARS, RunFact
from clachan.contract.inventory import WRAPPER, Inventory

log = logging.getLogger(__name__)

MARK = "CLACHAN_RUN"
"""Environment variable of every run: its directory, by which a later agent finds what a killed one left running."""
PLAYBOOKS = {"converge": "clachan.platform.converge", "absent": "clachan.platform.converge"} | {
    "supply": "clachan.platform.supply"
}
KEPT = {"run.json", "output.log"}
OUTPUT_BYTES = 4 * 1024 * 1024
LONGEST_RUN = 6 * 3600
"""Seconds; a role that hangs must not hold its slots for ever."""

Purpose = Literal["converge", "supply", "absent"]


@dataclass(frozen=True)
class Run:
    """What to run: on the hosts of `inventory`, with only these collection folders on the path.

    `entry` of `software` is what the playbook runs.
    """

    purpose: Purpose
    inventory: Inventory
    hosts: tuple[str, ...]
    collections: tuple[Path, ...]
    software: str
    entry: str
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass
class Outcome:
    """How a run ended; a host that is not in `failures` was done without one."""

    fact: RunFact
    failures: dict[str, str]


class _Listener:
    """Takes ansible-runner's events as they come: writes their output, remembers what each host failed of."""

    def __init__(self, redactor: Redactor, output: Path) -> None:
        self._redactor = redactor
        self._file = os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
        self._left = OUTPUT_BYTES
        self.messages: dict[str, str] = {}
        self.statistics: dict[str, dict[str, int]] | None = None
        self.last_words = ""

    def __call__(self, event: dict[str, Any]) -> bool:
        """False: ansible-runner writes no file of the event."""
        if text := event.get("stdout"):
            self._write(self._redactor.text(text))
        data = event.get("event_data") or {}
        kind = event.get("event")
        if kind in {"runner_on_failed", "runner_on_unreachable"} and not data.get("ignore_errors"):
            self.messages[data["host"]] = self._message(data)
        elif kind == "playbook_on_stats":
            self.statistics = data
        elif kind in {"error", "verbose", "warning"} and "ERROR" in (text or ""):
            self.last_words = self._redactor.text(str(text)).strip()
        return False

    def _write(self, text: str) -> None:
        if self._left > 0:
            self._file.write(text[: self._left] + "\n")
            self._left -= len(text) + 1

    def _message(self, data: dict[str, Any]) -> str:
        result = data.get("res")
        result = result if isinstance(result, dict) else {}
        said = [result.get("msg"), *(one.get("msg") for one in result.get("results") or [] if one.get("failed"))]
        if result.get("rc") and result.get("stderr"):
            said.append(str(result["stderr"])[-500:])
        text = " ".join(str(one) for one in said if one) or "failed without a message"
        return self._redactor.text(f"task {data.get('task')!r}: {text}")[:MESSAGE_CHARS]

    def close(self) -> None:
        self._file.close()


def run(wanted: Run, runs: Path, home: Path, cancelled: Callable[[], bool] = lambda: False) -> Outcome:
    """Run to the end; nothing that Ansible does raises, the outcome says it. Blocks; any thread may call it.

    `cancelled` is asked every second; when it says so, the run is killed.
    """
    directory = runs / wanted.identity
    directory.mkdir(mode=0o700, parents=True)
    began = timestamp()
    listener = _Listener(_redactor(wanted.inventory), directory / "output.log")
    entry = {"CLACHAN_RUN_SOFTWARE": wanted.software, "CLACHAN_RUN_ENTRY": wanted.entry}
    try:
        _write_inventory(wanted.inventory, directory)
        status = _ansible(
            directory,
            _environment(wanted.collections, directory, home) | entry,
            listener,
            playbook=PLAYBOOKS[wanted.purpose],
            inventory=str(directory / "clachan.yml"),
            forks=_forks(len(wanted.hosts)),
            timeout=LONGEST_RUN,
            cancel_callback=cancelled,
        )
        outcome = _outcome(wanted, began, status, listener)
    except Exception as error:  # whatever it is, it is this run's failure and not the agent's
        log.exception("run %s: ansible-runner failed", wanted.identity)
        reason = f"run {wanted.identity}: {type(error).__name__}: {error}"
        outcome = _outcome(wanted, began, "failed", listener, reason)
    finally:
        listener.close()
        clear(directory)
    (directory / "run.json").write_bytes(outcome.fact.json_bytes())
    return outcome


def ask(
    module: str, arguments: dict[str, Any], collections: Sequence[Path], layout: Layout, seconds: int
) -> dict[str, Any]:
    """The result of a module that only looks, on this machine; nothing of it is kept. Raises AgentError.

    `arguments` never hold a tenant's text: Ansible would expand templates in them.
    """
    directory = layout.runs / f"ask-{uuid.uuid4().hex}"
    directory.mkdir(mode=0o700, parents=True)
    results: list[dict[str, Any]] = []
    words: list[str] = []

    def listen(event: dict[str, Any]) -> bool:
        words.append(str(event.get("stdout") or ""))
        if event.get("event") in {"runner_on_ok", "runner_on_failed", "runner_on_unreachable"}:
            results.append(event["event_data"]["res"])
        return False

    environment = _environment(collections, directory, layout.home) | {
        "ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.ini",
        "ANSIBLE_TRANSPORT": "local",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    what = {"module": module, "module_args": json.dumps(arguments), "host_pattern": "localhost"}
    try:
        (directory / "ansible.cfg").write_text("[defaults]\n")
        (directory / "hosts").write_text("localhost\n")
        status = _ansible(directory, environment, listen, inventory=str(directory / "hosts"), timeout=seconds, **what)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if status != "successful" or len(results) != 1:
        said = results[0].get("msg") if results else " ".join(words).strip()[-MESSAGE_CHARS:] or "no result"
        raise AgentError(f"module {module}: {said} (status {status}), expected its result")
    return results[0]


def _ansible(directory: Path, environment: dict[str, str], listen: Callable[[Any], bool], **what: Any) -> str:
    """The status in which ansible-runner ended."""
    import ansible_runner  # takes its time, and the first report need not wait for it

    runner = ansible_runner.run(
        private_data_dir=str(directory),
        ident="0",
        envvars=environment,
        settings={"suppress_output_file": True, "pexpect_timeout": 1},
        event_handler=listen,
        suppress_env_files=True,
        quiet=True,
        **what,
    )
    return str(runner.status)


def _redactor(inventory: Inventory) -> Redactor:
    values = []
    for variables in inventory.records.values():
        instance = variables.get("clachan_instance")
        if isinstance(instance, dict):
            sealed = instance.get("sealed")
            values += sealed_values(variables, [str(name) for name in sealed] if isinstance(sealed, list) else [])
    return Redactor(values)


def _write_inventory(inventory: Inventory, directory: Path) -> None:
    slice_file = directory / "slice.json"
    content = json.dumps({WRAPPER: inventory.model_dump(mode="json")}, ensure_ascii=False)
    with os.fdopen(os.open(slice_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(content)
    # JSON is YAML, and quotes whatever the path holds
    settings = {"plugin": "clachan.platform.inventory", "slice": str(slice_file)}
    (directory / "clachan.yml").write_text(json.dumps(settings))
    (directory / "ansible.cfg").write_text("[defaults]\n")


def _environment(collections: Sequence[Path], directory: Path, home: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "LANG": "C.UTF-8",
        "CLACHAN_HOME": str(home),
        MARK: str(directory),
        "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
        "ANSIBLE_HOME": str(directory / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(directory / "ansible" / "tmp"),
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(map(str, collections)),
        "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false",
        "ANSIBLE_ROLES_PATH": str(directory / "no_roles"),
        "ANSIBLE_INVENTORY_ENABLED": "clachan.platform.inventory",
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
        "ANSIBLE_GATHERING": "explicit",
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
        "ANSIBLE_LOCALHOST_WARNING": "false",
    }


def _forks(hosts: int) -> int:
    return max(1, min(hosts, 2 * (os.cpu_count() or 1)))


def _outcome(wanted: Run, began: str, status: str, listener: _Listener, reason: str | None = None) -> Outcome:
    statistics = listener.statistics or {}
    fact = RunFact(
        run=wanted.identity,
        purpose=wanted.purpose,
        software=wanted.software,
        # a supply's only host is the node, which is no instance
        hosts=[] if wanted.purpose == "supply" else list(wanted.hosts),
        status="successful" if status == "successful" else "failed" if status == "failed" else "killed",
        began=began,
        ended=timestamp(),
        changed=sum(statistics.get("changed", {}).values()),
    )
    failures = _failures(wanted.hosts, status, listener, reason)
    if fact.hosts:
        fact.failures = failures
    return Outcome(fact, failures)


def _failures(hosts: tuple[str, ...], status: str, listener: _Listener, reason: str | None) -> dict[str, str]:
    """Host -> why it failed."""
    statistics = listener.statistics
    if reason is None and statistics is not None and status in {"successful", "failed"}:
        bad = {*statistics.get("failures", {}), *statistics.get("dark", {})}
        return {host: listener.messages.get(host, "failed without a message") for host in hosts if host in bad}
    # it ended before it had done all: no host is surely done
    words = reason or listener.last_words or f"the run ended early (status {status})"
    return {host: listener.messages.get(host, words)[:MESSAGE_CHARS] for host in hosts}


def restricted(inventory: Inventory, hosts: Sequence[str]) -> Inventory:
    """The same inventory with these hosts only: a run sees no other instance's values."""
    chosen = set(hosts)
    groupings = {group: [name for name in names if name in chosen] for group, names in inventory.groupings.items()}
    return inventory.model_copy(
        update={
            "records": {name: inventory.records[name] for name in hosts},
            "groupings": {group: kept for group, kept in groupings.items() if kept},
            "supplies": [],
        }
    )


def clear(directory: Path) -> None:
    """Remove from a run's directory all but what is kept."""
    for entry in list(directory.iterdir()):
        if entry.name in KEPT:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def clear_leftovers(runs: Path) -> None:
    """At the agent's start: end the runs that a killed agent left, and remove their directories.

    What a run that ended has left running (a daemon of the node, say) is not touched.
    """
    runs.mkdir(mode=0o700, exist_ok=True)
    unfinished = [directory for directory in runs.iterdir() if not (directory / "run.json").exists()]
    if ended := end_marked(MARK, map(str, unfinished)):
        log.warning("runs: ended %d processes of an agent that was killed", len(ended))
    for directory in unfinished:
        shutil.rmtree(directory)


def retain(runs: Path, kept: int, days: int) -> None:
    """Remove the directories of old runs: all but the last `kept`, and those older than `days`."""
    oldest = time.time() - days * 86400
    finished = sorted(((one.stat().st_mtime, one) for one in runs.glob("*/run.json")), reverse=True)
    for position, (at, file) in enumerate(finished):
        if position >= kept or at < oldest:
            shutil.rmtree(file.parent, ignore_errors=True)
