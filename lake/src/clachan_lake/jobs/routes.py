"""The routes of jobs. By who submits (scope `compute`):

`POST /jobs?id=&order=` with the call as body queues it; `order` is JSON (`document.Order`); 201 queued, 200 there
already. `GET /jobs` lists, `GET /jobs/meta?id=` shows one; with `state=` and `wait=` when its state is another one, or
after so many seconds. `DELETE /jobs/meta?id=` forgets one that has ended. `POST /jobs/cancel?id=` ends one.
`GET /jobs/result?id=`, `GET /jobs/log?id=`. `GET /jobs/workers`: who asked for work lately. `PUT /jobs/part?id=` keeps
what several calls have in common, `DELETE` forgets it; workers `GET` it.

By workers (scope `work`): `POST /jobs/take?worker=&slot=&wait=` gives a job, or 204 after so many seconds;
`GET /jobs/call?id=&attempt=` its call; `POST /jobs/beat` says that the attempt goes on, and is told whether it should;
`POST /jobs/log?…&position=` adds what it printed; `POST /jobs/finish?…&state=&kind=&message=` with the result as body
ends it; `POST /jobs/release` gives it back. 409 says that the attempt is over.
"""

import json
import shutil
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from clachan_lake.access.guarding import principal_of
from clachan_lake.errors import LateError, TakenError
from clachan_lake.ingest.changing import change
from clachan_lake.ingest.config import Config
from clachan_lake.ingest.spool import Spool, each, receiving, too_large
from clachan_lake.ingest.streaming import Streamed
from clachan_lake.jobs import document as form
from clachan_lake.jobs.board import Board
from clachan_lake.jobs.ledger import Body, Ledger, Outcome, described
from clachan_lake.local import LocalLake
from clachan_lake.refusal import RefusedError
from clachan_lake.streams.extents import Extents

BODY_BYTES = 64 << 30
LOG_BYTES = 256 << 10
LONGEST_WAIT = 60.0
SCANNED = 2000
"""Jobs that one request for a list looks at."""
T = TypeVar("T")
Wait = Annotated[float, Query(ge=0, le=LONGEST_WAIT)]
Limit = Annotated[int, Query(ge=1, le=500)]
Attempt = Annotated[int, Query(ge=1)]
Who = Annotated[str, Query(min_length=1, max_length=200)]
Admit = Callable[[MutableMapping[str, Any]], Any]
"""Asks again who makes a request; raises RefusedError when that is nobody any more."""


class Desk:
    """What the routes share."""

    def __init__(self, config: Config, lake: LocalLake, board: Board, admit: Admit) -> None:
        self.config = config
        self.lake = lake
        self.board = board
        self.admit = admit

    async def change(self, what: Callable[[Ledger], T]) -> T:
        """In one transaction; who waits for a job looks again."""
        try:
            done = await change(self.lake, lambda session: what(Ledger(session)))
        except (LateError, TakenError) as error:
            raise RefusedError(409, str(error), field="id") from None
        self.board.tell()
        return done

    def look(self, what: Callable[[Ledger], T]) -> T:
        with self.lake.session() as session:
            return what(Ledger(session))

    async def is_over(self, request: Request) -> bool:
        """Whether nobody waits for the answer any more, or may."""
        return self.board.closing() or await request.is_disconnected()

    def told(self, job: str, document: dict[str, Any]) -> dict[str, Any]:
        """The document, and when a running one was heard of."""
        running = document["state"] == form.RUNNING
        heard = form.now() - round(1000 * self.board.silence(job, document["attempt"])) if running else None
        return {**described(job, document), "heartbeat": heard}

    async def receive(self, request: Request, use: Callable[[Body, int, str], Any], limit: int = BODY_BYTES) -> Any:
        """What is done with the body, its length and its digest."""
        length = int(request.headers.get("content-length") or 0)
        if length > limit:
            raise too_large(length, limit)
        free = shutil.disk_usage(self.config.folder).free
        if free - length < self.config.minimum_free_mib << 20:
            raise RefusedError(507, f"disk: {free >> 20} MiB free, expected room for {length >> 20} MiB more")
        with receiving(), Spool(Extents(self.config.incoming), limit) as spool:
            chunk = await spool.receive(each(request.stream()))
            return await use(chunk.apart, chunk.length, chunk.sha256.hex())


def routes(config: Config, lake: LocalLake, board: Board, admit: Admit) -> APIRouter:
    """`lake` is only asked for sessions."""
    router, desk = APIRouter(), Desk(config, lake, board, admit)
    _add_orders(router, desk)
    _add_parts(router, desk)
    _add_answers(router, desk)
    _add_work(router, desk)
    _add_reports(router, desk)
    return router


def _add_orders(router: APIRouter, desk: Desk) -> None:
    @router.post("/jobs")
    async def submit(request: Request, id: str, order: str) -> Response:
        asked, who = _order(order), principal_of(request.scope).id or "owner"
        _check_id(id)

        async def keep(call: Body, length: int, _digest: str) -> bool:
            if not length:
                raise RefusedError(400, "body: empty, expected a call")
            return await desk.change(lambda ledger: ledger.submit(id, asked, call, length, who))

        made = await desk.receive(request, keep)
        found = await run_in_threadpool(desk.look, lambda ledger: desk.told(id, ledger[id]))
        return JSONResponse(found, 201 if made else 200)

    @router.post("/jobs/cancel")
    async def cancel(id: str) -> dict[str, Any]:
        return {"cancelled": await desk.change(lambda ledger: ledger.cancel(id))}

    @router.delete("/jobs/meta", status_code=204)
    async def delete(id: str) -> Response:
        await desk.change(lambda ledger: ledger.delete(id))
        return Response(status_code=204)


def _add_parts(router: APIRouter, desk: Desk) -> None:
    @router.put("/jobs/part", status_code=204)
    async def put(request: Request, id: str) -> Response:
        _check_id(id)

        async def keep(body: Body, length: int, _digest: str) -> None:
            await desk.change(lambda ledger: ledger.put_part(id, body, length))

        await desk.receive(request, keep)
        return Response(status_code=204)

    @router.get("/jobs/part")
    def part(id: str) -> Response:
        return _bytes(desk, id, lambda ledger: _named(ledger.part_key, id))

    @router.delete("/jobs/part", status_code=204)
    async def delete(id: str) -> Response:
        await desk.change(lambda ledger: ledger.delete_part(id))
        return Response(status_code=204)


def _add_answers(router: APIRouter, desk: Desk) -> None:
    @router.get("/jobs")
    def jobs(limit: Limit = 100, cursor: str = "", state: str | None = None) -> dict[str, Any]:
        def page(ledger: Ledger) -> dict[str, Any]:
            items: list[dict[str, Any]] = []
            last = cursor
            for count, job in enumerate(ledger.ids(cursor)):
                # one that seldom finds what it looks for ends too, with fewer
                if len(items) == limit or count == SCANNED:
                    return {"items": items, "cursor": last}
                document, last = ledger[job], job
                if state is None or document["state"] == state:
                    items.append(desk.told(job, document))
            return {"items": items, "cursor": None}

        return desk.look(page)

    @router.get("/jobs/meta")
    async def meta(request: Request, id: str, state: str | None = None, wait: Wait = 0) -> dict[str, Any]:
        end = time.monotonic() + wait
        while True:
            found = await run_in_threadpool(desk.look, lambda ledger: desk.told(id, _get(ledger, id)))
            rest = end - time.monotonic()
            if found["state"] != state or rest <= 0 or await desk.is_over(request):
                return found
            await desk.board.change(rest)

    @router.get("/jobs/result")
    def result(id: str) -> Response:
        return _bytes(desk, id, lambda ledger: _result(ledger, id))

    @router.get("/jobs/log")
    def log(id: str) -> Response:
        text = desk.look(lambda ledger: (_get(ledger, id), ledger.log(id))[1])
        return Response(text, media_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})

    @router.get("/jobs/workers")
    def workers() -> dict[str, Any]:
        return {"items": desk.board.workers(desk.look(lambda ledger: ledger.running())), "cursor": None}


def _add_work(router: APIRouter, desk: Desk) -> None:
    @router.post("/jobs/take")
    async def take(request: Request, worker: Who, slot: Who, wait: Wait = 0) -> Response:
        end = time.monotonic() + wait
        # an answer that was lost is given again
        look = await run_in_threadpool(desk.look, lambda ledger: ledger.held_by(slot) is not None)
        while True:
            desk.board.seen(worker, slot)
            look = look or await run_in_threadpool(desk.board.worth_a_look)
            if look and not await desk.is_over(request):
                look = False
                # a token may be revoked while its request waits
                desk.admit(request.scope)
                job = await desk.change(lambda ledger: ledger.take(worker, slot))
                if job is not None:
                    document = await run_in_threadpool(desk.look, lambda ledger, job=job: ledger[job])
                    desk.board.beat(job, document["attempt"])
                    return JSONResponse({**desk.told(job, document), "lease_seconds": desk.board.lease_seconds})
            if end - time.monotonic() <= 0 or await desk.is_over(request):
                return Response(status_code=204)
            await desk.board.change(end - time.monotonic())

    @router.get("/jobs/call")
    def call(id: str, attempt: Attempt) -> Response:
        return _bytes(desk, id, lambda ledger: (_held(ledger, id, attempt), id)[1])


def _add_reports(router: APIRouter, desk: Desk) -> None:
    @router.post("/jobs/beat")
    async def beat(id: str, attempt: Attempt) -> dict[str, Any]:
        document = await run_in_threadpool(desk.look, lambda ledger: _held(ledger, id, attempt))
        desk.board.beat(id, attempt)
        return {"cancel": document["cancel"]}

    @router.post("/jobs/log", status_code=204)
    async def log(request: Request, id: str, attempt: Attempt, position: Annotated[int, Query(ge=0)]) -> Response:
        async def add(body: Body, _length: int, _digest: str) -> bool:
            data = body.read_bytes() if isinstance(body, Path) else body
            text = data.decode(errors="replace")
            return await desk.change(lambda ledger: ledger.add_log(id, attempt, position, text))

        await desk.receive(request, add, LOG_BYTES)
        return Response(status_code=204)

    @router.post("/jobs/finish", status_code=204)
    async def finish(
        request: Request,
        *,
        id: str,
        attempt: Attempt,
        state: Literal["done", "failed", "cancelled"],
        kind: str | None = None,
        message: str = "",
    ) -> Response:
        async def end(body: Body, length: int, digest: str) -> bool:
            outcome = Outcome(state, message, kind, body, length, digest)
            return await desk.change(lambda ledger: ledger.finish(id, attempt, outcome))

        # a result that comes slowly is a sign of life
        desk.board.beat(id, attempt)
        new = await desk.receive(request, end)
        return Response(status_code=204, headers={"Clachan-Repeat": "false" if new else "true"})

    @router.post("/jobs/release")
    async def release(id: str, attempt: Attempt) -> dict[str, Any]:
        message = "its worker was stopped"
        return {"state": await desk.change(lambda ledger: ledger.give_back(id, attempt, message, counts=False))}


def _check_id(job: str) -> None:
    try:
        form.check_id(job)
    except ValueError as error:
        raise RefusedError(400, str(error), field="id") from None


def _order(text: str) -> form.Order:
    try:
        return form.read(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, str(error), field="order") from None


def _get(ledger: Ledger, job: str) -> dict[str, Any]:
    return _named(ledger.__getitem__, job)


def _named(find: Callable[[str], T], name: str) -> T:
    """What is found; raises RefusedError (404)."""
    try:
        return find(name)
    except KeyError as error:
        raise RefusedError(404, str(error), field="id") from None


def _held(ledger: Ledger, job: str, attempt: int) -> dict[str, Any]:
    _get(ledger, job)
    try:
        return ledger.held(job, attempt)
    except LateError as error:
        raise RefusedError(409, str(error), field="attempt") from None


def _result(ledger: Ledger, job: str) -> str:
    document = _get(ledger, job)
    if form.result_key(job) not in ledger.documents:
        raise RefusedError(
            409, f"job {job}: {document['state']}, expected one whose result is kept with it", field="id"
        )
    return form.result_key(job)


def _bytes(desk: Desk, job: str, key: Callable[[Ledger], str]) -> Response:
    session = desk.lake.session()
    try:
        ledger = Ledger(session)
        found = key(ledger)
        return Streamed(ledger.blocks(found), session.close, 200, {"Content-Length": str(ledger.length(found))})
    except BaseException:
        session.close()
        raise
