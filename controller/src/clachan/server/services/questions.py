"""Questions to nodes (logs, connect, doctor): kept in memory, fetched by a node over its own connection, answered once.

Everything here runs in the event loop.
"""

import asyncio
import uuid

from clachan.contract.api import Answer, Question
from clachan.server.hub import Hub
from clachan.server.services.refusals import NotFound, Timeout

MOST = 100
"""Open questions of one node."""


def new_id() -> str:
    """Random, never guessed."""
    return str(uuid.uuid4())


class Questions:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._open: dict[str, dict[str, tuple[Question, asyncio.Future[Answer]]]] = {}
        self._asked: set[str] = set()

    async def ask(self, node_id: str, question: Question, seconds: float, work: float = 0) -> Answer:
        """Raises Timeout when the node does not answer in time; `work`: more seconds for one that has taken it up."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting = self._open.setdefault(node_id, {})
        if len(waiting) >= MOST:
            raise Timeout(f"node: {MOST} questions are open already, expected fewer")
        waiting[question.id] = (question, future)
        self._hub.announce([f"questions:{node_id}"])
        try:
            await asyncio.wait([future], timeout=seconds)
            more = work if question.id in self._asked else 0
            seconds += more
            return await asyncio.wait_for(future, more)
        except TimeoutError:
            raise Timeout(f"node: no answer within {seconds:g} s, expected its agent to run") from None
        finally:
            waiting.pop(question.id, None)
            self._asked.discard(question.id)

    def fetch(self, node_id: str) -> list[Question]:
        """What was not yet fetched."""
        fresh = [question for question, _ in self._open.get(node_id, {}).values() if question.id not in self._asked]
        self._asked.update(question.id for question in fresh)
        return fresh

    def answer(self, node_id: str, question: str, answer: Answer) -> None:
        _, future = self._open.get(node_id, {}).get(question, (None, None))
        if future is None:
            raise NotFound(f"question {question}: unknown or too late, expected an open one")
        if not future.done():
            future.set_result(answer)
