"""Transformations whose function hangs, dies or is hostile, and a server and worker that are killed at any moment: what
is acknowledged is in the output once, and nothing runs outside the worker."""

import os
import pickle
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from clachan_lake.opening import open_lake

from .making import TOKEN, Server, wait_for
from .test_reading import worker_of
from .test_transform_routes import LINES, act, declare, rows, source


def position(server: Server, name: str) -> dict[str, Any]:
    items = server.get("/transformations/positions", name=name).json()["items"]
    return items[0] if items else {}


def letters(server: Server) -> list[dict[str, Any]]:
    return list(server.get("/dead").json()["items"])


@pytest.mark.slow
def test_what_hangs_is_ended_and_given_up_and_the_rest_goes_on(own_server: Server) -> None:
    own_server.start()
    code = LINES.replace("    *lines", "    while b'hang' in batch.data: pass\n    *lines")
    declare(own_server, "t", code=code, source=source("x"), output="{name}.out", attempts=2, timeout_seconds=0.5)
    declare(own_server, "other", code=LINES, source=source("y"), output="{name}.out")
    for body in (b"1\n", b"hang", b"2\n"):
        own_server.post(body, reference="x")
    own_server.post(b"5\n", reference="y")
    assert rows(own_server, "y.out", 1) == [5]
    assert rows(own_server, "x.out", 2) == [1, 2]
    (letter,) = letters(own_server)
    assert (letter["reason"], letter["position"], letter["length"]) == ("the call took longer than 0.5 s", 2, 4)
    assert position(own_server, "t")["dead"] == 1


@pytest.mark.slow
def test_what_kills_its_process_is_counted(own_server: Server) -> None:
    own_server.start()
    code = "import os\n" + LINES.replace(
        "    *lines", "    if b'die' in batch.data: os.kill(os.getpid(), 9)\n    *lines"
    )
    declare(own_server, "t", code=code, source=source("x"), output="{name}.out", attempts=2)
    for body in (b"1\n", b"die", b"2\n"):
        own_server.post(body, reference="x")
    assert rows(own_server, "x.out", 2) == [1, 2]
    (letter,) = letters(own_server)
    assert letter["reason"] == "the worker died of it (signal 9)"
    # mended: the letter is done, at once
    declare(
        own_server,
        "t",
        code=LINES.replace("batch.data", "batch.data.replace(b'die', b'3\\n')"),
        source=source("x"),
        output="{name}.out",
    )
    act(own_server, "t", "retry")
    assert rows(own_server, "x.out", 3) == [1, 2, 3]
    wait_for(lambda: letters(own_server) == [], "no letters")


class Hostile:
    """As a pickle it makes a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.slow
def test_nothing_runs_outside_the_worker(own_server: Server, tmp_path: Path) -> None:
    """Code runs in the worker and nowhere else, and only when there is something to run it on; what looks like a pickle
    is bytes to everything that is built in."""
    own_server.start()
    assert own_server.process
    mark, seen = tmp_path / "mark", tmp_path / "pids"
    code = f"import os\nopen({str(seen)!r}, 'a').write(f'{{os.getpid()}} ')\n{LINES}"
    assert declare(own_server, "t", code=code, source=source("x"), output="{name}.out").status_code == 201
    columns = [{"name": "n", "dtype": "int64"}]
    for name in ("msgpack", "jsonl", "csv"):
        options = {"columns": columns, **({"header": False} if name == "csv" else {})}
        declare(own_server, name, function=name, source=source("hostile"), output=f"{{name}}.{name}", options=options)
    declare(own_server, "wav", function="wav", source=source("hostile"), output="{name}.wav")
    payload = pickle.dumps(Hostile(mark))
    own_server.post(payload, reference="hostile", final=1)
    wait_for(lambda: len(letters(own_server)) == 3, "what is no record")
    wait_for(lambda: position(own_server, "wav").get("state") == "failed", "what is no WAV file")
    assert not seen.exists()
    own_server.post(b"1\n", reference="x")
    rows(own_server, "x.out", 1)
    pids = set(seen.read_text().split())
    assert str(own_server.process.pid) not in pids
    assert len(pids) == 1
    assert not mark.exists()
    # and the payload is what it is taken for
    pickle.loads(payload)
    assert mark.exists()


class Sender(threading.Thread):
    """Sends numbered lines, cut anywhere, each chunk until it is acknowledged."""

    def __init__(self, server: Server, name: str, count: int, seed: int) -> None:
        super().__init__(daemon=True)
        text = b"".join(b"%d\n" % number for number in range(count))
        places = random.Random(seed)
        cuts = sorted(places.sample(range(1, len(text)), 150))
        self.chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        self.server, self.stream = server, name
        self.stopped = False

    def run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {TOKEN}"
            for number, chunk in enumerate(self.chunks):
                self._send(session, number, chunk)
                time.sleep(0.02)

    def _send(self, session: requests.Session, number: int, chunk: bytes) -> None:
        parameters = {"reference": self.stream, "chunk_id": f"{self.stream}-{number}"}
        while not self.stopped:
            try:
                url = f"{self.server.url}/ingest/raw"
                if session.post(url, params=parameters, data=chunk, timeout=10).status_code == 204:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)


COUNT = 20_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_killed_at_any_moment_the_output_has_everything_once(own_server: Server, seed: int) -> None:
    """Server and worker, by SIGKILL, while it sends, runs and folds; two transformations in a row."""
    places = random.Random(seed)
    own_server.settings["worker_seconds"] = 30
    own_server.start()
    declare(own_server, "t", code=LINES, source=source("x|y"), output="{name}.out", attempts=100)
    double = "def transform(batch, output, state):\n    output.append(batch.rows * 2)"
    declare(
        own_server, "u", code=double, source={"kind": "array", "pattern": ".*out"}, output="{name}.twice", attempts=100
    )
    senders = [Sender(own_server, name, COUNT, seed) for name in ("x", "y")]
    for sender in senders:
        sender.start()
    for number in range(6):
        time.sleep(places.uniform(0.3, 1.2))
        worker = worker_of(own_server)
        if number % 2 and worker is not None:
            os.kill(worker, signal.SIGKILL)
        elif not number % 2:
            own_server.kill()
            own_server.start()
    for sender in senders:
        sender.join(60)
        assert not sender.is_alive()
    expected = np.arange(COUNT)
    with open_lake(own_server.socket, blobs=own_server.folder / "blobs") as lake:
        for name, factor in (("x.out", 1), ("y.out", 1), ("x.out.twice", 2), ("y.out.twice", 2)):

            def there(name: str = name) -> bool:
                lake.refresh()
                return name in lake.arrays and len(lake.arrays[name]) >= COUNT

            wait_for(there, f"rows of {name}", 60)
            np.testing.assert_array_equal(lake.arrays[name][:], expected * factor)
    time.sleep(0.5)
    assert letters(own_server) == []
    assert position(own_server, "t")["lag_bytes"] == 0
