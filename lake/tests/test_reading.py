"""Reading over HTTP: pages, ranges, rows; and transformations as readers see them."""

import io
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from clachan_lake.errors import MissingError, RemoteError
from clachan_lake.opening import open_lake

from .making import TOKEN, Server, tone, wait_for, wav


def test_lists_come_in_pages(server: Server) -> None:
    for number in range(7):
        server.post(b"x", reference=f"page/{number}")
    names, cursor, turns = [], "", 0
    while cursor is not None:
        page = server.get("/streams", limit=3, cursor=cursor, prefix="page/").json()
        names += [item["name"] for item in page["items"]]
        cursor, turns = page["cursor"], turns + 1
    assert names == [f"page/{number}" for number in range(7)]
    assert turns == 3
    assert server.get("/streams", limit=501).status_code == 400


@pytest.mark.parametrize(
    ("header", "status", "content"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=8-", 206, b"89"),
        ("bytes=-2", 206, b"89"),
        ("bytes=5-500", 206, b"56789"),
        ("bytes=10-", 416, None),
        ("bytes=5-2", 416, None),
        ("bytes=-", 416, None),
        ("bytes=0-1,3-4", 416, None),
        ("lines=1-2", 416, None),
    ],
)
def test_ranges(server: Server, header: str, status: int, content: bytes | None) -> None:
    if server.get("/streams/meta", name="range").status_code == 404:
        server.post(b"0123", reference="range")
        server.post(b"456789", reference="range")
    answer = server.session.get(f"{server.url}/streams/data?name=range", headers={"Range": header}, timeout=10)
    assert answer.status_code == status
    if content is not None:
        assert answer.content == content
        assert answer.headers["Content-Range"].endswith("/10")
    else:
        assert answer.headers["Content-Range"] == "bytes */10"


def test_a_prefix_has_a_digest(server: Server) -> None:
    server.post(b"abcdef", reference="prefix")
    digest = server.get("/streams/sha256", name="prefix", size=3).json()
    assert digest["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert server.get("/streams/sha256", name="prefix", size=7).status_code == 400


def test_a_recording_becomes_an_array(server: Server) -> None:
    data = wav(tone(440, 1), rate=8000)
    for start in range(0, len(data), 5000):
        last = int(start + 5000 >= len(data))
        assert server.post(data[start : start + 5000], "wav", reference="tone.wav", final=last).status_code == 204
    assert server.transformed("tone.wav")["transformation"]["state"] == "done"
    meta = server.get("/arrays/meta", name="tone.wav").json()
    assert (meta["shape"], meta["dtype"], meta["attrs"]["rate"]) == ([8000, 1], "<i2", 8000)
    answer = server.get("/arrays/data", name="tone.wav", npy=1)
    array = np.load(io.BytesIO(answer.content))
    assert (array.shape, array.tobytes()) == ((8000, 1), tone(440, 1))
    rows = server.get("/arrays/data", name="tone.wav", start=10, stop=12).content
    assert rows == tone(440, 1)[20:24]
    for start, stop in ((5, 4), (0, 8001)):
        assert server.get("/arrays/data", name="tone.wav", start=start, stop=stop).status_code == 400
    assert server.get("/arrays/data", name="nope").status_code == 404


def test_the_remote_lake_reads_as_the_local_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clachan_lake.remote.BLOCK_BYTES", 5000)
    values = np.zeros(3000, [("t", "<i8"), ("v", "<f4", (2,))])
    values["t"] = np.arange(3000)
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake, lake.transaction():
        lake.arrays.create("remote", 3000, values.dtype)[:] = values
        lake.arrays.create("remote/scalar", (), "f8")[()] = 3
    with open_lake(server.url, token=TOKEN) as lake:
        array = lake.arrays["remote"]
        assert array.dtype == values.dtype
        np.testing.assert_array_equal(array[:], values)
        np.testing.assert_array_equal(array[-5::-700], values[-5::-700])
        assert array[17]["t"] == 17
        assert float(lake.arrays["remote/scalar"][()]) == 3
        assert len(list(array.blocks(16_000))) == 3
        with pytest.raises(MissingError, match="array 'nope': none of this name"):
            lake.arrays["nope"]
    with open_lake(server.url, token="wrong-wrong") as lake, pytest.raises(RemoteError, match="401 credentials"):
        list(lake.streams)


def test_an_idle_stream_ends_by_itself(own_server: Server) -> None:
    own_server.settings["idle_seconds"] = 1
    own_server.start()
    own_server.post(wav(tone(440, 0.1)), "wav", reference="idle.wav")
    assert not own_server.stream("idle.wav")["final"]
    found = own_server.transformed("idle.wav")
    assert (found["ended_by"], found["transformation"]["state"]) == ("idle", "done")


def test_a_stream_left_open_by_a_kill_ends_too(own_server: Server) -> None:
    own_server.start()
    own_server.post(wav(tone(440, 0.1)), "wav", reference="idle.wav")
    own_server.kill()
    own_server.settings["idle_seconds"] = 1
    own_server.start()
    assert own_server.transformed("idle.wav")["transformation"]["state"] == "done"


def worker_of(server: Server) -> int | None:
    """The process id of the server's worker."""
    assert server.process
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return int(children[0]) if children else None


HANGS = """
import time
def transform(batch, output, state):
    if batch.data.startswith(b"big"):
        with open(%r, "a") as calls:
            calls.write("called ")
        time.sleep(300)
"""


def test_what_kills_the_worker_twice_is_given_up_and_the_rest_goes_on(own_server: Server) -> None:
    """A stream that the worker is busy with when it dies twice; here the test is what kills it."""
    own_server.settings["worker_seconds"] = 60
    own_server.start()
    calls = own_server.directory / "calls"
    source = {"kind": "stream", "policy": "wav"}
    document = {"code": HANGS % str(calls), "on": "end", "source": source, "attempts": 2}
    declared = own_server.session.put(
        f"{own_server.url}/transformations/meta", params={"name": "wav"}, json=document, timeout=20
    )
    assert declared.status_code == 200, declared.text
    own_server.post(b"big", "wav", reference="big.wav", final=1)
    for count in (1, 2):
        wait_for(lambda count=count: calls.exists() and calls.read_text() == "called " * count, "a call")
        worker = worker_of(own_server)
        assert worker
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda worker=worker: worker_of(own_server) != worker, "the worker's end")
    found = own_server.transformed("big.wav")
    assert found["transformation"]["message"] == "the worker died of it (signal 9)"
    own_server.post(b"small", "wav", reference="next.wav", final=1)
    assert own_server.transformed("next.wav")["transformation"]["state"] == "done"


def test_idle_memory_is_small(own_server: Server) -> None:
    own_server.settings["worker_seconds"] = 0
    own_server.start()
    own_server.post(wav(tone(440, 0.1)), "wav", reference="a.wav", final=1)
    own_server.transformed("a.wav")
    wait_for(lambda: worker_of(own_server) is None, "the worker's end")
    assert own_server.process
    status = Path(f"/proc/{own_server.process.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident < 120 * 1024


def test_the_worker_ends_with_its_server(own_server: Server) -> None:
    own_server.settings["worker_seconds"] = 60
    own_server.start()
    own_server.post(wav(tone(440, 0.1)), "wav", reference="a.wav", final=1)
    own_server.transformed("a.wav")
    worker = worker_of(own_server)
    assert worker
    own_server.kill()
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or _zombie(worker), "the worker's end")


def _zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


def test_ingested_to_output_is_quick(server: Server) -> None:
    """With a warm worker; the goal is 0.5 s, the limit here leaves room for a loaded machine."""
    server.post(wav(tone(440, 0.1)), "wav", reference="warm.wav", final=1)
    server.transformed("warm.wav")
    began = time.monotonic()
    server.post(wav(tone(440, 0.1)), "wav", reference="quick.wav", final=1)
    server.transformed("quick.wav")
    assert time.monotonic() - began < 5
    assert json.loads(server.get("/arrays/meta", name="quick.wav").text)["shape"] == [800, 1]
