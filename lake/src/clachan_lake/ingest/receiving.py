"""The routes of ingestion, which are many requests a second: without a framework between them and the chunk.

`POST /ingest/<policy>?reference=<tag>`, and the same below `/portal_ingestion_policies/<policy>/ingest` as fluentd's
Wendelin output sends it. Options, each as a query parameter: `chunk_id` (or the header `Clachan-Chunk-Id`): a repeat
with the same id and bytes changes nothing and is answered alike; `offset`: where the chunk must come to stand;
`final=1`: the stream's last chunk, whose body may be empty. `Content-Encoding: gzip` is taken as it is meant: the lake
has the bytes inside. 204 means committed and synced; the header `Clachan-Stream-Size` then is the stream's size.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clachan_lake.access.guarding import Guard, principal_of
from clachan_lake.access.permissions import INGESTION, Ingest, needed
from clachan_lake.format import PIECE_BYTES
from clachan_lake.ingest.committer import Committer
from clachan_lake.ingest.config import Config
from clachan_lake.ingest.protocol import DIRECT, PREFIXES
from clachan_lake.ingest.registry import Registry, Target
from clachan_lake.ingest.spool import ENCODINGS, Feed, Spool, check_room, each, receiving, unless_silent
from clachan_lake.ingest.storing import Arrival, Stored
from clachan_lake.refusal import RefusedError
from clachan_lake.streams.chunk import Chunk
from clachan_lake.streams.extents import Extents

BODIES = 400
"""So many are received at the same time; each may have a connection and a file."""
RETRY_SECONDS = 1
FAILED = "clachan.failed"
"""Where in an ASGI scope the application finds what it is to answer."""
HEADERS = frozenset({b"content-length", b"content-encoding", b"content-type", b"clachan-chunk-id"})
WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Options:
    """What the request says beside its body."""

    reference: str
    chunk_id: str | None
    offset: int | None
    final: bool


def routes(ingestion: "Ingestion") -> list[Route]:
    return [Route(path, ingestion, methods=["POST"]) for path in INGESTION]


class Front:
    """In front of the application and all that wraps it: chunks that are stored need none of it. What is refused, the
    application answers, as all else."""

    def __init__(self, app: ASGIApp, guard: Guard, ingestion: "Ingestion") -> None:
        self._app = app
        self._guard = guard
        self._ingestion = ingestion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(PREFIXES):
            await self._app(scope, receive, send)
            return
        try:
            need, _, policy = needed("POST", scope["path"])
            self._guard.admit(scope)
            if not isinstance(need, Ingest):
                raise RefusedError(404, f"path: {scope['path']!r:.80}, expected one of the service's")
            scope["path_params"] = {"policy": policy}
            await self._ingestion.answer(scope, receive, send)
        except Exception as error:
            scope[FAILED] = error
            await self._app(scope, receive, send)


class Ingestion:
    """The ASGI application of both routes; what it raises is answered by the service's handlers."""

    def __init__(self, config: Config, registry: Registry, committer: Committer) -> None:
        self._config = config
        self._registry = registry
        self._committer = committer
        self._extents = Extents(config.incoming, shared=True)
        self._files = Extents(config.incoming)
        self._bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if FAILED in scope:
            raise scope[FAILED]
        await self.answer(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_load()
        self._bodies += 1
        try:
            with receiving():
                stored = await self._ingest(scope, receive)
        finally:
            self._bodies -= 1
        headers = [(name.encode(), value.encode()) for name, value in stored.headers().items()]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body"})

    def _check_load(self) -> None:
        if self._bodies < BODIES and not self._committer.is_full:
            return
        raise RefusedError(
            429,
            f"requests: {self._bodies} on their way and {self._committer.waiting} waiting to be stored, expected fewer",
            hint=f"repeat it after {RETRY_SECONDS} s; nothing of it was stored",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )

    async def _ingest(self, scope: Scope, receive: Receive) -> Stored:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in HEADERS}
        encoding = headers.get(b"content-encoding", "identity").strip().lower()
        if encoding not in ENCODINGS:
            raise RefusedError(415, f"content-encoding: {encoding:.80}, expected gzip or identity")
        length = int(headers.get(b"content-length") or 0)
        check_room(self._config, length)
        options = _options(scope["query_string"], headers.get(b"clachan-chunk-id"))
        lenient = scope["path"].startswith("/portal_ingestion_policies/")
        principal = principal_of(scope)
        target = self._registry.resolve(
            scope["path_params"]["policy"], options.reference, principal, length=length, lenient=lenient
        )
        # a digest is for telling repeats, by id or by content
        digest = options.chunk_id is not None or principal.same_content_seconds > 0
        first = await unless_silent(_message(receive)) if 0 < length <= PIECE_BYTES else None
        if first is not None and not first.get("more_body") and not ENCODINGS[encoding]:
            chunk = Chunk.of(first.get("body", b""), digest=digest)
            return await self._store(target, chunk, options, headers)
        feed: Feed = scope[DIRECT] if first is None and DIRECT in scope else each(_parts(first, receive))
        extents = self._extents if target.kind == "stream" else self._files
        with Spool(extents, self._config.maximum_body_mib << 20, gzip=ENCODINGS[encoding], digest=digest) as spool:
            chunk = await spool.receive(feed)
            return await self._store(target, chunk, options, headers)

    async def _store(self, target: Target, chunk: Chunk, options: Options, headers: dict[bytes, str]) -> Stored:
        if not chunk.length and not options.final:
            raise RefusedError(400, "body: empty, expected bytes, or final=1")
        kind = headers.get(b"content-type", "")[:200]
        return await self._committer.submit(
            Arrival(target, chunk, options.chunk_id, options.offset, options.final, kind)
        )


async def _message(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


async def _parts(first: Message | None, receive: Receive) -> AsyncIterator[bytes]:
    message = first or await _message(receive)
    while True:
        if body := message.get("body"):
            yield body
        if not message.get("more_body"):
            return
        message = await _message(receive)


def _options(query: bytes, header_id: str | None) -> Options:
    """Raises RefusedError (400) that names the parameter."""
    given: dict[str, str] = {}
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise RefusedError(400, f"query: {error}, expected UTF-8 in percent encoding") from None
    for name, value in pairs:
        if given.setdefault(name, value) != value:
            raise RefusedError(400, f"parameter {name:.80}: given with two values, expected one", field=name[:80])
    reference, offset, final = given.get("reference", ""), given.get("offset"), given.get("final", "0")
    if not reference:
        raise RefusedError(400, "parameter reference: missing, expected the tag of the data", field="reference")
    if offset is not None and not (offset.isascii() and offset.isdecimal() and len(offset) < 20):
        raise RefusedError(400, f"parameter offset: {offset!r:.80}, expected a number of bytes", field="offset")
    if final.lower() not in WORDS:
        raise RefusedError(400, f"parameter final: {final!r:.80}, expected 1 or 0", field="final")
    chunk_id = given.get("chunk_id") or header_id
    return Options(reference, chunk_id, None if offset is None else int(offset), WORDS[final.lower()])
