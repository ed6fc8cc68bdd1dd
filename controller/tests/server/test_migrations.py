"""Upgrades of a database that has data."""

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from clachan.server.db import migrate
from clachan.server.db.engine import Database
from clachan.server.db.models import JoinToken, Node
from live import database_settings
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

AT = "2026-01-31T12:00:00.000Z"
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("account", {"id": 1, "name": "home", "title": "", "created": AT}),
    ("tenant", {"id": 1, "name": "home", "account_id": 1, "title": "", "created": AT}),
    *[
        (
            "node",
            {"id": name, "name": name, "number": number, "owner_id": owner, "state": "active", "labels": "{}"}
            | {"slots": 1, "slots_directory": "/s", "users": "[]", "memory_mib": 1, "cpu_milli": 1, "disk_mib": 1}
            | {"created": AT, "applied": "{}"},
        )
        for number, (name, owner) in enumerate([("machine", None), ("owned", 1)])
    ],
    (
        "certificate",
        {"fingerprint": "f", "node_id": "machine", "key": "k", "pem": "p", "issued": AT, "expires": AT},
    ),
    (
        "join_token",
        {"id": "t", "hash": "h", "node": "machine", "labels": "{}", "created": AT, "expires": AT, "fingerprint": "f"},
    ),
    (
        "software",
        {"id": 1, "fqcn": "a.b.c", "digest": "d", "collection": "a.b", "version": "1", "size": 1, "platform": False}
        | {"current": True, "meta": "{}", "types": "{}", "registered": AT},
    ),
    (
        "supply",
        {"id": "s", "node_id": "machine", "fqcn": "a.b.c", "software_id": 1, "state": "present", "observed": "present"}
        | {"message": "", "applied": "{}"},
    ),
    (
        "instance",
        {"id": "i", "path": "home.one", "tenant_id": 1, "title": "", "number": 1, "node_id": "machine"}
        | {"slot_index": 0, "memory_mib": 1, "cpu_milli": 1, "observed": "started", "message": "", "since": AT}
        | {"published": "{}", "applied": "{}", "created": AT},
    ),
    *[
        (
            "usage",
            {"id": node, "node": node, "instance": "i", "path": "home.one", "tenant": "home", "account": "home"}
            | {"meter": "cpu_ms", "window_start": AT, "window_end": AT, "epoch": "e", "quantity": 1},
        )
        for node in ("machine", "owned", "forgotten")
    ],
]


def upgrade(database: Database, revision: str) -> None:
    with database.write() as session:
        command.upgrade(migrate.configuration(session.connection()), revision)


def test_nothing_is_lost_when_nodes_learn_of_vms(tmp_path: Path) -> None:
    url = database_settings().get("database_url") or f"sqlite:///{tmp_path / 'x.db'}"
    database = Database(url)
    upgrade(database, "0002")
    with database.write() as session:
        for table, row in ROWS:
            values = ", ".join(f":{name}" for name in row)
            session.execute(text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})"), row)
    assert migrate.migrate(database)
    with database.read() as session:
        for table in ("node", "certificate", "join_token", "software", "supply", "instance", "usage"):
            expected = sum(one == table for one, _ in ROWS)
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == expected, table
        counted = session.execute(text("SELECT id, billable FROM usage ORDER BY id")).all()
        assert [(name, bool(billable)) for name, billable in counted] == [
            ("forgotten", True),
            ("machine", True),
            ("owned", False),
        ]
        assert session.execute(text("SELECT DISTINCT vm_id, generation FROM node")).all() == [(None, None)]
        for table in (Node, JoinToken):
            assert {tuple(links) for links in session.scalars(select(table.links))} == {()}
    with database.write() as session:
        session.execute(text("UPDATE node SET vm_id = 'i' WHERE id = 'owned'"))
    for wrong in ("UPDATE node SET vm_id = 'i' WHERE id = 'machine'", "UPDATE node SET vm_id = 'nobody'"):
        with pytest.raises(IntegrityError), database.write() as session:
            session.execute(text(wrong))
    with database.write() as session:
        session.execute(text("UPDATE join_token SET vm_id = 'i'"))
        session.execute(text("UPDATE node SET vm_id = NULL"))
        session.execute(text("DELETE FROM instance"))
        assert session.scalar(text("SELECT count(*) FROM join_token")) == 0
    database.close()
