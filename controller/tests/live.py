"""A real controller for tests: TLS on a free loopback port, own home, the operator's token, nodes that really join.

    with running_controller(tmp_path) as live:
        live.call("GET", "/instances").json()
        node = live.join("here", slots=4)            # key, CSR, join token, certificate, NodeFact
        live.register(artifact(tmp_path, "acme.web", {"hello": role()}))
        live.supply("here", "acme.web.hello")
        node.call("GET", "/nodes/self/inventory").json()["clachan_inventory"]

`running_controller(home)` serves in a thread of this process and gives its `controller`; with `process=True` it is
the command itself in a process of its own, with its `pid`.
"""

import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

API = "/api/v1"
START_SECONDS = 30
POSTGRESQL = "CLACHAN_TEST_POSTGRESQL"
"""Names a PostgreSQL server by URL: then every controller of the tests gets a database of its own there."""


@dataclass
class Caller:
    """Somebody who calls the controller: by token, by certificate, or nobody."""

    url: str
    ca_file: str
    token: str | None = None
    cert: tuple[str, str] | None = None
    session: requests.Session = field(default_factory=requests.Session)

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> requests.Response:
        """`path` is below /api/v1 unless it begins with /healthz; `body` goes as JSON, `data=` as it is."""
        where = path if path.startswith("/healthz") else API + path
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        headers |= options.pop("headers", {})
        if body is not None:
            options["json"] = body
        options.setdefault("timeout", 60)
        # trust_env off: no proxy and no netrc of the machine
        self.session.trust_env = False
        return self.session.request(
            method, self.url + where, headers=headers, verify=self.ca_file, cert=self.cert, **options
        )

    def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The document of an answer that must be a success."""
        response = self.call(method, path, body, **options)
        assert response.ok, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None


@dataclass
class Node(Caller):
    """A joined node."""

    name: str = ""
    id: str = ""
    folder: Path = Path()
    sequence: int = 0
    spool: str = ""

    def slice(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ok("GET", "/nodes/self/inventory")["clachan_inventory"]
        return found

    def fact(self, content: dict[str, Any]) -> dict[str, Any]:
        """A RawFact with the next sequence and its right id."""
        self.sequence += 1
        identity: list[Any] = ["fact", self.id, self.spool, self.sequence]
        if content["kind"] == "usage":
            identity = ["usage", self.id, content["instance"], content["meter"]]
            identity += [content["window_start"], content["epoch"]]
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        digest = hashlib.sha256(canonical).hexdigest()
        return {"id": digest, "sequence": self.sequence, "at": moment, "content": content}

    def report(self, *contents: dict[str, Any]) -> list[dict[str, Any]]:
        """Send facts, in one batch; gives the verdicts."""
        facts = {"facts": [self.fact(content) for content in contents]}
        verdicts: list[dict[str, Any]] = self.ok("POST", "/nodes/self/reports", facts)["verdicts"]
        return verdicts

    def accepted(self, *contents: dict[str, Any]) -> None:
        verdicts = self.report(*contents)
        assert [verdict["verdict"] for verdict in verdicts] == ["accepted"] * len(contents), verdicts

    def started(self, path: str, **more: Any) -> None:
        """Say that the instance of the slice at `path` has come to its wanted state."""
        mine = self.slice()["records"][path]["clachan_instance"]
        state = {"instance": mine["id"], "revision": mine["revision"], "state": mine["state"]}
        self.accepted({"kind": "instance", **state, **more})


@dataclass
class Live(Caller):
    """A running controller, called as its operator."""

    home: Path = Path()
    pid: int | None = None
    controller: Any = None
    server: Any = None

    def as_user(self, name: str, role: str, tenants: list[str] | None = None, reveal: bool = False) -> Caller:
        """Another user with a token of its own."""
        self.ok("POST", "/users", {"name": name, "role": role, "tenants": tenants or [], "reveal": reveal})
        token = self.ok("POST", "/tokens", {"user": name})["token"]
        return Caller(self.url, self.ca_file, token)

    def tenant(self, name: str) -> None:
        self.ok("POST", "/accounts", {"name": name})
        self.ok("POST", "/tenants", {"name": name, "account": name})

    def join_token(self, node: str, **more: Any) -> str:
        token: str = self.ok("POST", "/join-tokens", {"node": node, **more})["token"]
        return token

    def join(self, name: str, slots: int = 10, mode: str = "root", **more: Any) -> Node:
        """A node that joined and, with `slots` > 0, has reported itself."""
        key, csr = key_and_csr(name)
        folder = self.home / f"joined-{name}"
        folder.mkdir(exist_ok=True)
        joined = Caller(self.url, self.ca_file).ok(
            "POST", "/join", {"token": self.join_token(name, **more), "node": name, "csr": csr}
        )
        (folder / "key.pem").write_bytes(key)
        (folder / "cert.pem").write_text(joined["certificate"])
        cert = (str(folder / "cert.pem"), str(folder / "key.pem"))
        node = Node(self.url, self.ca_file, cert=cert, name=name, id=joined["id"], folder=folder)
        node.spool = os.urandom(8).hex()
        if slots:
            node.accepted(node_fact(slots, mode))
        return node

    def register(self, artifact_file: Path) -> list[dict[str, Any]]:
        """Register a collection's artifact; gives the software."""
        headers = {"content-type": "application/gzip"}
        with artifact_file.open("rb") as file:
            items: list[dict[str, Any]] = self.ok("POST", "/software", data=file, headers=headers)["items"]
        return items

    def supply(self, node: str, fqcn: str, **more: Any) -> dict[str, Any]:
        supply: dict[str, Any] = self.ok("PUT", f"/supplies/{node}/{fqcn}", more)
        return supply

    def request(self, path: str, software: str, **more: Any) -> dict[str, Any]:
        view: dict[str, Any] = self.ok("PUT", f"/instances/{path}", {"software": software, **more})
        return view


def node_fact(slots: int, mode: str = "root", **more: Any) -> dict[str, Any]:
    users = [f"clachan_{index:03d}" for index in range(slots)] if mode == "root" else ["someone"] * slots
    return {
        "kind": "node",
        "version": "0.1.0",
        "mode": mode,
        "slots": slots,
        "slots_directory": "/srv/slots",
        "users": users,
        "cpu_milli": 1_000_000,
        "memory_mib": 1_000_000,
        "disk_mib": 1_000_000,
        "python": "3.11.2",
        "system": "Debian GNU/Linux 12",
        "platform_digest": None,
        **more,
    }


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.01)


def usage_fact(instance: str, minute: int = 0, quantity: int = 7, meter: str = "cpu_ms") -> dict[str, Any]:
    """A minute of usage, two hours ago."""
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    begin, end = hour + timedelta(minutes=minute), hour + timedelta(minutes=minute + 1)
    return {
        "kind": "usage",
        "instance": instance,
        "meter": meter,
        "window_start": begin.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "window_end": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "epoch": "boot",
        "quantity": quantity,
    }


def key_and_csr(name: str) -> tuple[bytes, str]:
    """A private key and a certificate request, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, csr.public_bytes(Encoding.PEM).decode()


def role(
    options: dict[str, Any] | None = None, meta: dict[str, Any] | None = None, tasks: str = "[]\n", **types: Any
) -> dict[str, str]:
    """The files of a software role by their path in it; `options` of `main`, `types` are options of other types."""
    specs = {"main": {"options": options or {}}} | {name: {"options": found} for name, found in types.items()}
    files = {
        "meta/argument_specs.yml": yaml.safe_dump({"argument_specs": specs}),
        "meta/clachan.yml": yaml.safe_dump({"title": "A role", **(meta or {})}),
    }
    return files | {f"tasks/{name}.yml": tasks for name in specs}


def artifact(folder: Path, collection: str, roles: dict[str, dict[str, str]], version: str = "1.0.0") -> Path:
    """A collection's artifact as `ansible-galaxy collection build` makes it; the same files give the same digest."""
    contents = {f"roles/{name}/{path}": text.encode() for name, files in roles.items() for path, text in files.items()}
    listed = [{"name": ".", "ftype": "dir", "chksum_type": None, "chksum_sha256": None, "format": 1}]
    for name, content in sorted(contents.items()):
        digest = hashlib.sha256(content).hexdigest()
        listed.append({"name": name, "ftype": "file", "chksum_type": "sha256", "chksum_sha256": digest, "format": 1})
    files = json.dumps({"files": listed, "format": 1}, indent=1).encode()
    namespace, _, short = collection.partition(".")
    manifest = {
        "collection_info": {"namespace": namespace, "name": short, "version": version},
        "file_manifest_file": {"name": "FILES.json", "chksum_sha256": hashlib.sha256(files).hexdigest(), "format": 1},
        "format": 1,
    }
    path = folder / f"{namespace}-{short}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"MANIFEST.json": json.dumps(manifest).encode(), "FILES.json": files, **contents}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@contextlib.contextmanager
def counted(live: Live) -> Iterator[list[str]]:
    """The statements that the controller sends meanwhile."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            statements.append(statement)

    from sqlalchemy import event

    engine = live.controller.database.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


@contextlib.contextmanager
def running_controller(home: Path, *, process: bool = False, **settings: Any) -> Iterator[Live]:
    """A controller that was made with `init` and serves; `settings` go into its config.json."""
    write_settings(home, settings)
    live = _initialised(home)
    serving = _in_process(home) if process else _in_thread(home)
    with serving as (live.pid, live.controller, live.server), live.session:
        wait_until_healthy(live)
        yield live


def write_settings(home: Path, settings: dict[str, Any]) -> None:
    """Add to HOME/controller/config.json; a free port is chosen once."""
    path = home / "controller" / "config.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {"port": free_port()} | database_settings()
    path.write_text(json.dumps(kept | settings))


def database_settings() -> dict[str, str]:
    """The setting of a new database on the PostgreSQL server of the environment; nothing without one."""
    server = os.environ.get(POSTGRESQL)
    if server is None:
        return {}
    import psycopg

    name = f"test_{os.urandom(8).hex()}"
    with psycopg.connect(server.replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return {"database_url": f"{server}/{name}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _initialised(home: Path) -> Live:
    from clachan.server.start import initialise

    initialise(home)
    known = json.loads((home / "credentials.json").read_text())
    return Live(known["url"], known["ca_file"], known["token"], home=home)


@contextlib.contextmanager
def _in_thread(home: Path) -> Iterator[tuple[int, Any, Any]]:
    from clachan.server.start import build, prepare

    controller = prepare(home)
    server = build(controller)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield os.getpid(), controller, server
    finally:
        server.should_exit = True
        thread.join(20)
        controller.close()
        assert not thread.is_alive(), "the controller did not end within 20 s"


@contextlib.contextmanager
def _in_process(home: Path) -> Iterator[tuple[int, None, None]]:
    command = [sys.executable, "-m", "clachan.server", "serve", "--home", str(home)]
    with (home / "controller.log").open("ab") as log:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield running.pid, None, None
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_until_healthy(live: Caller) -> None:
    """Until it answers; raises TimeoutError."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(requests.ConnectionError):
            if live.call("GET", "/healthz", timeout=5).ok:
                return
        time.sleep(0.05)
    raise TimeoutError(f"controller {live.url}: not healthy within {START_SECONDS} s")
