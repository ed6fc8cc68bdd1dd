"""Calls a transformation's function: in this process, or on the Dask cluster that the transformation names."""

import time
from dataclasses import dataclass, replace
from typing import Any

from clachan_lake.transform import functions
from clachan_lake.transform.batch import Batch, ContentError, Function, Output, Recorded, State
from clachan_lake.transform.document import Transformation

CONNECT_SECONDS = 10
CLUSTER_BYTES = 1 << 30
"""A batch that is sent to a cluster has at most so many; only a whole stream can have more."""


class AwayError(Exception):
    """The cluster is not there: that is no failure of the function."""


@dataclass(frozen=True)
class Operation:
    """A transformation of a name and revision."""

    name: str
    transformation: Transformation
    revision: int


class Caller:
    """Keeps the functions and clusters that were used, each until its transformation is another one."""

    def __init__(self) -> None:
        self._functions: dict[str, tuple[int, Function]] = {}
        self._clients: dict[str, Any] = {}

    def __call__(self, operation: Operation, batch: Batch, output: Output, state: State) -> State:
        """The state that the function left; raises what it raises, AwayError."""
        name, transformation = operation.name, operation.transformation
        if transformation.scheduler is not None:
            return self._on_cluster(name, transformation, batch, output, state)
        known = self._functions.get(name)
        if known is None or known[0] != operation.revision:
            known = self._functions[name] = (operation.revision, functions.find(name, transformation))
        known[1](batch, output, state)
        return state

    def _on_cluster(
        self, name: str, transformation: Transformation, batch: Batch, output: Output, state: State
    ) -> State:
        size = batch.stop - batch.start
        if batch.kind == "stream" and size > CLUSTER_BYTES:
            raise ContentError(f"stream {batch.source}: {size} bytes, expected at most {CLUSTER_BYTES} on a cluster")
        client = self._client(str(transformation.scheduler))
        sent = replace(batch, chunks=list(batch.chunks), reader=None)
        future = client.submit(_run, name, transformation, sent, state, pure=False)
        end = time.monotonic() + transformation.timeout_seconds
        try:
            while not future.done() and time.monotonic() < end:
                if client.status != "running":
                    raise AwayError(f"scheduler {transformation.scheduler}: connection lost, expected a cluster there")
                time.sleep(0.005)
            if not future.done():
                raise TimeoutError(f"the call took longer than {transformation.timeout_seconds:g} s")
            recorded, left = future.result()
        finally:
            future.cancel()
        recorded.replay(output)
        return dict(left)

    def _client(self, address: str) -> Any:
        known = self._clients.get(address)
        if known is not None and known.status == "running":
            return known
        try:
            from distributed import Client
        except ImportError:
            raise AwayError("package distributed: missing, expected pip install 'clachan-lake[dask]'") from None
        try:
            self._clients[address] = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
        except (OSError, TimeoutError, ValueError) as error:
            raise AwayError(f"scheduler {address}: {error!s:.200}, expected a dask.distributed cluster there") from None
        return self._clients[address]


def _run(name: str, transformation: Transformation, batch: Batch, state: State) -> tuple[Recorded, State]:
    """On the cluster."""
    output = Recorded()
    functions.find(name, transformation)(batch, output, state)
    return output, state
