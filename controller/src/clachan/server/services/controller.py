"""The controller as one object: settings, database, CA, hub and what is kept in memory.

`Change` is one writing transaction and what it touched. Services write through it and say what they touched; after
the commit the caches are told and the hub wakes who waits. Nothing is told when the transaction is undone.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue
from sqlalchemy.orm import Session

from clachan.server import clock
from clachan.server.ca import Authority
from clachan.server.db.engine import Database, database_url
from clachan.server.db.models import Event, Instance, Meta
from clachan.server.decisions import addresses
from clachan.server.decisions.parameters import ParameterSchema
from clachan.server.hub import Hub
from clachan.server.services.principals import Principals
from clachan.server.services.questions import Questions
from clachan.server.services.sightings import Sightings
from clachan.server.settings import Settings

if TYPE_CHECKING:
    from clachan.server.db.models import Software
    from clachan.server.services.images import Upload
    from clachan.server.services.slices import Slices
    from clachan.server.services.streams import Streams


@dataclass
class Change:
    """A writing transaction; `hosts` and `nodes` are what must be rebuilt in slices, `topics` whom to wake."""

    session: Session
    now: str
    hosts: set[tuple[str, str]] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    topics: set[str] = field(default_factory=set)
    principals: bool = False
    capacity: bool = False
    """Something became free or possible: instances that wait for a place are tried again before the commit."""

    def touch(self, instance: Instance) -> None:
        """The instance shows something new, in its node's slice and to who watches it."""
        self.topics.add(f"instance:{instance.path}")
        if instance.node_id is not None:
            self.hosts.add((instance.node_id, instance.id))

    def touch_node(self, node_id: str) -> None:
        self.nodes.add(node_id)

    def event(
        self,
        kind: str,
        message: str,
        *,
        tenant: str | None = None,
        node: str | None = None,
        path: str | None = None,
        data: dict[str, JsonValue] | None = None,
    ) -> None:
        self.session.add(
            Event(at=self.now, kind=kind, message=message, tenant=tenant, node=node, path=path, data=data or {})
        )


@dataclass(frozen=True)
class Platform:
    """What is chosen once: id (UUID), ULA /48, offset of the nodes' /20."""

    id: str
    prefix: str
    offset: int


class Controller:
    def __init__(self, home: Path, settings: Settings, place: "Callable[[Controller, Change], None]") -> None:
        """`place` tries the waiting instances again, inside the transaction that made it worth trying."""
        self._place = place
        self.home = home
        self.folder = home / "controller"
        self.settings = settings
        self.database = Database(database_url(home, settings.database_url))
        self.authority = Authority(self.folder / "ca")
        self.hub = Hub()
        self.principals = Principals(self.database)
        self.sightings = Sightings()
        self.questions = Questions(self.hub)
        self.uploads: dict[str, Upload] = {}
        """Those that go on, by the sha256 of their disk."""
        self._schemas: dict[tuple[int, str], ParameterSchema] = {}

    @cached_property
    def slices(self) -> "Slices":
        from clachan.server.services.slices import Slices

        return Slices(self)

    @cached_property
    def platform(self) -> Platform:
        with self.read() as session:
            values = {row.key: row.value for row in session.query(Meta)}
        return Platform(values["platform"], values["prefix"], int(values["offset"]))

    @cached_property
    def streams(self) -> "Streams":
        from clachan.server.services.streams import Streams

        return Streams(self.settings.answer_seconds, self.settings.stream_idle_seconds)

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def schema(self, software: "Software", type_: str) -> ParameterSchema:
        """The compiled schema of a type of a build; builds never change, so it is kept."""
        key = (software.id, type_)
        if key not in self._schemas:
            self._schemas[key] = ParameterSchema(software.types[type_])
        return self._schemas[key]

    def read(self) -> AbstractContextManager[Session]:
        return self.database.read()

    @contextmanager
    def change(self) -> Iterator[Change]:
        """One writing transaction. Raising undoes all of it and tells nobody."""
        with self.database.write() as session:
            change = Change(session, clock.now())
            yield change
            if change.capacity:
                self._place(self, change)
        self.tell(change)

    def tell(self, change: Change) -> None:
        """What was committed, to the caches and to who waits."""
        if change.principals:
            self.principals.forget()
        self.slices.mark(change.hosts, change.nodes)
        nodes = change.nodes | {node for node, _ in change.hosts}
        self.hub.announce(change.topics | {f"node:{node}" for node in nodes})

    def end_waits(self) -> None:
        """In the loop: nobody waits any more for what the server would still bring."""
        self.hub.close()
        self.streams.close()

    def close(self) -> None:
        self.database.close()


def new_platform(session: Session, random: Callable[[int], bytes]) -> None:
    """Choose what is chosen once, when it is not yet."""
    if session.get(Meta, "platform") is None:
        values = {
            "platform": str(uuid.uuid4()),
            "prefix": addresses.ula_prefix(random(addresses.PREFIX_BYTES)),
            "offset": str(int.from_bytes(random(4)) % addresses.NODES),
        }
        session.add_all(Meta(key=key, value=value) for key, value in values.items())
        session.flush()
