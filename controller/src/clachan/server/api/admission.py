"""What every request passes before its view: who asks, whether they may, and how much they may send.

It comes before the body is read, so that a stranger can make the controller read nothing.
"""

import hashlib
import logging
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, cast

import pydantic_core
from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.types import Message

from clachan.server.api.permissions import API, MATRIX, Access
from clachan.server.services import standings
from clachan.server.services.controller import Controller
from clachan.server.services.principals import Principal, token_hash
from clachan.server.services.refusals import Forbidden, Invalid, TooLarge, Unauthenticated

log = logging.getLogger(__name__)
OWN_LIMIT = {
    ("POST", f"{API}/software"),
    ("PUT", f"{API}/images/{{sha256}}/disk"),
    ("POST", f"{API}/instances/{{path}}/streams/{{identifier}}"),
    ("POST", f"{API}/nodes/self/streams/{{identifier}}"),
}
"""Views that stream their body and bound it themselves."""
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class LimitedRequest(Request):
    """A request whose body ends with TooLarge beyond `limit` bytes (0: the view has its own limit), of strict JSON."""

    limit = 0
    _taken = 0
    _document: Any = None

    async def _limited(self) -> Message:
        message = await self._unlimited()
        self._taken += len(message.get("body", b""))
        if self.limit and self._taken > self.limit:
            raise TooLarge(f"body: more than {self.limit} bytes, expected at most that")
        return message

    def restrict(self, limit: int) -> None:
        self.limit = limit
        self._unlimited, self._receive = self._receive, self._limited
        if limit and int(self.headers.get("content-length") or 0) > limit:
            raise TooLarge(f"body: {self.headers['content-length']} bytes, expected at most {limit}")

    async def parse(self) -> None:
        """Read and parse the body now: the framework would hide our refusals behind its own."""
        body = await self.body()
        try:
            self._document = pydantic_core.from_json(body, allow_inf_nan=False) if body else None
        except ValueError as error:
            raise Invalid(f"body: not JSON ({error}), expected a JSON document", "body") from error

    async def json(self) -> Any:
        return self._document


class AdmittedRoute(APIRoute):
    """A route of the matrix: admits the caller first, then reads and answers."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()
        (method,) = self.methods or set()
        access = MATRIX[method, self.path]
        own_limit = (method, self.path) in OWN_LIMIT
        batch = self.path == f"{API}/nodes/self/reports"

        async def admitted(request: Request) -> Response:
            limited = LimitedRequest(request.scope, request.receive)
            settings = controller_of(limited).settings
            kib = 0 if own_limit else settings.batch_kib if batch else settings.body_kib
            principal = limited.scope["state"]["principal"] = await admit(limited, access)
            if method == "GET":
                return await handler(limited)
            limited.restrict(kib * 1024)
            if self.body_field is not None:
                await limited.parse()
            response = await handler(limited)
            who = principal.author if principal is not None else "anyone"
            path = request.scope["raw_path"].decode("ascii", "replace")
            log.info("done method=%s path=%s by=%s status=%d", method, path, who, response.status_code)
            return response

        return admitted


def controller_of(request: Request) -> Controller:
    return cast(Controller, request.app.state.controller)


async def admit(request: Request, access: Access) -> Principal | None:
    """The caller, None where anyone may call; raises Unauthenticated or Forbidden."""
    if access.anyone:
        return None
    principal = await authenticate(request)
    if not access.admits(principal):
        raise Forbidden(
            f"{request.method} {request.url.path}: not allowed for {principal.kind} {principal.name}, {principal.role}",
            hint="the role of a user is set by an admin" if principal.kind == "user" else None,
        )
    if principal.kind == "node":
        controller = controller_of(request)
        if controller.sightings.saw(principal.id):
            await run_in_threadpool(standings.vm_spoke, controller, principal.id)
    return principal


async def authenticate(request: Request) -> Principal:
    """The one principal of a request: of its bearer token, else of its connection's certificate."""
    principals = controller_of(request).principals
    header = request.headers.get("authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("authorization: another scheme, expected Bearer and a token")
        token = token.strip()
        known = principals.known(token_hash(token))
        return known if known is not None else await run_in_threadpool(principals.by_token, token)
    fingerprint = peer_fingerprint(request)
    if fingerprint is None:
        raise Unauthenticated("credentials: none, expected a bearer token or a node's certificate")
    known = principals.known(fingerprint)
    return known if known is not None else await run_in_threadpool(principals.by_certificate, fingerprint)


def peer_fingerprint(request: Request) -> str | None:
    certificate = request.scope.get("extensions", {}).get("tls", {}).get("client_cert_der")
    return hashlib.sha256(certificate).hexdigest() if certificate else None


async def _controller(request: Request) -> Controller:
    return controller_of(request)


async def _principal(request: Request) -> Principal:
    return cast(Principal, request.scope["state"]["principal"])


Here = Annotated[Controller, Depends(_controller)]
"""The controller, in a view."""
Caller = Annotated[Principal, Depends(_principal)]
"""The principal who calls, in a view."""


def new_router(prefix: str = API) -> APIRouter:
    return APIRouter(prefix=prefix, route_class=AdmittedRoute)


__all__ = ["AdmittedRoute", "Caller", "Here", "admit", "authenticate", "new_router"]
