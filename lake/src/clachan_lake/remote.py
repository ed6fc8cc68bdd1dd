"""A lake at a URL: lists, streams and rows of arrays come over HTTP; arrays are made, appended to and deleted.

Where the lake's files are on this machine, rows are mapped from them (`remote_files`). Every call is one request and
one transaction of its own; no request is repeated by itself.
"""

import http.client
from collections.abc import Iterator, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import numpy as np
import numpy.typing as npt
import requests

from clachan_lake.errors import ChunkError, LakeReadOnlyError, MissingError, RemoteError, RequestError, TakenError
from clachan_lake.exchange import dtypes
from clachan_lake.exchange.blocks import in_order
from clachan_lake.interface import AnyArray, Array, Arrays, Lake, Revision, Stream, Streams, memory
from clachan_lake.remote_documents import RemoteDead, RemotePolicies, RemoteTokens
from clachan_lake.remote_files import Nearness, RemoteFiles
from clachan_lake.transform.remote import RemoteTransformations

BLOCK_BYTES = 1 << 20


class RemoteLake(Lake):
    """`token` goes as a bearer token. Every request has the time limit `timeout_seconds`. `ca`: the file with the
    certificate of the authority that an https URL's is signed by, or that certificate itself; else the system's."""

    def __init__(self, url: str, token: str | None, timeout_seconds: float, ca: str | None = None) -> None:
        if ca and not Path(ca).is_file():  # requests would say it at the first call, and less clearly
            raise FileNotFoundError(f"file {ca}: not there, expected the certificate of the lake or its authority")
        self._url = url.rstrip("/")
        self._timeout = timeout_seconds
        self._token = token
        self._session = requests.Session()
        self._session.trust_env = False
        self.ca = ca
        if ca:
            self._session.verify = ca
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        self.nearness = Nearness()
        self.streams: RemoteStreams = RemoteStreams(self)
        self.arrays: RemoteArrays = RemoteArrays(self)
        self.policies: RemotePolicies = RemotePolicies(self)
        self.tokens: RemoteTokens = RemoteTokens(self)
        self.dead: RemoteDead = RemoteDead(self)
        self.transformations: RemoteTransformations = RemoteTransformations(self)

    @property
    def address(self) -> tuple[str, str | None]:
        """URL and token."""
        return self._url, self._token

    @property
    def timeout_seconds(self) -> float:
        """Of every request."""
        return self._timeout

    def get(self, path: str, headers: Mapping[str, str] | None = None, **parameters: Any) -> requests.Response:
        """Raises as `call`; the body is not read yet."""
        return self.call("GET", path, headers, stream=True, **parameters)

    def call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        stream: bool = False,
        body: Any = None,
        data: memoryview | None = None,
        **parameters: Any,
    ) -> requests.Response:
        """One request; `body` goes as JSON, `data` as bytes. Raises MissingError (404), ChunkError (409 with the
        present rows), TakenError (409, 412), RequestError for what else is wrong with the request, RemoteError when
        the server cannot do it, does not know the token or cannot be reached."""
        more: dict[str, Any] = {"params": parameters, "headers": headers, "json": body, "data": data}
        try:
            answer = self._session.request(method, self._url + path, timeout=self._timeout, stream=stream, **more)
        except requests.RequestException as error:
            raise RemoteError(f"lake {self._url}: {error}, expected an answer") from error
        if answer.ok:
            return answer
        with answer:
            raise self._refusal(answer)

    def _refusal(self, answer: requests.Response) -> Exception:
        status, message = answer.status_code, _message(answer)
        if status == 404:
            return MissingError(message)
        if status == 409 and "Clachan-Array-Rows" in answer.headers:
            return ChunkError(message, int(answer.headers["Clachan-Array-Rows"]))
        if status in {409, 412}:
            return TakenError(message)
        if 400 <= status < 500 and status not in {401, 403}:
            return RequestError(f"lake {self._url}: {status} {message}")
        return RemoteError(f"lake {self._url}: {status} {message}")

    def items(self, path: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list, page by page."""
        cursor = ""
        while cursor is not None:
            page = self.get(path, limit=500, cursor=cursor, **parameters).json()
            yield from page["items"]
            cursor = page["cursor"]

    def transaction(self) -> AbstractContextManager[Self]:
        raise LakeReadOnlyError(
            "transaction at a URL: every call is one of its own, expected calls without one; for several changes at "
            "once use the lake's socket or folder"
        )

    def session(self) -> Self:
        made = type(self)(self._url, self._token, self._timeout, self.ca)
        made.nearness = self.nearness
        return made

    def refresh(self) -> None:
        """Nothing to do: every request reads what is committed then."""

    def close(self) -> None:
        self._session.close()


class RemoteArray(Array):
    """Its shape is what it was when it was asked for; its rows are read as they are then. One of the past, `at`, stays
    as it is. What is read is for reading, as that of a local lake is outside a transaction: mapped, or a copy."""

    def __init__(self, lake: RemoteLake, meta: dict[str, Any], at: str | None = None) -> None:
        self._lake = lake
        self._meta = meta
        self._at = at
        self.name = meta["name"]
        self._files = RemoteFiles(lake, self.name, self.row_bytes, at)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._meta["shape"])

    @property
    def dtype(self) -> np.dtype[Any]:
        return dtypes.from_json(self._meta["dtype"], f"array {self.name}")

    @property
    def order(self) -> Literal["C", "F"]:
        return "F" if self._meta["order"] == "F" else "C"

    @property
    def attrs(self) -> "RemoteAttributes":
        return RemoteAttributes(self)

    def read_rows(self, start: int, stop: int) -> AnyArray:
        shape = list(self.shape)
        if shape:
            shape[self.axis] = stop - start
        found = self._files.view(start * self.row_bytes, stop * self.row_bytes)
        if found is not None:
            return np.ndarray(shape, self.dtype, found, order=self.order)
        out = np.empty(shape, self.dtype, self.order)
        if out.nbytes:
            with self._lake.get("/arrays/data", name=self.name, start=start, stop=stop, at=self._at) as answer:
                _read_into(answer, memory(out.T if self.order == "F" else out), self.name)
        out.flags.writeable = False
        return out

    def blocks(self, size: int = 16 << 20) -> Iterator[tuple[int, AnyArray]]:
        """As the interface says; the next block comes while the caller works with the one before."""
        step = max(1, size // max(1, self.row_bytes))
        with self._lake.session() as lake, ThreadPoolExecutor(1) as pool:
            other = RemoteArray(lake, self._meta, self._at)
            following: Future[AnyArray] | None = None
            for first in range(0, self.rows, step):
                rows = following.result() if following else other.read_rows(first, min(first + step, self.rows))
                after = first + step
                if after < self.rows:
                    following = pool.submit(other.read_rows, after, min(after + step, self.rows))
                yield first, rows

    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None:
        _refuse("writing into an array")

    def append(self, rows: npt.ArrayLike, after: int | None = None) -> None:
        """As the interface says; with `after` only when the array has so many rows, else raises ChunkError, whose
        `size` is how many it has. So what had no answer can be repeated."""
        self._check_present()
        new = np.asarray(rows).astype(self.dtype, casting="same_kind", copy=False)
        expected = ["n" if axis == self.axis else length for axis, length in enumerate(self.shape)]
        if not expected or not _fits(new.shape, expected):
            raise ValueError(f"array {self.name}, appended rows: shape {new.shape}, expected {tuple(expected)}")
        parameters = {"name": self.name, "rows": new.shape[self.axis], "after": after}
        answer = self._lake.call("POST", "/arrays/data", data=in_order(new, self.order), **parameters)
        self._meta["shape"][self.axis] = int(answer.headers["Clachan-Array-Rows"])

    def resize(self, *shape: int) -> None:
        _refuse("changing a shape")

    def at(self, when: str | datetime) -> "RemoteArray":
        """As it was: `when` is a time, its ISO text, or a commit's id. Read-only; a pack may take that past away."""
        moment = when.isoformat() if isinstance(when, datetime) else when
        found = self._lake.get("/arrays/meta", name=self.name, at=moment).json()
        return RemoteArray(self._lake, found, found["snapshot"])

    def snapshot(self) -> "RemoteArray":
        """As it is now, whatever is committed later. Read-only."""
        found = self._lake.get("/arrays/meta", name=self.name, at=self._at).json()
        return RemoteArray(self._lake, found, found["snapshot"])

    @property
    def lake(self) -> RemoteLake:
        return self._lake

    @property
    def address(self) -> tuple[str, str | None, str | None]:
        """URL and token of its lake, and the commit that it is read at."""
        return *self._lake.address, self._at

    def history(self, limit: int = 1000) -> list[Revision]:
        """The commits that changed it, the latest first, as far as they were not packed away."""
        items = self._lake.get("/arrays/history", name=self.name, limit=limit).json()["items"]
        return [
            Revision(one["id"], datetime.fromisoformat(one["time"]), tuple(one["shape"]), one["note"]) for one in items
        ]

    def _check_present(self) -> None:
        if self._at is not None:
            raise LakeReadOnlyError(f"array {self.name}: of the past, expected the present one for writing")

    @property
    def meta(self) -> dict[str, Any]:
        """What the server said of it last."""
        return self._meta

    def declare(self, **what: Any) -> None:
        """Change what the server knows of it."""
        self._check_present()
        self._meta = self._lake.call("PUT", "/arrays/meta", body=what, name=self.name).json()


class RemoteAttributes(MutableMapping[str, Any]):
    """JSON values by name, as they were when the array or stream was asked for or last changed. Each change is a
    request."""

    def __init__(self, array: "RemoteArray | RemoteStream") -> None:
        self._array = array

    def __getitem__(self, key: str) -> Any:
        return self._array.meta["attrs"][key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._array.declare(attrs={key: value})

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._array.declare(remove_attrs=[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._array.meta["attrs"])

    def __len__(self) -> int:
        return len(self._array.meta["attrs"])

    def __repr__(self) -> str:
        return f"RemoteAttributes({self._array.meta['attrs']!r})"


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

    @property
    def start(self) -> int:
        return int(self._meta["start"])

    @property
    def attrs(self) -> RemoteAttributes:
        return RemoteAttributes(self)

    @property
    def meta(self) -> dict[str, Any]:
        """What the server said of it last."""
        return self._meta

    def declare(self, **what: Any) -> None:
        """Change what the server knows of it."""
        self._meta = self._lake.call("PUT", "/streams/meta", body=what, name=self.name).json()

    def read(self, offset: int | None = None, count: int | None = None) -> bytes:
        at = self.start if offset is None else offset
        stop = self.size if count is None else min(self.size, at + count)
        if at >= stop:
            return b""
        wanted = {"Range": f"bytes={at}-{stop - 1}"}
        with self._lake.get("/streams/data", wanted, name=self.name) as answer:
            return answer.content

    def chunks(self, offset: int = 0) -> Iterator[tuple[int, int, int]]:
        for item in self._lake.items("/streams/chunks", name=self.name, offset=offset):
            yield item["position"], item["length"], item["time"]

    def truncate(self, before: int) -> int:
        done = self._lake.call("POST", "/streams/truncate", name=self.name, before=before).json()
        self._meta["start"] = done["start"]
        return int(done["forgotten"])

    def append(self, data: bytes, chunk_id: str | None = None, final: bool = False) -> bool:
        _refuse("appending to a stream")

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
        chunk_bytes: int | None = None,
        *,
        order: str = "C",
        units: str | None = None,
    ) -> RemoteArray:
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"array {name}, dtype: {kind}, expected one without Python objects")
        body = {
            "shape": [int(n) for n in shape] if isinstance(shape, tuple | list) else [int(shape)],
            "dtype": dtypes.to_json(kind),
            "order": order,
            "attrs": {**(attrs or {}), **({} if units is None else {"units": units})},
            "chunk_bytes": chunk_bytes,
        }
        new = {"If-None-Match": "*"}
        return RemoteArray(self._lake, self._lake.call("PUT", "/arrays/meta", new, body=body, name=name).json())

    def __delitem__(self, name: str) -> None:
        self._lake.call("DELETE", "/arrays/meta", name=name)


class RemoteStreams(Streams):
    def __init__(self, lake: RemoteLake) -> None:
        self._lake = lake

    def __getitem__(self, name: str) -> RemoteStream:
        return RemoteStream(self._lake, self._lake.get("/streams/meta", name=name).json())

    def __iter__(self) -> Iterator[str]:
        return (str(item["name"]) for item in self._lake.items("/streams"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def create(self, name: str, policy: str = "raw", attrs: Mapping[str, Any] | None = None) -> RemoteStream:
        body, new = {"policy": policy, "attrs": dict(attrs or {})}, {"If-None-Match": "*"}
        return RemoteStream(self._lake, self._lake.call("PUT", "/streams/meta", new, body=body, name=name).json())

    def __delitem__(self, name: str) -> None:
        self._lake.call("DELETE", "/streams/meta", name=name)


def _refuse(what: str) -> NoReturn:
    raise LakeReadOnlyError(f"{what} at a URL: not served, expected the lake's socket or folder")


def _fits(shape: tuple[int, ...], expected: list[Any]) -> bool:
    return len(shape) == len(expected) and all(wanted in ("n", n) for n, wanted in zip(shape, expected, strict=True))


def _message(answer: requests.Response) -> str:
    try:
        error = answer.json()["error"]
        return f"{error['message']} ({error['hint']})" if error.get("hint") else str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError, requests.RequestException):
        return str(answer.reason)


def _read_into(answer: requests.Response, out: memoryview, name: str) -> None:
    # from the connection to where it stays: urllib3's own `readinto` makes a copy of each block
    body: Any = answer.raw._original_response
    done = count = 0
    try:
        while done < len(out) and (count := body.readinto(out[done : done + BLOCK_BYTES])):
            done += count
        rest = body.read(1)
    except (http.client.HTTPException, OSError) as error:
        raise RemoteError(f"array {name}: {error} after {done} bytes, expected {len(out)}") from error
    if done != len(out) or rest:
        ended = "more" if rest else "the answer ended"
        raise RemoteError(f"array {name}: {ended} after {done} bytes, expected {len(out)}")
    answer.raw.release_conn()
