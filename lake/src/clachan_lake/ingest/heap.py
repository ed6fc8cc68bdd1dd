"""The C library's heap: a body's parts come and go, and are not to be asked of the kernel each time."""

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""mallopt(3)"""
KEPT_BYTES = 16 << 20
LARGE_BYTES = 1 << 20


def keep_freed() -> None:
    """Keep so much of what was freed for later; only what is larger comes from the kernel by itself. By default both
    are 128 KiB, and half of the time that a body takes is the kernel's, which clears pages. Does nothing where the C
    library is another one than GNU's."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(MMAP_THRESHOLD, LARGE_BYTES)
