"""A machine's serial console at a terminal, for `clachan instance connect --console`.

The terminal is raw, so that every key goes to the machine, but for one that leaves. It gets back what it was at the
end, also by a signal; what was typed and not yet read is thrown away then, as it was meant for the machine.
"""

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from clachan.client.errors import UnreachableError
from clachan.client.streams import BLOCK, Stream

LEAVE = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""
LEAVE_SECONDS = 1.0
"""How long the machine's side may take to end when it was left."""


def converse(stream: Stream, path: str, show: Callable[[bytes], None]) -> None:
    """Keys to the console, and what it says is shown, until the key that leaves or the console's end."""
    left = threading.Event()
    line, typed = os.pipe()
    with _raw() as signalled:
        # said when keys are the machine's already, on a terminal that needs the return
        print(f"connected to the console of {path}: Enter shows its prompt, Ctrl-] leaves", end="\r\n", file=sys.stderr)
        threading.Thread(target=_type, args=(stream, typed, signalled, left), daemon=True).start()
        threading.Thread(target=stream.bring, args=(line, lambda: os.read(line, BLOCK)), daemon=True).start()
        try:
            for data in stream.take():
                show(data)
        except UnreachableError:
            if not left.is_set():
                raise
    print(file=sys.stderr)


def _type(stream: Stream, line: int, signalled: int, left: threading.Event) -> None:
    """Keys to the pipe. They are read also while the machine takes none, so that it can be left."""
    waiting = b""
    os.set_blocking(line, False)
    while not left.is_set():
        ready, _, _ = select.select([0, signalled], [line] if waiting else [], [])
        if signalled in ready:
            stream.close()
            return
        if 0 in ready:
            keys, leaves, _ = _keys().partition(LEAVE)
            waiting += keys
            if leaves or not keys:
                left.set()
        with suppress(BlockingIOError):
            waiting = waiting[os.write(line, waiting) :]
    os.close(line)
    time.sleep(LEAVE_SECONDS)
    stream.close()


def _keys() -> bytes:
    """What was typed; nothing when the terminal is gone."""
    try:
        return os.read(0, BLOCK)
    except OSError:
        return b""


@contextmanager
def _raw() -> Iterator[int]:
    """Gives what can be read after a signal: this thread, just about to wait for bytes, is not woken by one."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = termios.tcgetattr(0)
    signalled, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(0)
        yield signalled
    finally:
        signal.set_wakeup_fd(-1)
        termios.tcsetattr(0, termios.TCSAFLUSH, before)
        for number, handler in former.items():
            signal.signal(number, handler)
