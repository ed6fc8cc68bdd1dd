"""What routes that change something have in common: a document in the body, and one transaction for each request."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from ZODB.POSException import ConflictError

from clachan_lake.errors import LakeError, MissingError
from clachan_lake.ingest.committer import cause
from clachan_lake.ingest.spool import receiving, too_large
from clachan_lake.local import LocalLake
from clachan_lake.refusal import RefusedError
from clachan_lake.repeating import TIMES, repeated

DOCUMENT_BYTES = 1 << 20
NESTED = 64
R = TypeVar("R")
T = TypeVar("T")
Change = Callable[[LocalLake], T]


async def document(request: Request) -> dict[str, Any]:
    """The JSON object in the body; {} for an empty one. Raises RefusedError."""
    try:
        found = json.loads(await body(request) or b"{}")
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"body: {error!s:.80}, expected a JSON object") from None
    if not isinstance(found, dict):
        raise RefusedError(400, f"body: {type(found).__name__}, expected a JSON object")
    _check_depth(found, NESTED)
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RefusedError(400, f"body: half a character, {error.object[error.start]!a}, expected text") from None
    return found


async def body(request: Request) -> bytes:
    """Of a document. Raises RefusedError."""
    data = b""
    with receiving():
        async for part in request.stream():
            data += part
            if len(data) > DOCUMENT_BYTES:
                raise too_large(len(data), DOCUMENT_BYTES)
    return data


def _check_depth(value: Any, left: int) -> None:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not left and inner:
        raise RefusedError(400, f"body: nested more than {NESTED} deep, expected less")
    for one in inner:
        _check_depth(one, left - 1)


async def change(lake: LocalLake, what: Change[T], *, dry_run: bool = False) -> T:
    """What it returns, when that is committed; with `dry_run` nothing is kept of it. Done again while other writers are
    faster. Raises RefusedError, LakeError."""
    if dry_run:
        return await run_in_threadpool(_try, lake, what)
    return (await change_and_look(lake, what, lambda _session: None))[0]


async def change_and_look(lake: LocalLake, what: Change[T], look: Change[R]) -> tuple[T, R]:
    """As `change`, and what `look` finds when it is committed, with what others have done meanwhile."""
    with receiving():
        return await run_in_threadpool(_commit, lake, what, look)


def declared(answer: dict[str, Any], *, made: bool, changed: bool) -> JSONResponse:
    """201 for what was made, 200 for what was there; the header says whether anything is another now."""
    return JSONResponse(answer, 201 if made else 200, {"Clachan-Changed": "true" if changed else "false"})


@contextmanager
def naming() -> Iterator[None]:
    """What is wrong with a value is the request's fault; what is not there is 404."""
    try:
        yield
    except MissingError as error:
        raise RefusedError(404, str(error), field="name") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, LakeError):
            raise
        _, _, rest = str(error).partition(", key ")
        raise RefusedError(400, str(error), field=rest.partition(":")[0] or None) from None


def _try(lake: LocalLake, what: Change[T]) -> T:
    with lake.session() as session, naming():
        session.begin()
        try:
            return what(session)
        finally:
            session.abort()


def _commit(lake: LocalLake, what: Change[T], look: Change[R]) -> tuple[T, R]:
    with lake.session() as session:

        def alone() -> T:
            with naming(), session.transaction():
                return what(session)

        try:
            return repeated(alone), look(session)
        except ConflictError as error:
            raise RefusedError(503, f"lake: changed by others {TIMES} times, expected a quieter moment") from error
        except RefusedError:
            raise
        except Exception as error:
            if (found := cause(error)) is error:
                raise
            raise found from error
