"""Streams of users to ports of instances on this node: the agent connects, and carries the bytes over its own
connection to the controller. Nothing listens.

Only an address of the instance's slot is connected to, and only a port of the slot. A VM has its address for itself:
there any port may be meant, and the way is its own link, so that a VM that does not run is never taken for another
machine that has its address. Each stream has two threads for as long as it is open.
"""

import errno
import logging
import socket
import struct
import threading
from contextlib import suppress

from clachan.agent.layout import AgentError
from clachan.agent.link import Link
from clachan.agent.planning import Host
from clachan.client import ClientError
from clachan.client.streams import BLOCK, Stream, keep_alive
from clachan.contract.api import Answer, ConnectQuestion

log = logging.getLogger(__name__)

CONNECT_SECONDS = 4.0
"""For each of the slot's two addresses; together less than the controller waits."""
LOOK_SECONDS = 1.0
"""How often it is seen whether who waits for a service that takes nothing is still there."""


class Carrier:
    def __init__(self, link: Link) -> None:
        self._link = link

    def begin(self, question: ConnectQuestion, host: Host) -> None:
        """In a thread of its own: connect, and carry until both directions have ended."""
        threading.Thread(target=self._carry, args=(question, host), name="stream", daemon=True).start()

    def _carry(self, question: ConnectQuestion, host: Host) -> None:
        try:
            with connect(host, question.port, any_port=question.any_port) as service:
                with self._link.streams().take_up(question.id) as stream:
                    log.info("stream to %s port %d: open", host.path, question.port)
                    carry(stream, service)
                log.info("stream to %s port %d: over", host.path, question.port)
        except AgentError as refusal:
            with suppress(ClientError, OSError):
                self._link.client().answer(question.id, Answer(error=str(refusal)))
        except (ClientError, OSError) as error:
            log.warning("stream to %s port %d: %s", host.path, question.port, error)


def connect(host: Host, port: int, *, any_port: bool) -> socket.socket:
    """A connection to a port of the instance; raises AgentError with what its user is told."""
    slot = host.instance.slot
    link = f"cv{slot.index}" if any_port else None
    if link is None and not 0 <= port - slot.ports.first < slot.ports.count:
        raise AgentError(f"instance {host.path}: port {port} is not of its slot")
    failure = ""
    for address in (slot.addresses.ipv4, slot.addresses.ipv6):
        try:
            service = _dial(address, port, link)
        except ConnectionRefusedError:
            failure = failure or f"port {port} refuses connections"
        except TimeoutError:
            failure = failure or f"port {port} gives no answer within {CONNECT_SECONDS:g} s"
        except OSError as error:
            lost = f"link {link} is missing" if error.errno == errno.ENODEV else error.strerror
            failure = failure or f"port {port} is not reached ({lost})"
        else:
            service.settimeout(LOOK_SECONDS)
            service.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(service)
            return service
    raise AgentError(f"instance {host.path}: {failure}, expected a service that listens there")


def _dial(address: str, port: int, link: str | None) -> socket.socket:
    service = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        service.settimeout(CONNECT_SECONDS)
        if link is not None:
            service.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        service.connect((address, port))
    except BaseException:
        service.close()
        raise
    return service


def carry(stream: Stream, service: socket.socket) -> None:
    """Until both directions have ended, or one broke off: then both do, and the service sees a reset, not an end."""
    cut = threading.Event()

    def bring() -> None:
        if not stream.bring(service.fileno(), lambda: service.recv(BLOCK)):
            cut.set()

    bringing = threading.Thread(target=bring, name="stream", daemon=True)
    bringing.start()
    try:
        for data in stream.take():
            _deliver(service, data, cut)
        service.shutdown(socket.SHUT_WR)
    except ClientError:
        cut.set()
    except OSError:  # it takes no more: what it still says is brought to its end
        pass
    bringing.join()
    stream.close()
    if cut.is_set():
        service.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _deliver(service: socket.socket, data: bytes, cut: threading.Event) -> None:
    """While the service takes nothing, see whether anyone still waits for that."""
    left = memoryview(data)
    while left:
        try:
            left = left[service.send(left) :]
        except TimeoutError:
            if cut.is_set():
                raise
