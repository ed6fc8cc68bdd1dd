"""HTTP to one controller: one session with keep-alive, the error envelope as exceptions, retries where they are safe.

The environment's CA bundles and netrc are not read: they would override the platform's own CA and token.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import requests
from pydantic import ValidationError

import clachan
from clachan.client.address import controller_address, is_loopback
from clachan.client.errors import ApiError, BadAnswerError, ClientError, UnreachableError, UntrustedError
from clachan.contract import Document
from clachan.contract.api import ErrorEnvelope, Page

D = TypeVar("D", bound=Document)
T = TypeVar("T")

API = "/api/v1"
BLOCK = 1024 * 1024
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
PAGE = 500
PAUSES = (0.2, 0.6)
"""Seconds before the second and the third try of an idempotent request."""

Query = Mapping[str, str | int | None]


@dataclass(frozen=True)
class Versioned(Generic[D]):
    """A document, its strong etag, and the bytes that came (for keeping on disk what was sent)."""

    document: D
    etag: str
    body: bytes


class Transport:
    """What the methods of `Client` are made of. Threads may share one."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: Path | str | None = None,
        cert: tuple[Path | str, Path | str] | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """`ca_file`: PEM of the only CA to trust (None: the public ones); `cert`: a node's certificate and key."""
        self.url, host, _ = controller_address(url, ca_file)
        self._answer_seconds = answer_seconds
        self._session = session = requests.Session()
        session.trust_env = False
        session.headers["User-Agent"] = f"clachan/{clachan.__version__}"
        session.headers["Accept"] = "application/json"
        if token:
            session.headers["Authorization"] = f"Bearer {token}"
        session.verify = str(ca_file) if ca_file else True
        if cert:
            session.cert = (str(cert[0]), str(cert[1]))
        if not is_loopback(host):
            session.proxies = requests.utils.get_environ_proxies(self.url)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for the methods ------------------------------------------------------------------------------------------

    def _get(self, path: str, answer: type[D], query: Query | None = None) -> D:
        return self._parsed(self._call("GET", path, query=query), answer)

    def _put(self, path: str, body: Document, answer: type[D], query: Query | None = None) -> D:
        return self._parsed(self._call("PUT", path, body=body, query=query), answer)

    def _post(self, path: str, body: Document, answer: type[D], *, idempotent: bool) -> D:
        return self._parsed(self._call("POST", path, body=body, idempotent=idempotent), answer)

    def _delete(self, path: str) -> requests.Response:
        return self._call("DELETE", path)

    def _pages(self, path: str, page: type[Page[T]], query: Query | None = None) -> Iterator[T]:
        cursor: str | None = None
        while True:
            got = self._get(path, page, {**(query or {}), "limit": PAGE, "cursor": cursor})
            yield from got.items
            cursor = got.cursor
            if cursor is None:
                return

    def _poll(
        self, path: str, answer: type[D], etag: str | None, wait: int, query: Query | None = None
    ) -> Versioned[D] | None:
        """The document when it differs from `etag`; None when it is the same still after `wait` seconds."""
        headers = {"If-None-Match": etag} if etag else {}
        if wait:
            headers["Prefer"] = f"wait={wait}"
        response = self._call("GET", path, query=query, headers=headers, answer_seconds=self._answer_seconds + wait)
        if response.status_code == 304:
            return None
        return Versioned(self._parsed(response, answer), response.headers.get("ETag", ""), response.content)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Document | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool = True,
        answer_seconds: float | None = None,
    ) -> requests.Response:
        options: dict[str, Any] = {"headers": dict(headers or {}), "query": query}
        options["answer_seconds"] = answer_seconds or self._answer_seconds
        if body is not None:
            options["data"] = body.json_bytes()
            options["headers"]["Content-Type"] = "application/json"
        for pause in PAUSES if idempotent else ():
            try:
                return self._once(method, path, **options)
            except (UnreachableError, ApiError) as error:
                if isinstance(error, ApiError) and error.status not in {502, 503}:
                    raise
            time.sleep(pause)
        return self._once(method, path, **options)

    def _once(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        answer_seconds: float,
        stream: bool = False,
    ) -> requests.Response:
        with self._as_client_errors():
            response = self._session.request(
                method,
                self.url + path,
                params={key: value for key, value in (query or {}).items() if value is not None},
                headers=dict(headers or {}),
                data=data,
                timeout=(CONNECT_SECONDS, answer_seconds),
                allow_redirects=False,
                stream=stream,
            )
            if response.status_code >= 300 and response.status_code != 304:
                raise self._refusal(method, path, response)
            return response

    def _download(self, path: str, what: str, sha256: str, destination: Path) -> None:
        """Fetch a file to `destination`, which is replaced only by bytes that have this sha256."""
        partial = destination.with_name(f".{destination.name}.{os.getpid()}.part")
        digest = hashlib.sha256()
        try:
            response = self._once("GET", path, answer_seconds=self._answer_seconds, stream=True)
            with response, partial.open("wb") as file, self._as_client_errors():
                for block in response.iter_content(BLOCK):
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != sha256:
                raise BadAnswerError(f"{what}: sha256 of what came is {digest.hexdigest()}, expected the same")
            partial.rename(destination)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _as_client_errors(self) -> Iterator[None]:
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise UntrustedError(
                f"controller {self.url}: {_reason(error)}, expected a certificate of its CA"
            ) from error
        except requests.exceptions.Timeout as error:
            raise UnreachableError(f"controller {self.url}: no answer in time ({_reason(error)})") from error
        except requests.exceptions.RequestException as error:
            raise UnreachableError(f"controller {self.url}: not reachable ({_reason(error)})") from error

    def _parsed(self, response: requests.Response, answer: type[D]) -> D:
        try:
            return answer.from_json(response.content)
        except ValidationError as error:
            where = f"{response.request.method} {response.request.path_url}"
            first = error.errors(include_url=False, include_input=False)[0]
            at = ".".join(str(part) for part in first["loc"])
            expected = f"{answer.__name__} of clachan {clachan.__version__}"
            raise BadAnswerError(
                f"answer to {where} of {self.url}: {at} {first['msg']}, expected {expected}"
            ) from error

    def _refusal(self, method: str, path: str, response: requests.Response) -> ClientError:
        status = response.status_code
        try:
            error = ErrorEnvelope.from_json(response.content).error
        except ValidationError:
            return BadAnswerError(
                f"answer to {method} {path} of {self.url}: status {status}, expected a Clachan controller"
            )
        return ApiError(error.code, error.message, error.field, error.hint, status)


def _reason(error: BaseException) -> str:
    """The innermost cause that says something: requests and urllib3 wrap the system's error several times."""
    seen: BaseException | None = error
    best = type(error).__name__
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            best = seen.strerror
        inner = getattr(seen, "reason", None) or next((a for a in seen.args if isinstance(a, BaseException)), None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or seen.__context__
    return best
