"""A PostgreSQL server of the tests' own, at a unix socket in a folder of its own."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
MISSING = "this machine cannot: no PostgreSQL in /usr/lib/postgresql/*/bin"
_numbers = count(1)


class Cluster:
    """Started by an ordinary user: PostgreSQL refuses root."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clachan-lake-pg-"))
        self._user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        if self._user:
            shutil.chown(self.folder, "postgres", "postgres")
        self.folder.chmod(0o755)
        self._data = self.folder / "data"
        make = [PROGRAMS[-1], "-D", self._data, "-A", "trust", "-U", "clachan", "-N", "--locale=C", "-E", "UTF8"]
        subprocess.run([*self._user, *make], check=True, stdout=subprocess.DEVNULL, cwd="/")
        self.start()

    def start(self) -> None:
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off"]
        serve = [PROGRAMS[-1].parent / "postgres", "-D", self._data, *options]
        with (self.folder.parent / f"{self.folder.name}.log").open("a") as log:
            self.process = subprocess.Popen([*self._user, *serve], stdout=log, stderr=log, cwd="/")
        ready = [PROGRAMS[-1].parent / "pg_isready", "-h", self.folder, "-q"]
        end = time.monotonic() + 30
        while subprocess.run(ready, check=False).returncode != 0:
            assert time.monotonic() < end, "PostgreSQL: not ready within 30 s"
            time.sleep(0.05)

    def create(self) -> str:
        """The URL of a new database."""
        name = f"lake{next(_numbers)}"
        subprocess.run([PROGRAMS[-1].parent / "createdb", "-h", self.folder, "-U", "clachan", name], check=True)
        return f"postgresql://clachan@/{name}?host={self.folder}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # without waiting for clients
            self.process.wait(30)


@contextmanager
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder)
        (made.folder.parent / f"{made.folder.name}.log").unlink(missing_ok=True)
