"""Routes: streams to ports of instances. The user opens one; its node takes it up, then the user does.

Both sides have the same two requests: GET takes bytes (answered for as long as there are any), POST brings them.
"""

from functools import partial

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from clachan.contract.api import Answer, StreamDeclaration, StreamView
from clachan.server.api.admission import Caller, Here, authenticate, new_router
from clachan.server.api.answers import document
from clachan.server.services import streams
from clachan.server.services.controller import Controller
from clachan.server.services.refusals import Timeout, Unavailable
from clachan.server.services.streams import Leg, Pipe, Stream

router = new_router()
MEDIA = "application/octet-stream"
NOT_KEPT = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"}
"""For proxies: hand on each chunk as it comes."""
BYTES = {"requestBody": {"required": True, "content": {MEDIA: {"schema": {"format": "binary"}}}}}


@router.post("/instances/{path}/streams", response_model=StreamView, status_code=201)
async def open_stream(request: Request, here: Here, caller: Caller, path: str, body: StreamDeclaration) -> Response:
    """A connection to a port of the instance: answered when its node has connected, or with why it could not."""
    target = await run_in_threadpool(streams.find, here, caller, path, body.port)
    stream = here.streams.open(caller, target)
    try:
        answer = await here.questions.ask(target.node, stream.question, here.settings.answer_seconds)
        if answer.error is not None:
            raise Unavailable(answer.error)
        await run_in_threadpool(streams.record, here, stream)
    except Timeout as late:
        stream.end("no answer of the node", now=True)
        raise Timeout(f"instance {path}, on node {target.node_name}: {late.message}") from late
    except BaseException:
        stream.end("refused", now=True)
        raise
    return document(request, StreamView(id=stream.id, port=target.port), 201)


@router.get("/instances/{path}/streams/{identifier}")
async def take(request: Request, here: Here, caller: Caller, path: str, identifier: str) -> Response:
    return Taken(here.streams.of_user(caller, path, identifier).attach("user", "take", _leg(request)))


@router.post("/instances/{path}/streams/{identifier}", status_code=204, openapi_extra=BYTES)
async def bring(request: Request, here: Here, caller: Caller, path: str, identifier: str) -> Response:
    return await _bring(here.streams.of_user(caller, path, identifier).attach("user", "bring", _leg(request)), request)


@router.get("/nodes/self/streams/{identifier}")
async def take_own(request: Request, here: Here, caller: Caller, identifier: str) -> Response:
    stream = here.streams.of_node(caller, identifier)
    pipe = stream.attach("node", "take", _leg(request))
    _connected(here, stream)
    return Taken(pipe)


@router.post("/nodes/self/streams/{identifier}", status_code=204, openapi_extra=BYTES)
async def bring_own(request: Request, here: Here, caller: Caller, identifier: str) -> Response:
    stream = here.streams.of_node(caller, identifier)
    pipe = stream.attach("node", "bring", _leg(request))
    _connected(here, stream)
    return await _bring(pipe, request)


async def end_disallowed(here: Controller) -> None:
    """End the streams of tokens and nodes that were revoked since."""
    for stream in here.streams.all():
        if not await stream.still_allowed():
            stream.end("no longer allowed", now=True)


def _connected(here: Controller, stream: Stream) -> None:
    """Both requests of the node are there: that is its answer."""
    if stream.taken_up("node"):
        here.questions.answer(stream.target.node, stream.id, Answer())


def _leg(request: Request) -> Leg:
    return Leg(request.scope["extensions"]["clachan"]["abort"], partial(authenticate, request))


async def _bring(pipe: Pipe, request: Request) -> Response:
    try:
        async for chunk in request.stream():
            if chunk:
                await pipe.put(chunk)
        pipe.finish()
    except (ClientDisconnect, BrokenPipeError):
        return Response(status_code=400)  # nobody reads it
    finally:
        pipe.leave("bring")
    return Response(status_code=204)


class Taken(StreamingResponse):
    def __init__(self, pipe: Pipe) -> None:
        super().__init__(pipe, media_type=MEDIA, headers=NOT_KEPT)
        self._pipe = pipe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pipe.leave("take")
