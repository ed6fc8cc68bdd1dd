"""The forwarder against a real lake: nothing lost, nothing doubled, whatever is killed or changed."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.forward import config, shipping
from clachan_lake.forward.files import scan, tag_of
from clachan_lake.forward.sender import Sender
from clachan_lake.forward.state import Shipped, State
from clachan_lake.forward.status import faults, summary

from .making import TOKEN, Server, tone, wait_for, wav

pytestmark = pytest.mark.slow


class Forwarder:
    """`python -m clachan_lake.forward` on a directory of its own."""

    def __init__(self, directory: Path, server: Server, **settings: Any) -> None:
        self.directory = directory
        self.files = directory / "files"
        self.files.mkdir()
        self.status_file = directory / "status.json"
        (directory / "token").write_text(TOKEN)
        self.process: subprocess.Popen[bytes] | None = None
        self.config = {
            "directory": str(self.files),
            "url": server.url,
            "token_file": str(directory / "token"),
            "state": str(directory / "state.db"),
            "status": str(self.status_file),
            "chunk_bytes": 1000,
            "stable_seconds": 0.2,
            "flush_seconds": 0.4,
            "scan_seconds": 0.05,
            **settings,
        }

    def start(self) -> "Forwarder":
        (self.directory / "forward.json").write_text(json.dumps(self.config))
        with (self.directory / "forward.log").open("ab") as log:
            command = [sys.executable, "-I", "-m", "clachan_lake.forward", str(self.directory / "forward.json")]
            self.process = subprocess.Popen(command, stderr=log)
        return self

    @property
    def log(self) -> str:
        return (self.directory / "forward.log").read_text()

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def status(self) -> dict[str, Any]:
        return json.loads(self.status_file.read_text())

    def write(self, name: str, data: bytes) -> Path:
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


@pytest.fixture
def forwarder(tmp_path: Path, server: Server) -> Iterator[Forwarder]:
    made = Forwarder(tmp_path, server)
    yield made
    made.stop()


def arrived(server: Server, name: str, data: bytes, final: bool = True) -> None:
    def there() -> bool:
        found = server.get("/streams/meta", name=name)
        return found.status_code == 200 and found.json()["size"] >= len(data) and found.json()["final"] == final

    wait_for(there, f"stream {name}")
    assert server.get("/streams/data", name=name).content == data


def test_files_arrive_once_with_their_end(forwarder: Forwarder, server: Server) -> None:
    files = {
        "once/a.bin": os.urandom(3500),
        "once/b c/ünï & ?.bin": b"x" * 1000,
        "once/empty": b"",
        "once/exact": b"y" * 2000,
    }
    for name, data in files.items():
        forwarder.write(name, data)
    forwarder.write("once/.hidden", b"no")
    (forwarder.files / "once/link").symlink_to("a.bin")
    os.mkfifo(forwarder.files / "once/pipe")
    forwarder.start()
    for name, data in files.items():
        arrived(server, name, data)
    wait_for(lambda: forwarder.status()["files"]["done"] == 4, "four files done")
    status = forwarder.status()
    assert (status["files"], status["last_error"], status["lag_seconds"]) == (
        {"open": 0, "done": 4, "refused": 0, "lost": 0},
        None,
        0,
    )
    for name in ("once/.hidden", "once/link", "once/pipe"):
        assert server.get("/streams/meta", name=name).status_code == 404
    assert server.stream("once/a.bin")["chunks"] == 4
    assert forwarder.stop() == 0
    chunks = status["sent_chunks"]
    forwarder.start()
    time.sleep(0.6)
    assert forwarder.stop() == 0
    assert forwarder.status()["sent_chunks"] == 0 < chunks


def test_a_file_that_grows_is_followed(forwarder: Forwarder, server: Server) -> None:
    forwarder.config["stable_seconds"] = 3600
    path = forwarder.write("grow.log", b"")
    forwarder.start()
    whole = b""
    for number in range(6):
        part = b"line %d\n" % number * 70
        with path.open("ab") as file:
            file.write(part)
        whole += part
        time.sleep(0.15)
    arrived(server, "grow.log", whole, final=False)


def test_a_recording_arrives_as_an_array(forwarder: Forwarder, server: Server) -> None:
    forwarder.config["policy"] = "wav"
    forwarder.write("rec/tone.wav", wav(tone(440, 0.5)))
    forwarder.write("rec/broken.wav", b"no wav")
    forwarder.start()
    assert server.transformed("rec/tone.wav")["transformation"]["state"] == "done"
    assert server.transformed("rec/broken.wav")["transformation"]["state"] == "failed"
    assert server.get("/arrays/meta", name="rec/tone.wav").json()["shape"] == [4000, 1]


def test_another_content_under_the_same_path_is_another_stream(forwarder: Forwarder, server: Server) -> None:
    forwarder.start()
    first, second = b"first" * 500, b"second" * 300
    path = forwarder.write("again", first)
    arrived(server, "again", first)
    wait_for(lambda: forwarder.status()["files"]["done"] == 1, "done")
    path.write_bytes(second)
    arrived(server, "again@2", second)
    with path.open("ab") as file:
        file.write(b"more")
    arrived(server, "again@2", second + b"more")
    draft = forwarder.files / ".draft"
    draft.write_bytes(b"third")
    draft.rename(path)
    arrived(server, "again@3", b"third")
    path.touch()
    time.sleep(0.7)
    assert server.get("/streams/meta", name="again@4").status_code == 404
    assert server.get("/streams/data", name="again").content == first


def test_without_its_memory_it_finds_where_it_was(forwarder: Forwarder, server: Server) -> None:
    data = os.urandom(5300)
    forwarder.write("memory", data)
    forwarder.start()
    arrived(server, "memory", data)
    forwarder.stop()
    for path in forwarder.directory.glob("state.db*"):
        path.unlink()
    with (forwarder.files / "memory").open("ab") as file:
        file.write(b"and more")
    forwarder.start()
    arrived(server, "memory", data + b"and more")
    assert server.get("/streams/meta", name="memory@2").status_code == 404


def test_a_file_removed_too_early_is_said(forwarder: Forwarder, server: Server) -> None:
    forwarder.config["stable_seconds"] = 3600
    path = forwarder.write("early", b"x" * 1500)
    forwarder.start()
    wait_for(lambda: server.get("/streams/meta", name="early").status_code == 200, "first chunk")
    path.unlink()
    wait_for(lambda: forwarder.status()["files"].get("lost") == 1, "loss")
    assert "file 'early': removed after" in faults(forwarder.status_file, 60)[0]
    command = [sys.executable, "-m", "clachan_lake.forward", "--check", str(forwarder.status_file), "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "file 'early': removed after" in done.stdout


def test_what_the_lake_refuses_is_said_and_the_rest_goes_on(forwarder: Forwarder, server: Server) -> None:
    server.post(b"abc", "wav", reference="a-taken")
    forwarder.write("a-taken", b"abcdef")
    forwarder.write("b-free", b"free")
    forwarder.start()
    arrived(server, "b-free", b"free")
    wait_for(lambda: forwarder.status()["files"].get("refused") == 1, "refusal")
    assert "stream a-taken, policy: raw, expected wav" in faults(forwarder.status_file, 60)[0]


def test_a_policy_may_name_streams_otherwise(forwarder: Forwarder, server: Server) -> None:
    server.session.put(
        f"{server.url}/policies/meta?name=named",
        json={"pattern": r"named/(?P<file>\w+)", "name": "logs/{file}"},
        timeout=20,
    )
    forwarder.config["policy"] = "named"
    data = os.urandom(2500)
    path = forwarder.write("named/a", data)
    forwarder.start()
    arrived(server, "logs/a", data)
    forwarder.stop()
    for file in forwarder.directory.glob("state.db*"):
        file.unlink()
    # other pieces than before: only what the lake has tells where to go on
    forwarder.config["chunk_bytes"] = 700
    with path.open("ab") as file_:
        file_.write(b"and more")
    forwarder.start()
    arrived(server, "logs/a", data + b"and more")
    wait_for(lambda: forwarder.status()["files"]["done"] == 1, "done")
    assert server.stream("logs/a")["chunks"] == 4


def test_what_becomes_a_dead_letter_is_counted(forwarder: Forwarder, server: Server) -> None:
    wanted = {"pattern": "odd/.+", "unmatched": "dead"}
    server.session.put(f"{server.url}/policies/meta?name=odd", json=wanted, timeout=20)
    forwarder.config["policy"] = "odd"
    forwarder.write("even/a", b"no policy's")
    forwarder.start()
    wait_for(lambda: forwarder.status_file.exists() and forwarder.status()["dead_letters"] == 1, "dead letter")
    [letter] = [one for one in server.get("/dead").json()["items"] if one["policy"] == "odd"]
    assert (letter["tag"], letter["length"]) == ("even/a", 11)
    assert faults(forwarder.status_file, 60) == []
    assert "1 chunks are dead letters" in summary(forwarder.status_file)


def test_a_token_that_may_only_send_is_enough(forwarder: Forwarder, server: Server) -> None:
    made = server.session.post(f"{server.url}/tokens", json={"scopes": ["ingest:raw"]}, timeout=20)
    (forwarder.directory / "token").write_text(made.json()["token"])
    first, second = b"first" * 500, b"second" * 300
    path = forwarder.write("sent", first)
    forwarder.start()
    arrived(server, "sent", first)
    wait_for(lambda: forwarder.status()["files"]["done"] == 1, "done")
    draft = forwarder.files / ".draft"
    draft.write_bytes(second)
    draft.rename(path)
    arrived(server, "sent@2", second)
    wait_for(lambda: forwarder.status()["files"]["done"] == 1, "done")
    with path.open("ab") as file:
        file.write(b"more")
    arrived(server, "sent@2", second + b"more")
    assert server.get("/streams/data", name="sent").content == first
    wait_for(lambda: forwarder.status()["files"]["done"] == 1, "done")
    forwarder.stop()
    # without its memory it sends again, and the lake knows the chunks
    for file_ in forwarder.directory.glob("state.db*"):
        file_.unlink()
    path.write_bytes(first)
    forwarder.start()
    wait_for(lambda: forwarder.status_file.exists() and forwarder.status()["files"].get("done") == 1, "done")
    assert server.get("/streams/data", name="sent").content == first
    assert faults(forwarder.status_file, 60) == []


def test_a_full_disk_of_its_own_holds_up_and_loses_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent cannot be noted, and the status not be written; then there is room again."""
    made = Forwarder(tmp_path, server)
    state = State(tmp_path / "state.db")
    (tmp_path / "forward.json").write_text(json.dumps(made.config))
    settings = config.load(tmp_path / "forward.json")
    sender = Sender(settings, TOKEN)
    contents = {f"{'x' * 200}/{number:03}": os.urandom(2500) for number in range(40)}
    for name, data in contents.items():
        made.write(name, data)
    pages = state._db.execute("PRAGMA page_count").fetchone()[0]
    state._db.execute(f"PRAGMA max_page_count = {pages}")
    turns, said = count(), []

    def wait(_seconds: float) -> bool:
        """Two turns on the full disk, the rest with room; however slow the lake is meanwhile."""
        if len(said) < 2 and "full" in str(forwarder._status.last_error):
            said.append(forwarder._status.last_error)
            forwarder._status.last_error = None
            if len(said) == 2:
                state._db.execute("PRAGMA max_page_count = 1000000")
        time.sleep(0.02)
        done = [one for one in state.load().values() if one.status == "done"]
        return next(turns) < 1000 and len(done) < len(contents)

    def full(path: Path, status: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shipping, "write", full)
    forwarder = shipping.Forwarder(settings, state, sender, wait)
    forwarder.run()
    assert len(said) == 2
    for name, data in contents.items():
        arrived(server, name, data)
        assert server.stream(name)["chunks"] == 3
    sender.close()
    state.close()


@pytest.mark.slow
def test_wrong_token_and_no_lake_are_said_and_repeated(tmp_path: Path, own_server: Server) -> None:
    own_server.start()
    forwarder = Forwarder(tmp_path / "f", own_server) if (tmp_path / "f").mkdir() is None else None
    assert forwarder
    try:
        (forwarder.directory / "token").write_text("wrong-token")
        forwarder.write("late", b"late data")
        forwarder.start()
        wait_for(lambda: forwarder.status_file.exists() and forwarder.status()["last_error"], "error")
        assert "401 credentials: none or wrong" in forwarder.status()["last_error"]
        assert "wrong-token" not in forwarder.log + forwarder.status_file.read_text()
        forwarder.stop()
        (forwarder.directory / "token").write_text(TOKEN)
        own_server.stop()
        forwarder.start()
        wait_for(lambda: "expected an answer" in str(forwarder.status()["last_error"]), "error")
        wait_for(lambda: faults(forwarder.status_file, 0.1), "fault")
        own_server.start()
        arrived(own_server, "late", b"late data")
        wait_for(lambda: not faults(forwarder.status_file, 60), "no fault")
    finally:
        forwarder.stop()


def test_two_forwarders_do_not_share_a_state(tmp_path: Path) -> None:
    first = State(tmp_path / "state.db")
    try:
        with pytest.raises(BlockingIOError, match="in use, expected no other forwarder on it"):
            State(tmp_path / "state.db")
    finally:
        first.close()


def test_the_state_keeps_any_path(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9/\n\xff")
    state = State(tmp_path / "state.db")
    state.save(Shipped(name, "1:2", 3, 4, 5, "done", "m", 6.0))
    state.close()
    state = State(tmp_path / "state.db")
    assert state.load() == {name: Shipped(name, "1:2", 3, 4, 5, "done", "m", 6.0)}
    state.close()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / os.fsdecode(b"\xff\n")).write_bytes(b"x")
    found, _ = scan(str(tmp_path / "files"))
    assert tag_of(found[0].path, 2) == "%FF%0A@2"
    assert tag_of("a b/ç", 1) == "a b/ç"
    long = tag_of("x" * 5000, 1)
    assert len(long) <= 900
    assert long != tag_of("x" * 5001, 1)


@pytest.mark.slow
def test_killed_at_random_nothing_is_lost_or_doubled(tmp_path: Path, own_server: Server) -> None:
    """Forwarder and lake are killed in turn while files appear and grow."""
    own_server.start()
    (tmp_path / "f").mkdir()
    forwarder = Forwarder(tmp_path / "f", own_server)
    chance = random.Random(5)
    contents: dict[str, bytes] = {}
    try:
        forwarder.start()
        for turn in range(8):
            for name in (f"new{turn}", "growing"):
                part = chance.randbytes(chance.randrange(0, 40_000))
                with (forwarder.files / name).open("ab") as file:
                    file.write(part)
                contents[name] = contents.get(name, b"") + part
            time.sleep(chance.uniform(0, 0.5))
            killed = forwarder if turn % 2 else own_server
            killed.kill()
            killed.start()
        for name, data in contents.items():
            arrived(own_server, name, data)
        names = {item["name"] for item in own_server.get("/streams", limit=500).json()["items"]}
        assert names == set(contents)
    finally:
        forwarder.stop()
