"""Results of jobs as files, of these kinds:

    json    plain JSON: null, true, numbers, text, lists, objects
    npy     one array, as numpy's own format
    tree    lists, tuples and dicts with arrays, numbers, text and bytes in them (below)
    pickle  anything else. It runs code when it is opened, so only who trusts the job opens it

A tree begins with `MAGIC`; then come its parts, one behind the other: arrays in numpy's format, or bytes; then a JSON
object {"tree": node, "parts": [length, ...]}; and the length of that object (8 bytes, little endian). A node is null,
true, a finite number or text as it is, or an object with one key: "list", "tuple" (nodes), "dict" (pairs of nodes),
"array", "scalar", "bytes" (number of a part), "float" ("nan", "inf", "-inf").
"""

import io
import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import numpy as np

from clachan_lake.errors import CorruptError, UntrustedError
from clachan_lake.exchange import npy
from clachan_lake.interface import AnyArray, memory

KINDS = ("json", "npy", "tree", "pickle")
MAGIC = b"CLACHAN\x01"
HEAD_BYTES = 16 << 20
INTEGER_BITS = 4096
BLOCK = 1 << 20
Load = Callable[[int], BinaryIO]
"""A part, by its number."""


def write(value: Any, file: BinaryIO) -> str:
    """Its kind."""
    if _is_array(value):
        np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
        return "npy"
    if (text := _plain(value)) is not None:
        file.write(text)
        return "json"
    try:
        parts: list[Any] = []
        node = _node(value, parts)
    except (TypeError, RecursionError):
        import cloudpickle

        cloudpickle.dump(value, file)
        return "pickle"
    _write_tree(node, parts, file)
    return "tree"


def read(kind: str, file: BinaryIO, what: str, *, trust: bool = False) -> Any:
    """Raises UntrustedError for a pickle without `trust`, CorruptError for what is not of its kind."""
    if kind == "pickle":
        if not trust:
            raise UntrustedError(
                f"{what}, result: a pickle, which runs code of the job when it is opened, expected "
                "result(trust=True) by one who trusts the job, or arrays, numbers and text as a result"
            )
        import pickle

        return pickle.load(file)  # noqa: S301 - by one who trusts it
    try:
        if kind == "npy":
            return _array(file, what)
        if kind == "json":
            return json.load(file)
        tree, parts = open_tree(file, what)
        return _value(tree, lambda number: part(file, *parts[number]))
    except (ValueError, KeyError, IndexError, TypeError, EOFError, RecursionError, MemoryError) as error:
        raise CorruptError(f"{what}, result: {error}, expected a value of kind {kind}") from error


def open_tree(file: BinaryIO, what: str) -> tuple[Any, list[tuple[int, int]]]:
    """The tree's root node, and (position, length) of its parts; raises ValueError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(8), "little")
    stop = size - 8 - length
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC or length > HEAD_BYTES or stop < len(MAGIC):
        raise ValueError(f"{what}: {size} bytes, expected a tree")
    file.seek(stop)
    found = json.loads(file.read(length))
    position, parts = len(MAGIC), []
    for one in found["parts"]:
        if type(one) is not int or one < 0:
            raise ValueError(f"{what}, length of a part: {one!r:.80}, expected a whole number")
        parts.append((position, one))
        position += one
    if position != stop:
        raise ValueError(f"{what}: {stop} bytes of parts, expected {position}")
    return found["tree"], parts


def part(file: BinaryIO, position: int, length: int) -> BinaryIO:
    """A part of a file as a file."""
    return io.BufferedReader(Part(file, position, length))


def leaves(node: Any, path: str, parts: int) -> Iterator[tuple[str, int]]:
    """(path, number of the part) of every array of a tree of arrays, below a name: lists by number, dicts by key.
    Raises ValueError when something else is in it."""
    kind, inner = _only(node) if isinstance(node, dict) else ("", [])
    if kind == "array" and type(inner) is int and 0 <= inner < parts:
        yield path, inner
    elif kind in {"list", "tuple"}:
        for number, one in enumerate(inner):
            yield from leaves(one, f"{path}/{number}", parts)
    elif kind == "dict":
        for key, one in inner:
            if not isinstance(key, str):
                raise ValueError(f"key {key!r:.80}, expected text")
            yield from leaves(one, f"{path}/{key}", parts)
    else:
        raise ValueError(f"{path}: {json.dumps(node):.80}, expected an array, or a list or dict of arrays")


def named(node: Any, load: Callable[[str], Any], path: str) -> Any:
    """The tree with what `load` gives for each array's name."""
    kind, inner = _only(node)
    if kind == "array":
        return load(path)
    if kind == "dict":
        return {key: named(one, load, f"{path}/{key}") for key, one in inner}
    found = [named(one, load, f"{path}/{number}") for number, one in enumerate(inner)]
    return tuple(found) if kind == "tuple" else found


class Part(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, position: int, length: int) -> None:
        super().__init__()
        self._file = file
        self._begin = position
        self._length = length
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._begin + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _is_array(value: Any) -> bool:
    return type(value) in {np.ndarray, np.memmap} and not value.dtype.hasobject


def _plain(value: Any) -> bytes | None:
    """As JSON, if that gives the same value again."""
    try:
        if _is_plain(value):
            return json.dumps(value, allow_nan=False).encode()
    except (ValueError, RecursionError):
        pass
    return None


def _is_plain(value: Any) -> bool:
    if value is None or type(value) in {bool, int, float, str}:
        return True
    if type(value) is list:
        return all(map(_is_plain, value))
    return type(value) is dict and all(type(key) is str and _is_plain(one) for key, one in value.items())


def _node(value: Any, parts: list[Any]) -> Any:
    """Raises TypeError for what has no place in a tree."""
    kind = type(value)
    if kind is int and value.bit_length() > INTEGER_BITS:
        raise TypeError("beyond what readers of JSON take")
    if value is None or kind in {bool, int, str} or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        return {"float": str(value)}
    if kind in {list, tuple}:
        return {kind.__name__: [_node(one, parts) for one in value]}
    if kind is dict:
        return {"dict": [[_node(key, parts), _node(one, parts)] for key, one in value.items()]}
    scalar = isinstance(value, np.generic) and not value.dtype.hasobject
    if not (scalar or kind in {bytes, bytearray} or _is_array(value)):
        raise TypeError(kind)
    parts.append(bytes(value) if kind in {bytes, bytearray} else np.asarray(value))
    return {"scalar" if scalar else "bytes" if kind in {bytes, bytearray} else "array": len(parts) - 1}


def _write_tree(node: Any, parts: list[Any], file: BinaryIO) -> None:
    file.write(MAGIC)
    lengths, before = [], file.tell()
    for one in parts:
        if isinstance(one, bytes):
            file.write(one)
        else:
            np.lib.format.write_array(file, one, allow_pickle=False)
        lengths.append(file.tell() - before)
        before = file.tell()
    text = json.dumps({"tree": node, "parts": lengths}, allow_nan=False).encode()
    file.write(text + len(text).to_bytes(8, "little"))


def _array(file: BinaryIO, what: str) -> AnyArray:
    """Raises ValueError, TypeError; nothing is ever executed."""
    form = npy.read_header(file, what)
    begin = file.tell()
    size = file.seek(0, os.SEEK_END) - begin
    if size != form.nbytes:
        raise ValueError(f"{what}: {size} bytes of data, expected {form.nbytes} for {form.shape} of {form.dtype}")
    file.seek(begin)
    found = np.empty(form.shape, form.dtype, form.order)  # type: ignore[call-overload]
    view, done = memory(found.T if form.order == "F" else found), 0
    while done < size and (data := file.read(min(size - done, BLOCK))):
        view[done : done + len(data)] = data
        done += len(data)
    return cast("AnyArray", found)


def _only(node: Any) -> tuple[str, Any]:
    ((kind, inner),) = node.items()
    return kind, inner


def _value(node: Any, load: Load) -> Any:
    if not isinstance(node, dict):
        return node
    kind, inner = _only(node)
    if kind == "list":
        return [_value(one, load) for one in inner]
    if kind == "tuple":
        return tuple(_value(one, load) for one in inner)
    if kind == "dict":
        return {_value(key, load): _value(one, load) for key, one in inner}
    if kind == "float":
        return float(inner)
    with load(inner) as file:
        if kind == "bytes":
            return file.read()
        found = _array(file, "array")
    return found[()] if kind == "scalar" else found
