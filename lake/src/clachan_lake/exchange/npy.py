"""numpy's own file format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

Written with the oldest version that can say the dtype; versions 1, 2 and 3 are read. The header is a literal, the data
are bytes: nothing that a file says is ever executed, and dtypes with Python objects (pickles) are refused.
"""

import ast
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clachan_lake.exchange.blocks import BLOCK_BYTES, Tell, check, in_order, rows_of, silent
from clachan_lake.exchange.dtypes import DtypeError
from clachan_lake.exchange.filling import filling
from clachan_lake.exchange.whole import whole_file
from clachan_lake.interface import AnyArray, Array, Arrays, memory

MAGIC = b"\x93NUMPY"
VERSIONS = {1: ("<H", "latin1"), 2: ("<I", "latin1"), 3: ("<I", "utf-8")}
ALIGN = 64
HEADER_BYTES = 1 << 20
"""A longer header is refused: numpy's own limit is 10,000 characters for files that it does not trust."""


@dataclass(frozen=True)
class Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def to_npy(array: Array, file: str | Path | BinaryIO, tell: Tell = silent) -> int:
    """Write the array, block by block, in its own order; a named file appears when it is whole. Returns the bytes
    written. Raises CorruptError for a chunk whose checksum does not hold."""
    if isinstance(file, str | Path):
        with whole_file(Path(file)) as out:
            return to_npy(array, out, tell)
    check(array)
    head = header(array.dtype, array.shape, array.order)
    file.write(head)
    done = 0
    for _first, rows in rows_of(array):
        data = in_order(rows, array.order)
        file.write(data)
        done += len(data)
        tell(done, array.nbytes)
    return len(head) + done


def header(dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> bytes:
    """All that stands before the data, a multiple of 64 bytes."""
    fortran = order == "F" and len(shape) > 1
    content = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": fortran, "shape": shape}
    text = "{" + "".join(f"'{key}': {content[key]!r}, " for key in sorted(content)) + "}"
    latin = text.isascii() or _is_latin(text)
    version = 1 if latin and len(text) < (1 << 16) - 2 * ALIGN else 2 if latin else 3
    length_format, encoding = VERSIONS[version]
    data = text.encode(encoding)
    before = len(MAGIC) + 2 + struct.calcsize(length_format)
    length = -(-(before + len(data) + 1) // ALIGN) * ALIGN - before
    return MAGIC + bytes([version, 0]) + struct.pack(length_format, length) + data.ljust(length - 1) + b"\n"


def _is_latin(text: str) -> bool:
    try:
        text.encode("latin1")
    except UnicodeEncodeError:
        return False
    return True


def from_npy(arrays: Arrays, name: str, file: str | Path | BinaryIO, tell: Tell = silent) -> Array:
    """A new array of the file's shape, dtype and order. Raises ValueError for what is no such file or is cut,
    DtypeError for Python objects, TakenError for a name in use."""
    with _opened(file) as source:
        what = f"file {getattr(source, 'name', 'npy')}"
        form = read_header(source, what)
        _check_size(source, form, what)
        with filling(arrays, name, form.shape, form.dtype, order=form.order) as add:
            for part in _read_parts(source, form, what, tell):
                add(part)
    return arrays[name]


@contextmanager
def _opened(file: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(file, str | Path):
        with Path(file).open("rb") as source:
            yield source
    else:
        yield file


def read_header(source: BinaryIO, what: str) -> Header:
    """The shape, dtype and order that a file says; raises ValueError or DtypeError that begins with `what`."""
    start = source.read(len(MAGIC) + 2)
    if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + 2:
        raise ValueError(f"{what}: begins with {start!r}, expected {MAGIC!r} as numpy writes it")
    if start[-2] not in VERSIONS or start[-1] != 0:
        raise ValueError(f"{what}, format: version {start[-2]}.{start[-1]}, expected 1.0, 2.0 or 3.0")
    length_format, encoding = VERSIONS[start[-2]]
    size = source.read(struct.calcsize(length_format))
    length = struct.unpack(length_format, size)[0] if len(size) == struct.calcsize(length_format) else -1
    if length > HEADER_BYTES:
        raise ValueError(f"{what}, header: {length} bytes, expected at most {HEADER_BYTES}")
    data = source.read(length) if length >= 0 else b""
    if len(data) != length:
        raise ValueError(f"{what}, header: cut after {len(data)} bytes, expected {max(length, 0)}")
    return _parse(data, encoding, what)


def _parse(data: bytes, encoding: str, what: str) -> Header:
    try:
        found = ast.literal_eval(data.decode(encoding).strip())
        shape, fortran = found["shape"], found["fortran_order"]
        dtype = np.lib.format.descr_to_dtype(found["descr"])
        if len(found) != 3 or type(fortran) is not bool or not isinstance(shape, tuple):
            raise ValueError("other keys or types")
        if any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"shape {shape}")
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, RecursionError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what}, header: {text:.200}, expected descr, fortran_order and shape") from None
    if dtype.hasobject:
        raise DtypeError(
            f"{what}, dtype: {dtype}, expected one without Python objects; they are pickles, which are never loaded"
        )
    return Header(shape, dtype, "F" if fortran and len(shape) > 1 else "C")


def _check_size(source: BinaryIO, form: Header, what: str) -> None:
    """Where the file's size is known, it is compared before anything is made."""
    if not source.seekable():
        return
    here = source.tell()
    found = source.seek(0, os.SEEK_END) - here
    source.seek(here)
    if found != form.nbytes:
        raise ValueError(f"{what}: {found} bytes of data, expected {form.nbytes} for {form.shape} of {form.dtype}")


def _read_parts(source: BinaryIO, form: Header, what: str, tell: Tell) -> Iterator[AnyArray]:
    """The data, block by block along the major axis."""
    major, others = _split(form)
    one = math.prod(others) * form.dtype.itemsize
    step = max(1, BLOCK_BYTES // max(1, one))
    for start in range(0, major if form.nbytes else 0, step):
        block = np.empty(min(step, major - start) * math.prod(others), form.dtype)
        read = _read_into(source, memory(block))
        if read < block.nbytes:
            raise ValueError(f"{what}: {start * one + read} bytes of data, expected {form.nbytes}")
        yield _shaped(block, form)
        tell(start * one + block.nbytes, form.nbytes)


def _split(form: Header) -> tuple[int, tuple[int, ...]]:
    """The length of the major axis, and those of the others."""
    if not form.shape:
        return 1, ()
    return (form.shape[-1], form.shape[:-1]) if form.order == "F" else (form.shape[0], form.shape[1:])


def _shaped(block: AnyArray, form: Header) -> AnyArray:
    if not form.shape:
        return block.reshape(())
    others = _split(form)[1]
    return block.reshape(-1, *reversed(others)).T if form.order == "F" else block.reshape(-1, *others)


def _read_into(source: BinaryIO, out: memoryview) -> int:
    """Bytes read: fewer than asked for only at the end."""
    done = 0
    while done < len(out) and (data := source.read(min(len(out) - done, 1 << 20))):
        out[done : done + len(data)] = data
        done += len(data)
    return done
