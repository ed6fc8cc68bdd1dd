"""Settings, migrations, the CA, start and end, what is pruned."""

import json
import logging
import re
import signal
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clachan.server import ca, clock
from clachan.server.db import migrate
from clachan.server.db.engine import Database
from clachan.server.db.models import Base
from clachan.server.services import upkeep
from clachan.server.settings import Settings, SettingsError, load
from clachan.server.start import LineFormatter
from cryptography import x509
from live import Live, running_controller, wait_until_healthy, write_settings
from sqlalchemy import create_engine, text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"port": "80"}', "setting port in {file}: '80', expected: Input should be a valid integer"),
        ('{"prot": 80}', "setting prot in {file}: 80, expected: Extra inputs are not permitted"),
        ('{"event_days": 0}', "setting event_days in {file}: 0, expected: Input should be greater than or equal to 1"),
        ("[]", "setting (all) in {file}: [], expected: Input should be a valid dictionary or instance of Settings"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "controller" / "config.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path)
    assert str(caught.value) == message.format(file=file)


def test_every_setting_has_default_and_help() -> None:
    assert all(field.description and not field.is_required() for field in Settings.model_fields.values())


def test_the_migrations_make_the_models_schema(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    assert migrate.migrate(database)
    assert not migrate.migrate(database)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    assert ScriptDirectory.from_config(migrate.configuration()).get_current_head() == migrate.HEAD
    database.close()


def test_a_failed_transaction_leaves_nothing_and_tells_nobody(live: Live) -> None:
    before = live.controller.hub.version("instance:home.x")

    def fail() -> None:
        with live.controller.change() as change:
            change.event("x", "never")
            change.topics.add("instance:home.x")
            change.session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert live.ok("GET", "/events?kind=x")["items"] == []
    assert live.controller.hub.version("instance:home.x") == before


def test_times_sort_as_text() -> None:
    assert clock.normal("2026-01-31T13:00:00+01:00") == "2026-01-31T12:00:00.000Z"
    with pytest.raises(ValueError, match=r"time '2026-01-31T12:00:00', expected ISO 8601 with a zone"):
        clock.parse("2026-01-31T12:00:00")
    moments = [clock.after(seconds) for seconds in (-100000, -1, 0.001, 5, 1e6)]
    assert moments == sorted(moments)


def test_the_server_certificate_is_renewed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = ca.Authority(tmp_path)
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    first = authority.server_certificate(["localhost", "127.0.0.1"], 90)[0].read_bytes()
    certificate = x509.load_pem_x509_certificate(first)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    certificate.verify_directly_issued_by(authority.certificate)
    again = ca.Authority(tmp_path)
    assert again.fingerprint == authority.fingerprint
    assert again.server_certificate(["localhost", "127.0.0.1"], 90)[0].read_bytes() == first
    other = again.server_certificate(["localhost"], 90)[0].read_bytes()
    assert other != first

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=61)

    monkeypatch.setattr(ca, "datetime", Later)
    assert again.server_certificate(["localhost"], 90)[0].read_bytes() != other


def test_a_running_server_takes_its_renewed_certificate(live: Live) -> None:
    address = ("127.0.0.1", int(live.url.rpartition(":")[2]))
    before = ssl.get_server_certificate(address)
    live.server.renew()
    assert ssl.get_server_certificate(address) == before
    (live.home / "controller" / "ca" / "server.crt").unlink()
    live.server.renew()
    assert ssl.get_server_certificate(address) != before
    live.session.close()
    live.ok("GET", "/principal")


def test_init_can_be_repeated(tmp_path: Path) -> None:
    write_settings(tmp_path, {})
    command = [sys.executable, "-m", "clachan.server", "init", "--home", str(tmp_path)]
    answers = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert answers == ["controller made\n", "controller ready\n"]
    credentials = tmp_path / "credentials.json"
    assert credentials.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "controller").stat().st_mode & 0o777 == 0o700
    assert set(json.loads(credentials.read_text())) == {"url", "token", "ca_file"}
    damaged = json.loads(credentials.read_text()) | {"token": "clachan_lost"}
    credentials.write_text(json.dumps(damaged))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with running_controller(tmp_path) as live:
        assert live.ok("GET", "/principal")["name"] == "operator"
        assert live.ok("GET", "/tenants")["items"][0]["account"] == "home"


def test_a_wrong_setting_ends_the_command_with_one_line(tmp_path: Path) -> None:
    write_settings(tmp_path, {"port": "x"})
    command = [sys.executable, "-m", "clachan.server", "serve", "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"controller: setting port in .*: 'x', expected: .*\n", done.stderr)


def test_a_home_is_served_once_and_ends_cleanly(tmp_path: Path) -> None:
    with running_controller(tmp_path, process=True) as live:
        command = [sys.executable, "-m", "clachan.server", "serve", "--home", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert "is served by another process, expected none" in second.stderr
        live.ok("POST", "/accounts", {"name": "x", "title": "secret title\nnew line"})
        assert live.pid is not None
        import os

        begin = time.monotonic()
        os.kill(live.pid, signal.SIGTERM)
        os.waitpid(live.pid, 0)
        assert time.monotonic() - begin < 8
    log = (tmp_path / "controller.log").read_text()
    assert re.search(r"Z INFO clachan\.server\.api\.admission done method=POST path=/api/v1/accounts by=operator", log)
    assert "secret title" not in log
    assert "Traceback" not in log


def test_a_line_of_the_log_is_one_line() -> None:
    record = logging.LogRecord("x", logging.ERROR, "", 0, "first\nsecond %s", ("a\r\nb",), None)
    assert LineFormatter("%(message)s").format(record) == r"first\nsecond a\r\nb"


def test_old_events_are_pruned_and_usage_is_not(live: Live) -> None:
    from clachan.server.db.models import Event, Fact, Usage

    old, new = clock.after(-91 * 86400), clock.now()
    with live.controller.change() as change:
        for at in (old, new):
            change.session.add(Event(at=at, kind="probe", message="", data={}))
        ancient = clock.after(-500 * 86400)
        for kind in ("usage", "run"):
            row = Fact(id=kind.ljust(64, "0"), node_id="x", kind=kind, digest="x", received=ancient)
            change.session.add(row)
        usage = Usage(id="0" * 64, node="n", instance="i", path="a.b", tenant="a", account="a", meter="m", epoch="e")
        usage.window_start, usage.window_end, usage.quantity = ancient, ancient, 1
        change.session.add(usage)
    assert upkeep.prune(live.controller) == 1
    assert [row["at"] for row in live.ok("GET", "/events?kind=probe")["items"]] == [new]
    assert len(live.ok("GET", "/usage")["items"]) == 1
    with live.controller.read() as session:
        assert [row.kind for row in session.query(Fact)] == ["usage"]


def test_what_was_seen_of_nodes_survives_a_restart(tmp_path: Path) -> None:
    with running_controller(tmp_path) as live:
        live.join("here").slice()
        seen = live.ok("GET", "/nodes/here")["seen"]
        assert clock.parse(seen) > datetime.now(UTC) - timedelta(minutes=1)
    with running_controller(tmp_path) as live:
        assert live.ok("GET", "/nodes/here")["seen"] == seen
        assert live.ok("GET", "/nodes/here")["online"]


def test_the_openapi_names_every_document(live: Live) -> None:
    described = live.ok("GET", "/openapi.json")
    assert "Declaration" in described["components"]["schemas"]
    put = described["paths"]["/api/v1/instances/{path}"]["put"]
    assert put["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Declaration")


def test_a_database_that_fails_is_unhealthy(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = create_engine("sqlite:////nonexistent/x.db")
    engine = live.controller.database.engine
    monkeypatch.setattr(live.controller.database, "engine", broken)
    response = live.call("GET", "/healthz")
    monkeypatch.setattr(live.controller.database, "engine", engine)
    assert (response.status_code, response.json()["status"]) == (503, "failing")
    assert response.json()["checks"] == {"database": "failing"}
    wait_until_healthy(live)
