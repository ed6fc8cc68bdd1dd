"""The service's own way of taking chunks in, in a process whose disk is recorded: for power cuts and full disks.

As a script: `ingesting.py FOLDER RESULT [SKIPPED]`, as `cutting.py`.
"""

import asyncio
import pickle
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

COUNT = 14
PIECE, FILE = 3_000, 120_000
Sending = Callable[[int], Awaitable[None]]
"""Raises RefusedError, or what the disk said."""


def body(number: int) -> bytes:
    """Some are pieces, some files."""
    return number.to_bytes(4) * ((FILE if number % 3 == 2 else PIECE) // 4)


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[Sending]:
    """The parts of `serve.py` that a chunk goes through, without HTTP around them."""
    from clachan_lake import database
    from clachan_lake.access.guarding import PRINCIPAL
    from clachan_lake.access.principal import OWNER
    from clachan_lake.ingest import defaults
    from clachan_lake.ingest.committer import Committer
    from clachan_lake.ingest.config import Config
    from clachan_lake.ingest.receiving import Ingestion
    from clachan_lake.ingest.registry import Registry
    from clachan_lake.local import LocalLake

    # so that a full disk is met by the writes, not foreseen
    config = Config(folder, folder / "none", folder / "none", minimum_free_mib=-1024)
    storage = database.own(folder)
    lake = LocalLake(database.database(storage), close_database=False)
    defaults.declare(lake, config)
    registry = Registry(lake.session(), "token")
    committer = Committer(lake.session(), registry, 300, lambda: None)
    committer.start()
    ingestion = Ingestion(config, registry, committer)

    async def send(number: int) -> None:
        data = body(number)
        parts = [data[at : at + 50_000] for at in range(0, len(data), 50_000)]
        messages = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
        statuses: list[int] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def answer(message: Any) -> None:
            if "status" in message:
                statuses.append(message["status"])

        scope = {
            "path": "/ingest/raw",
            "path_params": {"policy": "raw"},
            "query_string": f"reference=s{number % 2}&chunk_id={number}".encode(),
            "headers": [(b"content-length", str(len(data)).encode())],
            PRINCIPAL: OWNER,
        }
        await ingestion.answer(scope, receive, answer)
        assert statuses == [204]

    try:
        yield send
    finally:
        await asyncio.to_thread(committer.stop)
        registry.close()
        lake.close()
        storage.close()


def check(folder: Path, acknowledged: int) -> None:
    """Each chunk up to the acknowledged one is there, and at most those that were on their way; it goes on."""
    from clachan_lake import open_lake

    with open_lake(folder) as lake:
        found = {name: stream.read() for name, stream in lake.streams.items()}
        for stream in lake.streams.values():
            assert stream.verify() == []  # type: ignore[attr-defined]
    numbers = []
    for name, data in found.items():
        while data:
            number = int.from_bytes(data[:4])
            assert name == f"s{number % 2}"
            assert data.startswith(body(number))
            data = data[len(body(number)) :]
            numbers.append(number)
    assert len(set(numbers)) == len(numbers)
    assert set(range(acknowledged + 1)) <= set(numbers) <= set(range(acknowledged + 4)), numbers

    async def again() -> None:
        async with service(folder) as send:
            await asyncio.gather(*(send(number) for number in range(COUNT + 1)))

    asyncio.run(again())
    with open_lake(folder) as lake:
        total = sum(stream.size for stream in lake.streams.values())
    assert total == sum(len(body(number)) for number in range(COUNT + 1))


async def work(folder: Path, acknowledge: Callable[[int], None]) -> None:
    """One after the other, and in threes that share a commit."""
    async with service(folder) as send:
        number = 0
        while number < COUNT:
            count = min(3 if number % 4 == 3 else 1, COUNT - number)
            await asyncio.gather(*(send(number + one) for one in range(count)))
            number += count
            acknowledge(number - 1)


def main(folder: str, result: str, skipped: str = "") -> None:
    recorder = cutting.Recorder(Path(folder), skipped)
    recorder.install()
    asyncio.run(work(Path(folder) / "lake", recorder.acknowledge))
    recorder.note("closed")
    with open(result, "wb") as file:
        pickle.dump(recorder.record, file)


if __name__ == "__main__":
    import cutting

    main(*sys.argv[1:])
