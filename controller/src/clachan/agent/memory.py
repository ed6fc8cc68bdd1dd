"""What the agent knows of each instance and supply: state.db, one document each, written when it changes.

The agent may be killed between any two statements. So a document says what is surely done; what may be half done
(`tried` without `applied`) is done again, and doing it again changes nothing.
"""

import sqlite3
from pathlib import Path
from typing import Literal

from pydantic import Field

from clachan.contract import Document
from clachan.contract.facts import PromiseResult

Phase = Literal["new", "applied", "converged", "gone"]
"""applied: the role ran and the services were started; converged: and its promises passed (or it is stopped)."""


class Outage(Document):
    began: str
    promises: list[str]
    message: str


class Instance(Document):
    """What was done of an instance."""

    id: str
    path: str
    slot: str
    user: str
    phase: Phase = "new"
    tried: str | None = None
    """Digest of the host's record that the last run was started for."""
    applied: str | None = None
    """Digest of the host's record that the slot's content was made of."""
    revision: int | None = None
    stopped: bool = False
    failures: int = 0
    retry_at: float | None = None
    """Unix time of another run if nothing changes until then: after a failure, or while a promise fails."""
    converged_at: float = 0
    message: str = ""
    state: str = ""
    """The last state that was reported."""
    services: dict[str, str] = Field(default_factory=dict)
    """Service -> the digest that it was last started with."""
    results: dict[str, PromiseResult] = Field(default_factory=dict)
    """As last reported."""
    requests: str | None = None
    """Digest of the requests last reported."""
    outage: Outage | None = None
    reserved_since: str | None = None
    """UTC; up to there the reserved seconds are counted."""


class Supply(Document):
    """What was done of a supply."""

    id: str
    digest: str
    state: Literal["present", "absent", "failed"]
    failures: int = 0
    retry_at: float | None = None
    message: str = ""


class Memory:
    """All documents in RAM, each change written through. Only the loop's thread uses it."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        for table in ("instances", "supplies", "notes"):
            self._database.execute(f"CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY, document TEXT NOT NULL)")
        self.instances = {i: Instance.from_json(text) for i, text in self._rows("instances")}
        self.supplies = {i: Supply.from_json(text) for i, text in self._rows("supplies")}
        self.notes = dict(self._rows("notes"))

    def _rows(self, table: str) -> list[tuple[str, str]]:
        return self._database.execute(f"SELECT id, document FROM {table}").fetchall()  # noqa: S608 - a constant

    def _put(self, table: str, identity: str, document: str) -> None:
        self._database.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (identity, document))  # noqa: S608

    def save(self, *instances: Instance) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        for instance in instances:
            self.instances[instance.id] = instance
            self._put("instances", instance.id, instance.model_dump_json())
        self._database.execute("COMMIT")

    def save_supply(self, supply: Supply) -> None:
        self.supplies[supply.id] = supply
        self._put("supplies", supply.id, supply.model_dump_json())

    def note(self, name: str, text: str) -> None:
        """Keep one line about the node itself."""
        self.notes[name] = text
        self._put("notes", name, text)

    def forget(self, instance: str) -> None:
        self.instances.pop(instance, None)
        self._database.execute("DELETE FROM instances WHERE id = ?", (instance,))

    def forget_supply(self, supply: str) -> None:
        self.supplies.pop(supply, None)
        self._database.execute("DELETE FROM supplies WHERE id = ?", (supply,))

    def close(self) -> None:
        self._database.close()
