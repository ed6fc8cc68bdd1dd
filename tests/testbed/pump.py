#!/usr/bin/python3
"""Carries frames between pairs of taps: what QEMU does for a guest. Ends with its standard input.

`pump.py NAMESPACE/TAP=NAMESPACE/TAP@MAC ...`: the first of each pair is the host's persistent tap, the second is made
in the guest's namespace and has the MAC. Says `ready` when all are open.
"""

import contextlib
import ctypes
import fcntl
import os
import selectors
import struct
import sys

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
SIOCSIFHWADDR = 0x8924
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: str) -> None:
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"namespace {namespace}")
    finally:
        os.close(descriptor)


def open_tap(place: str) -> int:
    place, _, mac = place.partition("@")
    namespace, _, name = place.partition("/")
    enter(namespace)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    if mac:
        fcntl.ioctl(tap, SIOCSIFHWADDR, struct.pack("16sH6s16x", name.encode(), 1, bytes.fromhex(mac.replace(":", ""))))
    return tap


def carry(source: int, target: int) -> None:
    """Some frames, then the others' turn."""
    for _ in range(64):
        try:
            frame = os.read(source, 70000)
        except BlockingIOError:
            return
        except OSError:  # the tap was removed
            return
        with contextlib.suppress(OSError):  # down, or its queue is full: a network loses frames
            os.write(target, frame)


def main() -> None:
    pairs = [tuple(map(open_tap, word.split("="))) for word in sys.argv[1:]]
    waiting = selectors.DefaultSelector()
    for one, other in pairs:
        waiting.register(one, selectors.EVENT_READ, other)
        waiting.register(other, selectors.EVENT_READ, one)
    waiting.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is sys.stdin:
                return
            carry(key.fd, key.data)


if __name__ == "__main__":
    main()
