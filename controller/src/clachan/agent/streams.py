"""Streams of users to ports of instances on this node: the agent connects, and carries the bytes over its own
connection to the controller. Nothing listens.

Only an address of the instance's slot is connected to, and only a port of the slot. A VM has its address for itself:
there any port may be meant, and the way is its own link, so that a VM that does not run is never taken for another
machine that has its address. Its console and its screen are unix sockets in its slot. Each stream has two threads for
as long as it is open.
"""

import errno
import logging
import os
import pwd
import socket
import stat
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from clachan.agent.layout import AgentError
from clachan.agent.link import Link
from clachan.agent.planning import Host
from clachan.agent.slots import opened_inside
from clachan.client import ClientError
from clachan.client.streams import carry, keep_alive, named
from clachan.contract.api import Answer, ConnectQuestion, StreamPort

log = logging.getLogger(__name__)

CONNECT_SECONDS = 4.0
"""For each of the slot's two addresses; together less than the controller waits."""
SOCKETS = {"console": "log/console.sock", "vnc": "var/vnc.sock"}
"""Below the slot. libvirt, which is root, makes the console's, and QEMU, which is the slot's user, the screen's."""

AS_IT_IS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


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
                    log.info("stream to %s %s: open", host.path, named(question.port))
                    carry(stream, service)
                log.info("stream to %s %s: over", host.path, named(question.port))
        except AgentError as refusal:
            with suppress(ClientError, OSError):
                self._link.client().answer(question.id, Answer(error=str(refusal)))
        except (ClientError, OSError) as error:
            log.warning("stream to %s %s: %s", host.path, named(question.port), error)


def connect(host: Host, port: StreamPort, *, any_port: bool) -> socket.socket:
    """A connection to a port of the instance; raises AgentError with what its user is told."""
    slot = host.instance.slot
    if isinstance(port, str):
        return _machine(host, port)
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
            service.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(service)
            return service
    raise AgentError(f"instance {host.path}: {failure}, expected a service that listens there")


def _machine(host: Host, outlet: str) -> socket.socket:
    slot, refused = host.instance.slot, f"instance {host.path}: {outlet} is not served"
    with ExitStack() as undo:
        service = undo.enter_context(socket.socket(socket.AF_UNIX))
        service.settimeout(CONNECT_SECONDS)
        try:
            with opened_inside(Path(slot.directory), SOCKETS[outlet], AS_IT_IS) as found:
                made = os.fstat(found)
                foreign = outlet == "vnc" and made.st_uid != pwd.getpwnam(slot.user).pw_uid
                if foreign or not stat.S_ISSOCK(made.st_mode):
                    raise AgentError(f"{refused} ({SOCKETS[outlet]} is another's), expected QEMU's own socket")
                # not by its name, where the slot's user may have put another one since
                service.connect(f"/proc/self/fd/{found}")
        except OSError as error:
            missing = f"{refused} ({error.strerror}), expected a machine that runs and was made with it"
            raise AgentError(missing) from error
        undo.pop_all()
    return service


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
