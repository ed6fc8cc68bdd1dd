"""The whole suite again on PostgreSQL, when its programs are there: an own cluster on a free port, no service."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import POSTGRESQL, free_port

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
SUITE = [
    "test_flow.py",
    "test_requests.py",
    "test_reports.py",
    "test_lists.py",
    "test_joining.py",
    "test_permissions.py",
    "test_images.py",
    "test_vm_nodes.py",
    "test_migrations.py",
]


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """The URL of a new cluster, run by an ordinary user: PostgreSQL refuses root."""
    programs = PROGRAMS[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="clachan-pg-"))
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")
    port, data = free_port(), folder / "data"
    make = [programs / "initdb", "-D", data, "-A", "trust", "-U", "clachan", "-N", "--locale=C", "-E", "UTF8"]
    subprocess.run([*user, *make], check=True, stdout=subprocess.DEVNULL, cwd="/")
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    serve = [programs / "postgres", "-D", data, "-p", str(port), *options]
    with (Path(tempfile.gettempdir()) / f"{folder.name}.log").open("w") as log:
        running = subprocess.Popen([*user, *serve], stdout=log, stderr=log, cwd="/")
    try:
        _wait([programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"])
        yield f"postgresql+psycopg://clachan@127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(30)
        shutil.rmtree(folder)
        Path(log.name).unlink()


def _wait(ready: list[str | Path]) -> None:
    """Until the command succeeds; raises TimeoutError."""
    for _ in range(300):
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise TimeoutError("PostgreSQL: not ready within 30 s")


@pytest.mark.heavy
@pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL's programs are not in /usr/lib/postgresql/*/bin")
@pytest.mark.skipif(POSTGRESQL in os.environ, reason="this is that run")
@pytest.mark.timeout(900)
def test_the_suite_passes_on_postgresql() -> None:
    pytest.importorskip("psycopg")
    here = Path(__file__).parent
    with cluster() as url:
        files = [here / name for name in SUITE]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *files]
        done = subprocess.run(
            command,
            env=os.environ | {POSTGRESQL: url},
            capture_output=True,
            text=True,
            cwd=here.parents[2],
            check=False,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
