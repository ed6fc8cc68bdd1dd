"""The routes of jobs as a client that is no library speaks to them: late, twice, wrong, without the scope."""

import io
import json
import threading
import time
from typing import Any

import numpy as np
import pytest
import requests
from clachan_lake.jobs import document, value

from .making import Server


def call(server: Server, method: str, path: str, body: bytes = b"", token: str = "", **query: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return server.session.request(method, server.url + path, params=query, data=body, headers=headers, timeout=30)


def submit(server: Server, call_: bytes = b"a call", job: str = "", **order: Any) -> requests.Response:
    order = {"name": "test", **order}
    return call(server, "POST", "/jobs", call_, id=job or document.new_id(), order=json.dumps(order))


def take(server: Server, slot: str = "slot", **more: Any) -> dict[str, Any] | None:
    answer = call(server, "POST", "/jobs/take", worker="test", slot=slot, **more)
    assert answer.status_code in {200, 204}, answer.text
    return answer.json() if answer.status_code == 200 else None


def taken(server: Server, **order: Any) -> str:
    job = submit(server, **order).json()["id"]
    found = take(server, job)
    assert found
    assert found["id"] == job
    return job


def finish(server: Server, job: str, returned: Any, attempt: int = 1) -> requests.Response:
    file = io.BytesIO()
    kind = value.write(returned, file)
    return call(
        server, "POST", "/jobs/finish", file.getvalue(), id=job, attempt=attempt, state="done", kind=kind, message=""
    )


def refusal(answer: requests.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


def test_a_job_from_its_submission_to_its_end(server: Server) -> None:
    job = document.new_id()
    answer = submit(server, job=job, into="routes/out", environment={"python": "3.11", "packages": {"numpy": "2"}})
    assert (answer.status_code, answer.json()["state"], answer.json()["submitter"]) == (201, "queued", "owner")
    assert submit(server, job=job, into="routes/out").status_code == 200
    found = take(server)
    assert found
    assert (found["id"], found["attempt"], found["lease_seconds"], found["into"]) == (job, 1, 30, "routes/out")
    assert call(server, "GET", "/jobs/call", id=job, attempt=1).content == b"a call"
    assert call(server, "POST", "/jobs/beat", id=job, attempt=1).json() == {"cancel": False}
    assert call(server, "POST", "/jobs/log", b"caf\xc3\xa9\n", id=job, attempt=1, position=0).status_code == 204
    assert server.get("/jobs/log", id=job).text == "café\n"
    meta = server.get("/jobs/meta", id=job).json()
    assert abs(meta["heartbeat"] / 1000 - time.time()) < 20
    assert meta["state"] == "running"
    first = finish(server, job, np.arange(4))
    assert (first.status_code, first.headers["Clachan-Repeat"]) == (204, "false")
    assert finish(server, job, np.arange(4)).headers["Clachan-Repeat"] == "true"
    assert np.frombuffer(server.get("/arrays/data", name="routes/out").content, "<i8").tolist() == [0, 1, 2, 3]
    assert "which is over" in refusal(finish(server, job, np.arange(5)), 409)
    assert "done, expected one whose result is kept with it" in refusal(server.get("/jobs/result", id=job), 409)


def test_an_answer_that_was_lost_is_given_again(server: Server) -> None:
    job = submit(server).json()["id"]
    assert [found["id"] for found in (take(server, "lost"), take(server, "lost")) if found] == [job, job]
    assert take(server, "other") is None
    finish(server, job, 1)


def test_who_waits_for_a_job_gets_it_at_once(server: Server) -> None:
    found: list[dict[str, Any] | None] = []
    waiting = threading.Thread(target=lambda: found.append(take(server, "patient", wait=20)))
    waiting.start()
    time.sleep(0.5)
    begin = time.monotonic()
    job = submit(server).json()["id"]
    waiting.join(20)
    assert time.monotonic() - begin < 2
    assert found[0]
    assert found[0]["id"] == job
    begin = time.monotonic()
    finisher = threading.Timer(0.5, lambda: finish(server, job, 1))
    finisher.start()
    assert server.get("/jobs/meta", id=job, state="running", wait=20).json()["state"] == "done"
    assert 0.4 < time.monotonic() - begin < 3
    finisher.join()


def test_a_take_ends_without_a_job_after_its_time(server: Server) -> None:
    begin = time.monotonic()
    assert take(server, wait=1.5) is None
    assert 1.4 < time.monotonic() - begin < 5
    assert {"worker": "test", "slot": "slot", "job": None} in server.get("/jobs/workers").json()["items"]


def test_who_has_gone_away_gets_no_job(server: Server) -> None:
    with pytest.raises(requests.ReadTimeout):
        server.session.post(
            server.url + "/jobs/take", params={"worker": "w", "slot": "gone", "wait": 30}, timeout=(5, 0.5)
        )
    time.sleep(0.5)
    job = submit(server).json()["id"]
    time.sleep(1.5)
    found = take(server, "here")
    assert found
    assert found["id"] == job
    finish(server, job, None)


def test_reports_of_an_attempt_that_is_over_are_refused(server: Server) -> None:
    job = taken(server)
    assert call(server, "POST", "/jobs/release", id=job, attempt=1).json() == {"state": "queued"}
    found = take(server, job)
    assert found
    assert found["attempt"] == 2
    for method, path, more in (
        ("POST", "/jobs/beat", {}),
        ("POST", "/jobs/log", {"position": 0}),
        ("POST", "/jobs/finish", {"state": "failed"}),
        ("POST", "/jobs/release", {}),
        ("GET", "/jobs/call", {}),
    ):
        text = refusal(call(server, method, path, id=job, attempt=1, **more), 409)
        assert text == (f"job {job}, attempt: 1, which is over, expected one that runs; it is running with attempt 2")
    assert server.get("/jobs/meta", id=job).json()["state"] == "running"
    call(server, "POST", "/jobs/finish", id=job, attempt=2, state="failed", message="it\nbroke")
    assert server.get("/jobs/meta", id=job).json()["message"] == "it\nbroke"


def test_a_cancelled_job_is_told_to_its_worker(server: Server) -> None:
    job = taken(server)
    assert call(server, "POST", "/jobs/cancel", id=job).json() == {"cancelled": True}
    assert call(server, "POST", "/jobs/beat", id=job, attempt=1).json() == {"cancel": True}
    call(server, "POST", "/jobs/finish", id=job, attempt=1, state="cancelled", message="stopped")
    assert call(server, "POST", "/jobs/cancel", id=job).json() == {"cancelled": False}
    assert call(server, "DELETE", "/jobs/meta", id=job).status_code == 204
    assert "none of this id" in refusal(server.get("/jobs/meta", id=job), 404)


def test_what_is_wrong_is_named(server: Server) -> None:
    job = document.new_id()
    for answer, status, text in (
        (submit(server, job="x"), 400, "job id: 'x', expected a UUID in lower case"),
        (submit(server, call_=b""), 400, "body: empty, expected a call"),
        (submit(server, other=1), 400, "job, key other: unknown, expected one of name, into"),
        (submit(server, into="~x"), 400, "job, key into: '~x', expected a name that does not begin with ~"),
        (submit(server, environment={"a": 1}), 400, "job, key environment: {'a': 1}, expected"),
        (call(server, "POST", "/jobs", b"x", id=job, order="{"), 400, "Expecting property name"),
        (call(server, "POST", "/jobs", b"x", id=job, order="[" * 5000), 400, "recursion"),
        (call(server, "POST", "/jobs/cancel", id="running/x"), 404, "job 'running/x': none of this id"),
        (server.get("/jobs/meta", id=job), 404, f"job '{job}': none of this id"),
        (server.get("/jobs/part", id=job), 404, f"part '{job}': none of this id"),
        (call(server, "DELETE", "/jobs/part", id="../x"), 404, "part '../x': none of this id"),
        (call(server, "PUT", "/jobs/part", b"x", id="../x"), 400, "job id: '../x', expected a UUID in lower case"),
        (server.get("/jobs/log", id="queue/1"), 404, "job 'queue/1': none of this id"),
        (call(server, "POST", "/jobs/beat", id=job, attempt=1), 404, "none of this id"),
        (call(server, "POST", "/jobs/finish", id=job, attempt=1, state="queued"), 400, "parameter state"),
        (call(server, "POST", "/jobs/take", worker="", slot="a"), 400, "parameter worker"),
    ):
        assert text in refusal(answer, status)
    assert submit(server, job=job).status_code == 201
    assert "exists with another call, expected a new id" in refusal(submit(server, b"another", job), 409)
    call(server, "POST", "/jobs/cancel", id=job)


def test_a_wrong_result_is_refused_and_the_attempt_goes_on(server: Server) -> None:
    job = taken(server)
    answer = call(server, "POST", "/jobs/finish", b"1", id=job, attempt=1, state="done", kind="exe")
    assert refusal(answer, 400) == "kind: 'exe', expected one of json, npy, tree, pickle"
    assert server.get("/jobs/meta", id=job).json()["state"] == "running"
    finish(server, job, 1)


def test_a_result_is_only_bytes_to_the_service(server: Server) -> None:
    """Whatever it says that it is."""
    job = taken(server)
    bad = b"<script>alert(1)</script>"
    call(server, "POST", "/jobs/finish", bad, id=job, attempt=1, state="done", kind="npy")
    answer = server.get("/jobs/result", id=job)
    assert (answer.content, answer.headers["content-type"]) == (bad, "application/octet-stream")
    broken = taken(server, into="routes/broken")
    call(server, "POST", "/jobs/finish", bad, id=broken, attempt=1, state="done", kind="npy")
    meta = server.get("/jobs/meta", id=broken).json()
    assert meta["result"] == {"kind": "npy", "bytes": len(bad)}
    assert "expected b'\\x93NUMPY' as numpy writes it; the result is kept with the job" in meta["message"]
    assert server.get("/arrays/meta", name="routes/broken").status_code == 404


def test_a_pickled_array_is_never_opened_by_the_service(server: Server) -> None:
    file = io.BytesIO()
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    job = taken(server, into="routes/objects")
    call(server, "POST", "/jobs/finish", file.getvalue(), id=job, attempt=1, state="done", kind="npy")
    assert "they are pickles, which are never loaded" in server.get("/jobs/meta", id=job).json()["message"]
    assert server.get("/jobs/result", id=job).content == file.getvalue()


def test_lists_have_pages(server: Server) -> None:
    jobs = [submit(server).json()["id"] for _ in range(5)]
    found, cursor = [], ""
    while cursor is not None:
        page = server.get("/jobs", limit=2, cursor=cursor, state="queued").json()
        found += [item["id"] for item in page["items"]]
        cursor = page["cursor"]
    assert found == jobs
    for job in jobs:
        call(server, "POST", "/jobs/cancel", id=job)


def test_each_scope_may_do_its_part(server: Server) -> None:
    made = {
        scope: call(server, "POST", "/tokens", json.dumps({"scopes": [scope]}).encode()).json()["token"]
        for scope in ("compute", "work", "read", "write")
    }
    job = submit(server).json()["id"]
    theirs = {
        "compute": [("GET", "/jobs", {}), ("GET", "/jobs/meta", {"id": job}), ("POST", "/jobs/cancel", {"id": job})],
        "work": [("POST", "/jobs/take", {"worker": "w", "slot": "s"}), ("GET", "/jobs/part", {"id": job})],
    }
    for scope, token in made.items():
        for owner, requests_ in theirs.items():
            for method, path, query in requests_:
                status = call(server, method, path, token=token, **query).status_code
                assert (status == 403) == (scope != owner), (scope, path, status)
    assert call(server, "POST", "/jobs", b"x", "wrong", id=document.new_id(), order="{}").status_code == 401


def test_who_waits_does_not_hold_up_the_end_of_the_service(own_server: Server) -> None:
    own_server.start()
    answers: list[requests.Response] = []

    def wait() -> None:
        answers.append(call(own_server, "POST", "/jobs/take", worker="w", slot="s", wait=25))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.7)
    begin = time.monotonic()
    assert own_server.stop() == 0
    assert time.monotonic() - begin < 6
    waiting.join(10)
    assert [answer.status_code for answer in answers] == [204]


def test_a_part_is_kept_until_it_is_deleted(server: Server) -> None:
    part, data = document.new_id(), b"p" * 100_000
    assert call(server, "PUT", "/jobs/part", data, id=part).status_code == 204
    assert server.get("/jobs/part", id=part).content == data
    assert "exists, expected a new id" in refusal(call(server, "PUT", "/jobs/part", b"other", id=part), 409)
    assert part not in [item["id"] for item in server.get("/jobs", limit=500).json()["items"]]
    assert call(server, "DELETE", "/jobs/part", id=part).status_code == 204
    assert server.get("/jobs/part", id=part).status_code == 404
