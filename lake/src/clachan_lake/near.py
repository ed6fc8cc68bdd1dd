"""The files of a lake for a reader on the same machine: open descriptors, handed over at a unix socket (SCM_RIGHTS).

The lake's folder is closed to others; what a reader may see its token says. So the server, asked over HTTP with the
token, opens the files of one array for reading, and answers with the name of its socket, a *ticket* for these
descriptors, which is good once and for a short time, and a *proof*. Who sends the ticket to the socket gets the proof
and the descriptors.

The socket's name is abstract (unix(7)): it needs no folder, and belongs to a network namespace. There nobody else can
take it, as the server has it before it tells it; elsewhere somebody could. So a ticket is only given to who is in the
server's own namespace (`place`), and what comes without the proof is not taken. A blob's files are not writable for
anybody, so a descriptor cannot be opened anew for writing by who is not the lake's own user, or root.

The first descriptor is a lease (`keeping.leases`): while somebody has it, no pack takes away, or makes holes in, what
these files had at that commit; also when the server has ended.
"""

import os
import socket
import stat
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

SECRET_BYTES = 16
SECONDS = 2.0
FILES = 128
"""The most that one ticket is for, beside the lease; the kernel passes at most 253 at once."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/net")


def place() -> str | None:
    """The same for two processes that find each other's abstract sockets, and for no others: of which start of which
    kernel, and which network namespace. None where that is not told."""
    try:
        namespace = NAMESPACE.stat()
        boot = BOOT.read_text().strip()
    except OSError:
        return None
    return sha256(f"{boot} {namespace.st_dev} {namespace.st_ino}".encode()).hexdigest()


def fetch(name: str, ticket: str, proof: str, count: int) -> list[int]:
    """The descriptors of a ticket, which the caller closes: a lease, and `count` of regular files. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(SECONDS)
        connection.connect(f"\0{name}")
        connection.send(bytes.fromhex(ticket))
        said, files, flags, _address = socket.recv_fds(connection, 2 * SECRET_BYTES, FILES + 1, socket.MSG_CMSG_CLOEXEC)
    try:
        if flags & socket.MSG_CTRUNC:
            raise OSError(f"lake's files: {len(files)} received, expected {count + 1}; see `ulimit -n`")
        if len(files) != count + 1 or not compare_digest(said, bytes.fromhex(proof)):
            raise OSError(f"socket {name}: {len(files)} files without the proof, expected {count + 1} with it")
        if not all(stat.S_ISREG(os.fstat(number).st_mode) for number in files):
            raise OSError(f"socket {name}: other than regular files, expected the lake's")
    except OSError:
        for number in files:
            os.close(number)
        raise
    return files
