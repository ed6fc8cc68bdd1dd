"""The forwarder's reader of usage records against the real controller: its route, its order, its pages, its TLS."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.forward import usage
from clachan_lake.forward.connection import Connection, UnreachableError
from clachan_lake.forward.spool import Spool
from clachan_lake.forward.usage import UsageReader

from .conftest import SOFTWARE, Platform

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", 1 << 20)
    yield made
    made.close()


@pytest.fixture
def connection(platform: Platform) -> Iterator[Connection]:
    made = Connection("controller", platform.live.url, platform.live.token, 20, Path(platform.live.ca_file))
    yield made
    made.close()


def fact(instance: dict[str, Any], number: int) -> dict[str, Any]:
    """Of the minute `number`."""
    start = START + timedelta(minutes=number)
    return {
        "kind": "usage",
        "instance": instance["id"],
        "meter": "cpu_milliseconds",
        "window_start": start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "window_end": (start + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "epoch": "boot",
        "quantity": number,
    }


def taken(spool: Spool) -> list[dict[str, Any]]:
    found = []
    while chunk := spool.due("usage", 0):
        found += [json.loads(line) for line in chunk.data.splitlines()]
        spool.done(chunk)
    return found


def test_what_the_controller_counts_is_read_once(
    platform: Platform, spool: Spool, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "PAGE", 50)
    one = platform.live.request("home.shipped", SOFTWARE)
    for number in range(120):
        if number not in {5, 110}:
            platform.node.accepted(fact(one, number))
    reader = UsageReader(connection, spool)
    reader.turn()
    kept = [record for record in taken(spool) if record["path"] == "home.shipped"]
    assert [record["quantity"] for record in kept] == [number for number in range(120) if number not in {5, 110}]
    known = {record["id"]: record for record in platform.live.ok("GET", "/usage?path=home.shipped&limit=500")["items"]}
    assert {record["id"]: record for record in kept} == known
    # late ones: one within the hour before the last, one of earlier, which only the look a week back finds
    platform.node.accepted(fact(one, 110), fact(one, 5), fact(one, 120))
    reader.turn()
    assert [record["quantity"] for record in taken(spool)] == [110, 120]
    UsageReader(connection, spool).turn()
    assert [record["quantity"] for record in taken(spool)] == [5]
    UsageReader(connection, spool).turn()
    assert taken(spool) == []


def test_a_token_that_is_none_is_said(platform: Platform, spool: Spool) -> None:
    connection = Connection("controller", platform.live.url, "not-a-token", 20, Path(platform.live.ca_file))
    with pytest.raises(UnreachableError, match="usage records: 401 "):
        UsageReader(connection, spool).turn()
    connection.close()
