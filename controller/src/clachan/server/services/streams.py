"""Streams: bytes between a user and a port of an instance, joined from four requests of its two sides.

A port is a TCP port, or the console or the screen (`vnc`) of a VM. Whoever may connect to its ports may have these:
they may order another image for it as well.

A side is a user or a node. Each of them brings bytes with the body of one request and takes bytes with the answer to
another, so a stream is two pipes, and what is slow to take slows down who brings: a pipe holds little. A pipe ends
when its bringer has said so (the other goes on: half-close) or breaks when a request of it is gone; then the stream
breaks off: every request that is still open is cut, so that no side takes it for a proper end.

Everything here but `find` and `record` runs in the event loop; a stream holds no thread and no database session.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from clachan.contract.api import ConnectQuestion, StreamPort
from clachan.contract.software import SoftwareMeta
from clachan.server.services import instances
from clachan.server.services.controller import Controller
from clachan.server.services.principals import Principal
from clachan.server.services.questions import new_id
from clachan.server.services.refusals import Conflict, Invalid, NotFound, Refusal, Unavailable
from clachan.server.services.values import slot

log = logging.getLogger(__name__)

HELD_BYTES = 128 * 1024
TAKE_UP_SECONDS = 15.0
"""From the request to the last of the four requests, beside the time that the node has to answer."""
MOST_TOTAL, MOST_OF_USER, MOST_OF_NODE, MOST_OF_INSTANCE = 500, 200, 200, 50
SSH = 22

Side = Literal["user", "node"]
Way = Literal["bring", "take"]


@dataclass(frozen=True)
class Target:
    instance: str
    path: str
    tenant: str
    node: str
    node_name: str
    port: StreamPort
    any_port: bool

    @property
    def outlet(self) -> str:
        return f"port {self.port}" if isinstance(self.port, int) else self.port


@dataclass(frozen=True)
class Leg:
    """A request of a stream that is open: cut it, and see whether its sender still may."""

    abort: Callable[[], None]
    authenticate: Callable[[], Awaitable[Principal]]


class Pipe:
    """One direction. One brings with `put` and `finish`, one takes by iterating; both end with `leave`."""

    def __init__(self, stream: "Stream") -> None:
        self._stream = stream
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._wanted: asyncio.Future[None] | None = None
        self.legs: dict[Way, Leg] = {}
        self.moved = 0
        self.ended = self.over = False

    async def put(self, chunk: bytes) -> None:
        """Wait until there is room; raises BrokenPipeError when nobody will take it."""
        while self._held >= HELD_BYTES and not self.over:
            await self._change()
        if self.over:
            raise BrokenPipeError
        self._chunks.append(chunk)
        self._held += len(chunk)
        self.moved += len(chunk)
        self._stream.touched = asyncio.get_running_loop().time()
        self._wake()

    def finish(self) -> None:
        self.ended = True
        self._wake()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            while not self._held and not self.ended and not self.over:
                await self._change()
            if self.over:
                return
            if not self._held:
                self.over = True
                self._stream.settle()
                return
            chunk = b"".join(self._chunks)
            self._chunks.clear()
            self._held = 0
            self._wake()
            yield chunk

    def leave(self, way: Way) -> None:
        """The request is answered or gone; when it was not to go yet, the stream breaks off."""
        self.legs.pop(way, None)
        if not self.over and not (way == "bring" and self.ended):
            self._stream.end(f"{'bringing' if way == 'bring' else 'taking'} side gone")

    def cut(self) -> None:
        self.over = True
        for leg in self.legs.values():
            leg.abort()
        self._chunks.clear()
        self._wake()

    async def _change(self) -> None:
        # only one of the two ever waits: it is full or empty
        self._wanted = asyncio.get_running_loop().create_future()
        await self._wanted

    def _wake(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)


class Stream:
    def __init__(self, streams: "Streams", principal: Principal, target: Target) -> None:
        self.id = new_id()
        self.user, self.user_name, self.target = principal.id, principal.name, target
        self.pipes: dict[tuple[Side, Way], Pipe] = {}
        up, down = Pipe(self), Pipe(self)
        self._whole: dict[tuple[Side, Way], Pipe] = {
            ("user", "bring"): up,
            ("node", "take"): up,
            ("node", "bring"): down,
            ("user", "take"): down,
        }
        self._up, self._down, self._streams = up, down, streams
        self._loop = asyncio.get_running_loop()
        self.began = self.touched = self._loop.time()
        self._timer = self._loop.call_later(streams.answer_seconds + TAKE_UP_SECONDS, self._look)
        self._reason = "closed"

    @property
    def question(self) -> ConnectQuestion:
        where = self.target
        return ConnectQuestion(
            id=self.id, kind="connect", instance=where.instance, port=where.port, any_port=where.any_port
        )

    def attach(self, side: Side, way: Way, leg: Leg) -> Pipe:
        """One of the four requests, each once; raises NotFound when it was there before."""
        if (side, way) in self.pipes:
            raise _unknown(self.id)
        pipe = self.pipes[side, way] = self._whole[side, way]
        if pipe.over:
            raise _unknown(self.id)
        pipe.legs[way] = leg
        return pipe

    def taken_up(self, side: Side) -> bool:
        return {(side, "bring"), (side, "take")} <= self.pipes.keys()

    def end(self, reason: str, *, now: bool = False) -> None:
        """Break off: what was brought to its end is still taken, unless `now`."""
        self._reason = reason
        for pipe in (self._up, self._down):
            if not pipe.over and (now or not pipe.ended):
                pipe.cut()
        self.settle()

    def settle(self) -> None:
        """When both directions are over, the stream is."""
        if self._up.over and self._down.over and self._streams.forget(self):
            self._timer.cancel()
            where = (self.user_name, self.target.path, self.target.port)
            how = (self._loop.time() - self.began, self._up.moved, self._down.moved, self._reason)
            log.info("stream over user=%s path=%s port=%s seconds=%.1f up=%d down=%d reason=%s", *where, *how)

    def _look(self) -> None:
        """Now and then: end what was never taken up, or moves nothing any more."""
        left = self.touched + self._streams.idle_seconds - self._loop.time()
        if len(self.pipes) < len(self._whole):
            self.end("not taken up in time", now=True)
        elif left <= 0:
            self.end("idle", now=True)
        else:
            self._timer = self._loop.call_later(left, self._look)

    async def still_allowed(self) -> bool:
        """Whether those whose requests are open still may have them: a token may be gone, a node revoked."""
        for (side, way), pipe in list(self.pipes.items()):
            leg = pipe.legs.get(way)
            try:
                principal = await leg.authenticate() if leg is not None else None
            except Refusal:
                return False
            if principal is not None and not self._admits(side, principal):
                return False
        return True

    def _admits(self, side: Side, principal: Principal) -> bool:
        who = self.user if side == "user" else self.target.node
        return (principal.kind, principal.id) == (side, who) and principal.sees(self.target.tenant)


class Streams:
    def __init__(self, answer_seconds: float, idle_seconds: float) -> None:
        self.answer_seconds, self.idle_seconds = answer_seconds, idle_seconds
        self._open: dict[str, Stream] = {}
        self._closed = False

    def open(self, principal: Principal, target: Target) -> Stream:
        """Raises Unavailable when there are too many, Conflict when another user has the console."""
        if self._closed:
            raise Unavailable("controller: is ending, expected one that serves")
        others = list(self._open.values())
        for what, most, count in (
            ("all users", MOST_TOTAL, len(others)),
            (principal.name, MOST_OF_USER, sum(one.user == principal.id for one in others)),
            (f"node {target.node_name}", MOST_OF_NODE, sum(one.target.node == target.node for one in others)),
            (f"instance {target.path}", MOST_OF_INSTANCE, sum(one.target.path == target.path for one in others)),
        ):
            if count >= most:
                raise Unavailable(f"streams of {what}: {count} are open, expected fewer than {most}")
        if target.port == "console":
            self._free_console(principal, [one for one in others if one.target == target])
        stream = Stream(self, principal, target)
        self._open[stream.id] = stream
        return stream

    def _free_console(self, principal: Principal, others: list[Stream]) -> None:
        """QEMU lets the next one wait, silently; so one's own former one ends: its terminal may have slept away."""
        for other in others:
            if other.user != principal.id:
                raise Conflict(f"console of {other.target.path}: {other.user_name} has it, expected one user at a time")
            other.end("opened again", now=True)

    def of_user(self, principal: Principal, path: str, identifier: str) -> Stream:
        """Raises NotFound, alike for what is not there, of another user, or of another instance."""
        instances.check_seen(principal, path)
        stream = self._open.get(identifier)
        if stream is None or (stream.user, stream.target.path) != (principal.id, path):
            raise _unknown(identifier)
        return stream

    def of_node(self, principal: Principal, identifier: str) -> Stream:
        """Raises NotFound, also when it is of another node."""
        stream = self._open.get(identifier)
        if stream is None or stream.target.node != principal.id:
            raise _unknown(identifier)
        return stream

    def all(self) -> list[Stream]:
        return list(self._open.values())

    def forget(self, stream: Stream) -> bool:
        return self._open.pop(stream.id, None) is not None

    def close(self) -> None:
        """End all, and let no other begin."""
        self._closed = True
        for stream in self.all():
            stream.end("controller ends", now=True)


def _unknown(identifier: str) -> NotFound:
    return NotFound(f"stream {identifier}: unknown, expected one that was opened and not yet taken up")


def find(controller: Controller, principal: Principal, path: str, port: StreamPort | None) -> Target:
    """Where the stream goes; raises Conflict when there is nothing to connect to, Invalid for a port of others."""
    with controller.read() as session:
        instance = instances.find(session, principal, path)
        if instance.node is None:
            raise Conflict(f"instance {path}: on no node yet, expected a placed one", "path")
        if (state := instance.revision.state) != "started":
            raise Conflict(f"instance {path}: wanted {state}, expected one that is wanted started", "path")
        machine = SoftwareMeta.model_validate(instance.revision.software.meta).makes_node
        ports = slot(controller, instance).ports
        last = ports.first + ports.count - 1
        wanted = port or (SSH if machine else ports.first)
        if not machine and isinstance(wanted, str):
            raise Invalid(f"{wanted} of {path}: its software makes no machine, expected a VM", "port")
        if not machine and wanted not in range(ports.first, last + 1):
            raise Invalid(f"port {wanted} of {path}: not of its slot, expected {ports.first} to {last}", "port")
        where = (instance.id, path, instance.tenant.name, instance.node.id, instance.node.name)
    return Target(*where, wanted, machine)


def record(controller: Controller, stream: Stream) -> None:
    """Who connected to what is an event; what was said is not."""
    where = stream.target
    text = f"{stream.user_name} connected to {where.outlet} of {where.path}"
    with controller.change() as change:
        change.event(
            "connected",
            text,
            tenant=where.tenant,
            node=where.node_name,
            path=where.path,
            data={"user": stream.user_name, "port": where.port, "stream": stream.id},
        )
