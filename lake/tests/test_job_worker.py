"""Jobs that a worker does: submitted over HTTP and through the socket, by functions that do all that functions do."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.errors import JobError, LateError, RemoteError, TakenError, UntrustedError
from clachan_lake.interface import Lake
from clachan_lake.opening import open_lake

from .making import TOKEN, Server, wait_for
from .test_cli import cli
from .working import Hostile, WorkerProcess, alive, running, told_pid

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("served"), job_lease_seconds=4).start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def worker(served: Server) -> Iterator[WorkerProcess]:
    made = WorkerProcess(served, served.directory / "worker", processes=2)
    yield made
    assert made.stop() == 0, made.log_file.read_text()


@pytest.fixture
def away(served: Server, worker: WorkerProcess) -> Iterator[Lake]:
    """The lake at its URL."""
    assert worker.process.poll() is None
    with open_lake(served.url, token=TOKEN) as lake:
        yield lake


@pytest.fixture
def near(served: Server, worker: WorkerProcess) -> Iterator[Lake]:
    """The lake at its socket."""
    assert worker.process.poll() is None
    with open_lake(served.socket, blobs=served.folder / "blobs") as lake:
        yield lake


@pytest.mark.parametrize("place", ["away", "near"])
def test_a_result_comes_back(place: str, request: pytest.FixtureRequest) -> None:
    lake: Lake = request.getfixturevalue(place)

    def work(count: int, *, factor: float) -> Any:
        print("working")
        return {"values": np.arange(count) * factor, "sum": math.fsum(range(count))}

    job = lake.submit(work, 1000, factor=2.0, name="my work")
    found = job.result(30)
    assert found["sum"] == 499500
    np.testing.assert_array_equal(found["values"], np.arange(1000) * 2.0)
    document = lake.jobs[job.id].document
    assert (document["name"], document["state"], document["worker"], document["attempt"]) == (
        "my work",
        "done",
        "worker",
        1,
    )
    assert document["submitted"] <= document["started"] <= document["ended"]
    assert job.log == "working\n"
    assert job.id in list(lake.jobs)


@pytest.mark.parametrize("place", ["away", "near"])
def test_a_large_argument_and_a_large_result_in_an_array(place: str, request: pytest.FixtureRequest) -> None:
    lake: Lake = request.getfixturevalue(place)
    given = np.random.default_rng(1).random((200_000, 4))
    job = lake.submit(lambda rows: rows[::2] * 2, given, into=f"half/{place}")
    found = job.result(30)
    assert (found.name, found.shape) == (f"half/{place}", (100_000, 4))
    np.testing.assert_array_equal(lake.arrays[f"half/{place}"][:], given[::2] * 2)
    with pytest.raises(TakenError, match=r"into: array 'half/.*' exists"):
        lake.submit(lambda: 1, into=f"half/{place}")


def test_the_functions_lake_is_its_jobs(away: Lake) -> None:
    def work() -> list[int]:
        from clachan_lake import open_lake

        with open_lake() as lake:
            lake.arrays.create("made", 3, "i8").append([7])
            return lake.arrays["made"][:].tolist()

    assert away.submit(work).result(30) == [0, 0, 0, 7]


def test_a_job_may_submit_another(away: Lake) -> None:
    def outer() -> int:
        from clachan_lake import open_lake

        with open_lake() as lake:
            return lake.submit(math.factorial, 5).result(30) + 1

    assert away.submit(outer).result(40) == 121


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: os._exit(7), "its process ended with exit status 7, expected it to return"),
        (lambda: os.kill(os.getpid(), 11), "its process died of signal 11, expected it to return"),
        (lambda: os.kill(os.getpid(), 9), "its process was killed (signal 9), perhaps as memory ran out"),
    ],
)
def test_a_function_that_fails(away: Lake, work: Any, message: str) -> None:
    job = away.submit(work)
    with pytest.raises(JobError) as caught:
        job.result(30)
    assert f"job {job.id}, <lambda>: failed: {message}" in str(caught.value)
    assert (caught.value.state, job.document["attempt"]) == ("failed", 1)


def test_the_log_has_the_traceback_of_the_function_alone(away: Lake) -> None:
    def broken() -> None:
        print("before")
        raise LookupError("nothing")

    job = away.submit(broken)
    assert job.wait(30) == "failed"
    assert job.log.startswith("before\nTraceback")
    assert "in broken" in job.log
    assert "running.py" not in job.log
    assert job.message == "LookupError: nothing"


def test_a_module_that_the_worker_has_not(away: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def twice(n):\n    return 2 * n\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    job = away.submit(only_here.twice, 4)
    with pytest.raises(JobError, match="ModuleNotFoundError: No module named 'only_here'"):
        job.result(30)
    assert away.submit(only_here.twice, 4, modules=[only_here]).result(30) == 8


def test_another_python_is_refused_before_anything_is_loaded(served: Server, away: Lake) -> None:
    order = {"name": "old", "environment": {"python": "3.9", "packages": {"numpy": "1.0"}}}
    away.jobs.put("0" * 8 + "-0000-4000-8000-" + "0" * 12, order, b"not even a pickle")
    job = away.jobs["0" * 8 + "-0000-4000-8000-" + "0" * 12]
    assert job.wait(30) == "failed"
    ours = ".".join(map(str, sys.version_info[:2]))
    assert job.message == f"RuntimeError: job: code of Python 3.9, expected {ours}, which this worker has"
    assert f"Python 3.9 where it was submitted, {ours} here; numpy 1.0 where it was submitted" in job.log
    assert served.process
    assert served.process.poll() is None


def test_a_call_that_is_no_pickle(away: Lake) -> None:
    away.jobs.put(other := "1" * 8 + "-0000-4000-8000-" + "0" * 12, {"name": "noise"}, b"noise")
    assert away.jobs[other].wait(30) == "failed"
    assert away.jobs[other].message == "_pickle.UnpicklingError: invalid load key, 'n'."


def test_a_hostile_pickle_runs_in_the_jobs_process_alone(
    served: Server, worker: WorkerProcess, away: Lake, near: Lake, tmp_path: Path
) -> None:
    """As the call, and as its result."""
    ran, opened = tmp_path / "ran", tmp_path / "opened"
    job = near.submit(math.sqrt, Hostile(ran))
    assert job.result(30) == 0
    pids = ran.read_text().split()
    assert len(pids) == 1
    assert served.process
    assert not {str(served.process.pid), str(worker.process.pid), str(os.getpid())} & set(pids)
    ran.unlink()

    returned = away.submit(lambda make: make(opened), Hostile, modules=[sys.modules[Hostile.__module__]])
    assert returned.wait(30) == "done"
    for lake in (away, near):
        with pytest.raises(UntrustedError, match="result: a pickle, which runs code of the job when it is opened"):
            lake.jobs[returned.id].result()
        assert lake.jobs[returned.id].document["result"]["kind"] == "pickle"
    for path in ("/jobs", f"/jobs/meta?id={returned.id}", f"/jobs/result?id={returned.id}", f"/jobs/log?id={job.id}"):
        assert served.get(path).status_code == 200
    assert not ran.exists()
    assert not opened.exists()
    away.jobs[returned.id].result(trust=True)
    assert opened.read_text().split() == [str(os.getpid())]


def test_a_running_job_is_cancelled_with_all_that_it_started(away: Lake, tmp_path: Path) -> None:
    def work(file: str) -> None:
        import subprocess

        script = f"import os, time; os.setsid(); open({file!r}, 'w').write(str(os.getpid())); time.sleep(300)"
        subprocess.Popen([sys.executable, "-c", script])
        time.sleep(300)

    job = away.submit(work, str(tmp_path / "pid"))
    grandchild = told_pid(tmp_path / "pid")
    assert job.cancel()
    assert job.wait(10) == "cancelled"
    assert job.message == "cancelled while it ran"
    wait_for(lambda: not alive(grandchild), "end of what the job had started")


def test_a_job_that_hangs_is_ended_at_its_time(away: Lake) -> None:
    job = away.submit(time.sleep, 300, timeout_seconds=1.5)
    with pytest.raises(JobError, match=r"failed: time limit: 1\.5 s are over, expected it to end before"):
        job.result(20)


def test_a_job_that_takes_too_much_memory_fails_alone(away: Lake) -> None:
    def work(mib: int) -> int:
        return np.ones(mib << 17).nbytes

    job = away.submit(work, 600, memory_mib=300)
    with pytest.raises(JobError, match="MemoryError"):
        job.result(30)
    assert away.submit(work, 20, memory_mib=300).result(30) == 20 << 20


def test_a_thread_that_is_left_does_not_hold_the_result_up(away: Lake) -> None:
    def work() -> int:
        import threading

        threading.Thread(target=time.sleep, args=(100,)).start()
        return 5

    assert away.submit(work).result(20) == 5


def test_a_flood_of_output_is_bounded(away: Lake) -> None:
    def work() -> None:
        for _ in range(200_000):
            print("x" * 99)
        print("the end")

    job = away.submit(work)
    assert job.result(60) is None
    assert len(job.log) < 2 << 20
    assert "characters were too many]" in job.log


def test_the_jobs_folder_is_its_own_and_goes(worker: WorkerProcess, away: Lake) -> None:
    def work() -> tuple[str, str | None, bool]:
        import tempfile

        Path("left").write_text("x")
        os.chmod(".", 0o500)
        return os.getcwd(), tempfile.gettempdir(), "a-token" in str(dict(os.environ))

    folder, temporary, told = away.submit(work).result(30)
    assert folder == temporary
    assert folder.startswith(str(worker.directory / "work/job-"))
    assert not told
    wait_for(lambda: not Path(folder).exists(), "end of the job's folder")


def test_who_submitted_may_be_gone(served: Server, worker: WorkerProcess) -> None:
    """A process that submits and ends: the job goes on, and another finds its result."""
    script = (
        "from clachan_lake import open_lake\n"
        "import time\n"
        f"with open_lake({served.url!r}, token={TOKEN!r}) as lake:\n"
        "    print(lake.submit(lambda: time.sleep(2) or 42, name='away').id)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    with open_lake(served.url, token=TOKEN) as lake:
        assert lake.jobs[done.stdout.strip()].result(30) == 42


def test_the_verbs_of_jobs(served: Server, away: Lake, near: Lake) -> None:
    def work() -> None:
        print("\x1b[31mred\x07")
        time.sleep(200)

    job = away.submit(work, name="[bold]verbs")
    running(job)
    wait_for(lambda: job.log, "log")
    lake = ("--token-file", served.token_file)
    listed = cli("job", "list", served.url, *lake, "--json")
    assert next(item for item in json.loads(listed) if item["id"] == job.id)["state"] == "running"
    assert "[bold]verbs" in cli("job", "list", served.url, "--state", "running", *lake)
    assert json.loads(cli("job", "show", served.url, job.id, *lake))["attempt"] == 1
    assert cli("job", "log", served.url, job.id, *lake) == "\ufffd[31mred\ufffd\n"
    assert cli("job", "cancel", served.socket, job.id, "--blobs", served.folder / "blobs") == f"{job.id}: cancelled\n"
    assert near.jobs[job.id].wait(10) == "cancelled"
    assert cli("job", "cancel", served.url, job.id, *lake) == f"{job.id}: it had ended before\n"
    assert "none of this id" in cli("job", "show", served.url, "x", *lake, status=1)


def test_deleted_jobs_are_gone_and_running_ones_stay(away: Lake) -> None:
    job = away.submit(time.sleep, 100)
    running(job)
    with pytest.raises((TakenError, LateError, RemoteError), match=f"job {job.id}: running, expected one that has"):
        job.delete()
    job.cancel()
    job.wait(10)
    job.delete()
    assert job.id not in list(away.jobs)


def test_a_worker_of_the_command_line(own_server: Server, tmp_path: Path) -> None:
    own_server.start()
    command = [str(Path(sys.executable).with_name("clachan-lake")), "work", own_server.url, "--token-file"]
    command += [str(own_server.token_file), "--directory", str(tmp_path / "work"), "--processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with open_lake(own_server.url, token=TOKEN) as lake:
            assert lake.submit(math.factorial, 5).result(30) == 120
            assert len(lake.jobs.workers()) == 2
        status = tmp_path / "work/status.json"
        wait_for(status.exists, "status")
        check = [sys.executable, "-I", "-m", "clachan_lake.jobs.worker", "--check", str(status)]
        done = subprocess.run(check, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stdout) == (0, "0 jobs run\n")
        old = tmp_path / "old.json"
        old.write_text(json.dumps({"seen": time.time() - 300, "error": "refused", "running": []}))
        done = subprocess.run([*check[:-1], str(old)], capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stdout) == (1, "lake: no answer for 300 s; refused\n")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_an_idle_worker_is_small(worker: WorkerProcess) -> None:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    own = int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))
    assert own < 20 << 10
