"""A sender of numbered chunks and the bad network between it and the server: what a sender of data has to live with.

`Proxy` passes requests on, and some it answers itself with 500, cuts before, in or behind, or answers with 500 although
the server has stored them. `Sender` sends chunks with ids over several connections, out of order, some of them again,
repeats what had no good answer, and now and then is restarted: then it knows only what was acknowledged.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from .making import TOKEN

EVENT_BYTES = 8
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
AWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
FATES = ("refuse", "cut", "half", "lose", "deny")
SECONDS = 60


async def message(reader: asyncio.StreamReader) -> bytes:
    """A request or an answer with its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)


class Proxy:
    """`trouble` is the share of requests that have some; `port_of` says where the server is now."""

    def __init__(self, port_of: Callable[[], int], chance: random.Random, trouble: float) -> None:
        self._port_of = port_of
        self._chance = chance
        self._trouble = trouble
        self.fates: dict[str, int] = dict.fromkeys(FATES, 0)
        self.port = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            await Connection((asyncio.StreamReader(), writer)).close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # a task that is cancelled before it begins closes nothing
        self._writers.append(writer)
        self._tasks.append(asyncio.create_task(self._pass(reader, writer)))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = Connection()
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._serve(reader, writer, behind):
                    pass
        finally:
            await behind.close()
            await Connection((reader, writer)).close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behind: "Connection") -> bool:
        """One request; False when the connection is to be cut."""
        request = await message(reader)
        fate = self._chance.choice(FATES) if self._chance.random() < self._trouble else "pass"
        self.fates[fate] = self.fates.get(fate, 0) + 1
        if fate == "cut":
            return False
        answer = FAILED
        if fate != "refuse":
            try:
                await behind.write(self._port_of(), request[: len(request) // 2] if fate == "half" else request)
                if fate == "half":
                    return False
                answer = await behind.read()
            except (OSError, asyncio.IncompleteReadError):
                await behind.close()
                answer = AWAY
        if fate == "lose":
            return False
        writer.write(FAILED if fate == "deny" else answer)
        return True


class Connection:
    """Made when it is needed."""

    def __init__(self, made: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None) -> None:
        self._made = made

    async def write(self, port: int, data: bytes) -> None:
        self._made = self._made or await asyncio.open_connection("127.0.0.1", port)
        self._made[1].write(data)

    async def read(self) -> bytes:
        assert self._made
        async with asyncio.timeout(SECONDS):
            return await message(self._made[0])

    async def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            made[1].close()
            # what it waits for was cancelled with a task that waited for it before
            with suppress(OSError, asyncio.CancelledError):
                await made[1].wait_closed()


class Sender:
    """`events` numbers in chunks of `each`; the last of a hundred chunks is tried once only."""

    def __init__(self, port: int, chance: random.Random, events: int, each: int, streams: int = 4) -> None:
        self._port = port
        self._chance = chance
        self._each = each
        self._streams = streams
        self.count = events // each
        self.acknowledged: set[int] = set()
        self.given_up: set[int] = set()
        self.tries = 0

    def stream(self, number: int) -> str:
        return f"events.{number % self._streams}"

    def body(self, number: int) -> bytes:
        first = number * self._each
        return b"".join(event.to_bytes(EVENT_BYTES) for event in range(first, first + self._each))

    def _request(self, number: int) -> bytes:
        body = self.body(number)
        head = (
            f"POST /ingest/raw?reference={self.stream(number)}&chunk_id=c{number} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def run(self, restarts: int, connections: int = 8) -> None:
        """Until each chunk is acknowledged or given up."""
        for _ in range(restarts):
            goal = len(self.acknowledged) + self.count // (restarts + 1)
            workers = self._start(connections)
            while len(self.acknowledged) < goal and not all(worker.done() for worker in workers):
                await asyncio.sleep(0.02)
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        await asyncio.gather(*self._start(connections))

    def _start(self, connections: int) -> list["asyncio.Task[None]"]:
        left = [number for number in range(self.count) if number not in self.acknowledged | self.given_up]
        # what was acknowledged last may come again: it was not noted before the restart
        known = sorted(self.acknowledged)[-20:]
        mixed = sorted([*left, *known], key=lambda number: number + self._chance.random() * 50)
        mixed.reverse()
        return [asyncio.create_task(self._work(mixed)) for _ in range(connections)]

    async def _work(self, numbers: list[int]) -> None:
        connection = Connection()
        try:
            while numbers:
                number = numbers.pop()
                while not await self._try(number, connection):
                    await asyncio.sleep(0.01)
                if self._chance.random() < 0.03:
                    await self._try(number, connection)
        finally:
            await connection.close()

    async def _try(self, number: int, connection: Connection) -> bool:
        """Whether nothing more is to be done for the chunk."""
        self.tries += 1
        try:
            await connection.write(self._port, self._request(number))
            answer = await connection.read()
        except (OSError, asyncio.IncompleteReadError):
            await connection.close()
            answer = b""
        if answer.startswith(b"HTTP/1.1 204"):
            self.acknowledged.add(number)
            self.given_up.discard(number)
            return True
        assert not answer or answer.startswith(b"HTTP/1.1 5"), answer
        if number % 100 == 99 and number not in self.acknowledged:
            self.given_up.add(number)
            return True
        return False
