"""The routes of dead letters: what was received and no policy took, or no transformation could do.

`POST /dead/replay?number=` sends an ingested one again to its policy, as it is now: when it is taken, the letter is
gone in the same transaction; when not, 409 says why, and it stays. `GET /dead/data?number=` gives the bytes.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from clachan_lake.access.principal import Principal
from clachan_lake.errors import LakeError
from clachan_lake.format import BLOCK
from clachan_lake.ingest.changing import change, naming
from clachan_lake.ingest.reading import Limit
from clachan_lake.ingest.registry import Registry
from clachan_lake.ingest.storing import DEAD, Arrival, Stored, store
from clachan_lake.ingest.streaming import Streamed
from clachan_lake.local import LocalLake
from clachan_lake.policies.dead import INGEST, LocalDead
from clachan_lake.refusal import RefusedError

Number = Annotated[int, Query(ge=0, lt=1 << 62)]


def routes(lake: LocalLake, registry: Registry, due: Callable[[], None]) -> APIRouter:
    """`lake` is only asked for sessions; each request has its own. `due` is called when there is work for a
    transformation."""
    router = APIRouter()

    @router.get("/dead")
    def letters(limit: Limit = 100, cursor: str = "", policy: str | None = None) -> dict[str, Any]:
        first = _number(cursor) + 1 if cursor else 0
        with lake.session() as session:
            dead = LocalDead(session)
            found = islice(_wanted(dead, first, policy), limit + 1)
            items = [{"number": number, **letter} for number, letter in found]
        return {"items": items[:limit], "cursor": str(items[limit - 1]["number"]) if len(items) > limit else None}

    @router.get("/dead/meta")
    def letter(number: Number) -> dict[str, Any]:
        with lake.session() as session, naming():
            return {"number": number, **LocalDead(session)[number]}

    @router.get("/dead/data")
    def data(number: Number) -> Response:
        session = lake.session()
        try:
            dead = LocalDead(session)
            with naming():
                length = dead[number]["length"] if dead[number]["kind"] == INGEST else 0
            parts = (dead.read(number, at, BLOCK) for at in range(0, length, BLOCK))
            return Streamed(parts, session.close, 200, {"Content-Length": str(length)})
        except BaseException:
            session.close()
            raise

    @router.post("/dead/replay")
    async def replay(number: Number) -> Response:
        stored = await change(lake, lambda session: again(session, registry, number))
        due()
        return JSONResponse({"kind": stored.kind, "size": stored.size, "new": stored.new}, headers=stored.headers())

    @router.delete("/dead/meta", status_code=204)
    async def delete(number: Number) -> Response:
        await change(lake, lambda session: LocalDead(session).delete(number))
        registry.usage.set(DEAD, ("dead", str(number)), 0)
        return Response(status_code=204)

    return router


def again(lake: LocalLake, registry: Registry, number: int) -> Stored:
    """Store an ingested letter where its policy now says, and delete it; raises RefusedError."""
    dead = LocalDead(lake)
    letter = dead[number]
    if letter["kind"] != INGEST:
        raise RefusedError(
            409,
            f"dead letter {number}: of transformation {letter.get('transformation')!r:.80}, expected an ingested one",
            hint="POST /transformations/action with action=retry runs the transformation again",
        )
    # as nobody in particular: a replay is meant, and never a repeat by its content
    sender = Principal("", frozenset())
    try:
        target = registry.resolve(letter["policy"], letter["tag"], sender, length=letter["length"])
        if target.kind == "dead":
            raise RefusedError(409, target.refused)
        chunk_id, final = letter.get("chunk_id"), letter.get("final", False)
        stored = store(lake, registry, Arrival(target, dead.chunk(number), chunk_id, None, final))
    except (LakeError, RefusedError) as error:
        status = error.status if isinstance(error, RefusedError) and error.status == 507 else 409
        raise RefusedError(status, f"dead letter {number}: {error}", field="number") from None
    dead.delete(number)
    registry.usage.set(DEAD, ("dead", str(number)), 0)
    return stored


def _wanted(dead: LocalDead, first: int, policy: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    for number in dead.from_number(first):
        letter = dead[number]
        if policy is None or letter.get("policy") == policy:
            yield number, letter


def _number(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise RefusedError(400, f"cursor: {cursor!r:.80}, expected one of a list's answer", field="cursor")
    return int(cursor)
