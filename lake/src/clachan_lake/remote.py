"""A lake at a URL, for reading: lists, streams and slices of arrays come block by block over HTTP."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import requests

from clachan_lake.errors import LakeReadOnlyError, MissingError, RemoteError
from clachan_lake.format import CHUNK_BYTES
from clachan_lake.interface import AnyArray, Array, Arrays, Lake, Stream, Streams, memory

BLOCK_BYTES = 8 << 20


class RemoteLake(Lake):
    """`token` goes as a bearer token. Every request has the time limit `timeout_seconds`."""

    def __init__(self, url: str, token: str | None, timeout_seconds: float) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout_seconds
        self._token = token
        self._session = requests.Session()
        self._session.trust_env = False
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        self.streams: RemoteStreams = RemoteStreams(self)
        self.arrays: RemoteArrays = RemoteArrays(self)

    def get(self, path: str, headers: Mapping[str, str] | None = None, **parameters: Any) -> requests.Response:
        """Raises MissingError for 404, RemoteError for any other refusal and when the server cannot be reached."""
        try:
            answer = self._session.get(
                self._url + path, params=parameters, headers=headers, timeout=self._timeout, stream=True
            )
        except requests.RequestException as error:
            raise RemoteError(f"lake {self._url}: {error}, expected an answer") from error
        if answer.ok:
            return answer
        with answer:
            message = _message(answer)
        if answer.status_code == 404:
            raise MissingError(message)
        raise RemoteError(f"lake {self._url}: {answer.status_code} {message}")

    def items(self, path: str) -> Iterator[dict[str, Any]]:
        """Every item of a list, page by page."""
        cursor = ""
        while cursor is not None:
            page = self.get(path, limit=500, cursor=cursor).json()
            yield from page["items"]
            cursor = page["cursor"]

    def transaction(self) -> AbstractContextManager[Self]:
        _refuse()

    def session(self) -> Self:
        return type(self)(self._url, self._token, self._timeout)

    def refresh(self) -> None:
        """Nothing to do: every request reads what is committed then."""

    def close(self) -> None:
        self._session.close()


class RemoteArray(Array):
    def __init__(self, lake: RemoteLake, meta: dict[str, Any]) -> None:
        self._lake = lake
        self._meta = meta
        self.name = meta["name"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._meta["shape"])

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.lib.format.descr_to_dtype(_descr(self._meta["dtype"]))

    @property
    def attrs(self) -> Mapping[str, Any]:
        return MappingProxyType(self._meta["attrs"])

    def read_rows(self, start: int, stop: int) -> AnyArray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        view = memory(out)
        step = max(1, BLOCK_BYTES // max(1, self.row_bytes))
        for first in range(start, stop if out.nbytes else start, step):
            last = min(first + step, stop)
            part = view[(first - start) * self.row_bytes : (last - start) * self.row_bytes]
            with self._lake.get("/arrays/data", name=self.name, start=first, stop=last) as answer:
                _read_into(answer, part, self.name)
        return out

    def _read_all(self) -> AnyArray:
        rows = self.read_rows(0, self.rows)
        return rows if self.shape else rows[0]

    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None:
        _refuse()

    def append(self, rows: npt.ArrayLike) -> None:
        _refuse()

    def resize(self, *shape: int) -> None:
        _refuse()


class RemoteStream(Stream):
    def __init__(self, lake: RemoteLake, meta: dict[str, Any]) -> None:
        self._lake = lake
        self._meta = meta
        self.name = meta["name"]

    @property
    def size(self) -> int:
        return int(self._meta["size"])

    @property
    def final(self) -> bool:
        return bool(self._meta["final"])

    def read(self, offset: int = 0, count: int | None = None) -> bytes:
        stop = self.size if count is None else min(self.size, offset + count)
        if offset >= stop:
            return b""
        wanted = {"Range": f"bytes={offset}-{stop - 1}"}
        with self._lake.get("/streams/data", wanted, name=self.name) as answer:
            return answer.content

    def append(self, data: bytes, chunk_id: str | None = None, final: bool = False) -> bool:
        _refuse()

    def sha256(self) -> str:
        return str(self._lake.get("/streams/sha256", name=self.name).json()["sha256"])

    def describe(self) -> dict[str, Any]:
        return dict(self._meta)


class RemoteArrays(Arrays):
    def __init__(self, lake: RemoteLake) -> None:
        self._lake = lake

    def __getitem__(self, name: str) -> RemoteArray:
        return RemoteArray(self._lake, self._lake.get("/arrays/meta", name=name).json())

    def __iter__(self) -> Iterator[str]:
        return (str(item["name"]) for item in self._lake.items("/arrays"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def create(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike,
        attrs: Mapping[str, Any] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> Array:
        _refuse()

    def __delitem__(self, name: str) -> None:
        _refuse()


class RemoteStreams(Streams):
    def __init__(self, lake: RemoteLake) -> None:
        self._lake = lake

    def __getitem__(self, name: str) -> RemoteStream:
        return RemoteStream(self._lake, self._lake.get("/streams/meta", name=name).json())

    def __iter__(self) -> Iterator[str]:
        return (str(item["name"]) for item in self._lake.items("/streams"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def create(self, name: str, policy: str = "raw") -> Stream:
        _refuse()


def _refuse() -> NoReturn:
    raise LakeReadOnlyError("lake at a URL: for reading, expected the lake's socket or folder for writing")


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(answer.reason)


def _read_into(answer: requests.Response, out: memoryview, name: str) -> None:
    done = 0
    for data in answer.iter_content(1 << 20):
        if done + len(data) > len(out):
            break
        out[done : done + len(data)] = data
        done += len(data)
    if done != len(out):
        raise RemoteError(f"array {name}: {done} bytes, expected {len(out)}")


def _descr(value: Any) -> Any:
    """A dtype's description from JSON, where tuples have become lists."""
    if isinstance(value, str):
        return value
    return [(field[0], _descr(field[1]), *(tuple(n) for n in field[2:])) for field in value]
