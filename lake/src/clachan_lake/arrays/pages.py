"""The kernel's side of a mapped array: address ranges, files mapped into them, and which pages were written.

Pages of files are mapped private: a store copies the page, and the kernel knows which pages are such copies. Linux
6.7 and newer tell it by the ioctl PAGEMAP_SCAN; older kernels by /proc/self/pagemap, in which bit 61 marks the page of
a file (Documentation/admin-guide/mm/pagemap.rst). In the latter a page of zeros that was only read looks written,
unless it is a file's: so `Method.reads_zeros_as_written` asks for zeros that are mapped from a file.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from clachan_lake.errors import MappingError

PAGE = mmap.PAGESIZE
FIXED, NORESERVE, NOREPLACE = 0x10, 0x4000, 0x100000
DONTNEED, HUGEPAGE, NOHUGEPAGE, POPULATE_READ = 4, 14, 15, 22
UNTOUCHABLE, READ, READ_WRITE = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
ZEROS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
SPARE = 4096
"""Mappings that are left to the rest of the process."""


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _map(address: int | None, length: int, protection: int, flags: int, *, file: int = -1, offset: int = 0) -> int:
    found = _libc.mmap(address, length, protection, flags, file, offset)
    if found == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        if code == errno.ENOMEM:
            raise MappingError(
                f"mapping of {length} bytes: refused by the kernel, expected room for it; see `ulimit -v`, and "
                "`sysctl vm.max_map_count` beside the lines of /proc/self/maps; `clachan-lake pack --merge` needs fewer"
            )
        raise OSError(code, f"mapping of {length} bytes: {os.strerror(code)}")
    return int(found)


class _Claims:
    """How many mappings the process may make until they are counted again."""

    left = 0

    def count(self) -> None:
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
        most = int(Path("/proc/sys/vm/max_map_count").read_bytes()) - SPARE
        if used >= most:
            raise MappingError(
                f"mappings of this process: {used}, expected less than {most}; `clachan-lake pack --merge` needs "
                "fewer, or set `sysctl vm.max_map_count` higher"
            )
        # one in the middle of another makes two more
        self.left = (most - used + 1) // 2


_claims = _Claims()


def claim() -> None:
    """Before each mapping: raises MappingError while the process has some thousands left, as without any it can do
    nothing more, not even open a file."""
    if _claims.left <= 0:
        _claims.count()
    _claims.left -= 1


def up(length: int) -> int:
    """Rounded up to whole pages."""
    return -(-length // PAGE) * PAGE


def reserve(length: int) -> int:
    """The address of a range of at least `length` bytes that nothing else will use; raises MappingError."""
    return _map(None, length, UNTOUCHABLE, ZEROS)


def release(address: int, length: int) -> None:
    _libc.munmap(address, length)


def map_zeros(address: int, length: int) -> None:
    """Zeros in place of what is mapped there."""
    _map(address, length, READ_WRITE, ZEROS | FIXED)
    # a huge page of zeros that was only read would count as written
    _libc.madvise(address, length, NOHUGEPAGE)


def map_private(address: int, length: int, file: int, offset: int) -> None:
    """The file's bytes in place of what is mapped there; stores do not reach the file."""
    _map(address, up(length), READ_WRITE, mmap.MAP_PRIVATE | NORESERVE | FIXED, file=file, offset=offset)
    _libc.madvise(address, up(length), HUGEPAGE)


def map_shared(address: int, length: int, file: int, offset: int) -> None:
    """The file's bytes in place of what is mapped there; stores reach the file."""
    _map(address, up(length), READ_WRITE, mmap.MAP_SHARED | FIXED, file=file, offset=offset)


def map_read(address: int, length: int, file: int, offset: int) -> None:
    """The file's bytes in place of what is mapped there, for reading. Such pages, unlike private ones that can be
    stored to, do not count for RLIMIT_DATA (mm/mmap.c, `is_data_mapping`)."""
    _map(address, up(length), READ, mmap.MAP_SHARED | FIXED, file=file, offset=offset)
    _libc.madvise(address, up(length), HUGEPAGE)


def read_zeros(address: int, length: int) -> None:
    """Zeros in place of what is mapped there, for reading."""
    _map(address, length, READ, ZEROS | FIXED)


def fill(address: int, data: bytes) -> None:
    """Store the bytes there."""
    ctypes.memmove(address, data, len(data))


def protect(address: int, length: int) -> None:
    """From now on they are for reading only."""
    if _libc.mprotect(address, up(length), READ):
        code = ctypes.get_errno()
        raise OSError(code, f"protecting of pages: {os.strerror(code)}")


def drop(address: int, length: int) -> None:
    """Forget what was stored in private pages: the file's bytes, or zeros, are there again."""
    if _libc.madvise(address, up(length), DONTNEED):
        code = ctypes.get_errno()
        raise OSError(code, f"dropping of pages: {os.strerror(code)}")


def load(data: memoryview) -> None:
    """Have all pages of the bytes in memory, as far as there is room."""
    if not len(data):
        return
    array = np.frombuffer(data, np.uint8)
    start = array.ctypes.data // PAGE * PAGE
    if _libc.madvise(start, up(array.ctypes.data + len(array) - start), POPULATE_READ):
        # a kernel before 5.14
        array[::PAGE].max()


class Method(Protocol):
    """A way to find the written pages."""

    reads_zeros_as_written: bool

    def written(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The ranges of addresses in low <= address < high (whole pages) whose private pages were stored to."""


class _Scan(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in "size flags start end walk_end vec vec_len max_pages inverted mask anyof wanted".split()  # noqa: SIM905
    ]


class _Found(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("start", "end", "categories")]


class _Pagemap:
    """The process's own pagemap; opened again after a fork, as it stands for the memory of who opened it."""

    def __init__(self) -> None:
        self._process, self._file = 0, -1

    def file(self) -> int:
        if self._process != os.getpid():
            self._file = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._process = os.getpid()
        return self._file


class ScanMethod(_Pagemap):
    """By the ioctl PAGEMAP_SCAN."""

    reads_zeros_as_written = False
    REQUEST = (3 << 30) | (ctypes.sizeof(_Scan) << 16) | (ord("f") << 8) | 16
    FILE, PRESENT, SWAPPED, ZERO = 4, 8, 16, 32
    RANGES = 4096

    def written(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        found = (_Found * self.RANGES)()
        argument = _Scan(
            size=ctypes.sizeof(_Scan),
            start=low,
            end=high,
            vec=ctypes.addressof(found),
            vec_len=self.RANGES,
            inverted=self.FILE | self.ZERO,
            mask=self.FILE | self.ZERO,
            anyof=self.PRESENT | self.SWAPPED,
        )
        while argument.start < high:
            count = _libc.ioctl(self.file(), ctypes.c_ulong(self.REQUEST), ctypes.byref(argument))
            if count < 0:
                code = ctypes.get_errno()
                raise OSError(code, f"PAGEMAP_SCAN: {os.strerror(code)}")
            for index in range(count):
                yield found[index].start, found[index].end
            argument.start = argument.walk_end


class TableMethod(_Pagemap):
    """By reading /proc/self/pagemap: 8 bytes for each page, so 2 MiB for each GiB."""

    reads_zeros_as_written = True
    FILE, IN_USE = np.uint64(1 << 61), np.uint64(3 << 62)
    STEP = 1 << 30

    def written(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        for start in range(low, high, self.STEP):
            stop = min(start + self.STEP, high)
            data = os.pread(self.file(), (stop - start) // PAGE * 8, start // PAGE * 8)
            table = np.frombuffer(data, np.uint64)
            stored = ((table & self.IN_USE) != 0) & ((table & self.FILE) == 0)
            edges = np.flatnonzero(np.diff(stored, prepend=False, append=False))
            for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                yield start + first * PAGE, start + last * PAGE


@cache
def method() -> Method:
    """The better one of those that this kernel has; CLACHAN_LAKE_PAGES=scan|table forces one."""
    wanted = os.environ.get("CLACHAN_LAKE_PAGES", "")
    if wanted not in {"", "scan", "table"}:
        raise ValueError(f"CLACHAN_LAKE_PAGES: {wanted!r}, expected scan or table")
    if wanted == "table":
        return TableMethod()
    scan = ScanMethod()
    address = reserve(PAGE)
    try:
        list(scan.written(address, address + PAGE))
    except OSError:
        if wanted:
            raise
        return TableMethod()
    finally:
        release(address, PAGE)
    return scan
