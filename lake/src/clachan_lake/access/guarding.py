"""The guard: stands in front of all routes. What it does not know is not served, so no route can be forgotten.

A wrong, expired or revoked token is answered with 401, one without the scope with 403. Who passes stands in the ASGI
scope as `PRINCIPAL`.
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import quote

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from clachan_lake.access import credentials, permissions
from clachan_lake.access.credentials import Credentials
from clachan_lake.access.principal import Principal
from clachan_lake.access.scopes import READ, only_views
from clachan_lake.refusal import RefusedError, answer

PRINCIPAL = "clachan.principal"
CHALLENGE = {"WWW-Authenticate": 'Basic realm="clachan-lake", Bearer'}
Identify = Callable[[str], Principal]
"""The principal of a token's text; raises RefusedError (401)."""


class Guard:
    def __init__(self, app: ASGIApp, identify: Identify) -> None:
        self._app = app
        self._identify = identify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # there is nothing else to be served
            return
        try:
            self.admit(scope)
        except RefusedError as error:
            response = _login(scope) if error.status == 401 and _is_page(scope) else answer(error)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def admit(self, scope: MutableMapping[str, Any]) -> Principal | None:
        """Who makes the request, also put into the scope; None for an open route. Raises RefusedError."""
        method, path = scope["method"], scope["path"]
        need, methods, part = permissions.needed(method, path)
        if need == permissions.OPEN:
            return None
        principal = self._authenticate(credentials.find(method, scope["headers"], scope["query_string"]))
        if not methods:
            raise RefusedError(404, f"path: {path!r:.80}, expected one of the service's")
        if need is None:
            raise RefusedError(405, f"method: {method:.20}, expected {' or '.join(sorted(methods))}")
        wanted = permissions.scope_of(need, part, scope["query_string"]) or READ
        if not principal.may(wanted):
            raise RefusedError(403, f"token: without the scope {wanted!r:.200}, expected one that has it")
        scope[PRINCIPAL] = principal
        return principal

    def _authenticate(self, found: Credentials | None) -> Principal:
        if found is None:
            raise unknown()
        principal = self._identify(found.token)
        if found.in_url and not only_views(principal.scopes):
            raise RefusedError(
                401,
                "credentials: a token in the URL, expected one whose only scopes are view:…",
                hint="URLs are kept in logs and histories: send this token as Authorization: Bearer <token>",
                headers=CHALLENGE,
            )
        return principal


def principal_of(scope: Mapping[str, Any]) -> Principal:
    """Of a request that the guard let pass."""
    found: Principal = scope[PRINCIPAL]
    return found


def unknown() -> RefusedError:
    return RefusedError(
        401,
        "credentials: none or wrong, expected the lake's token",
        hint="Authorization: Bearer <token>, or HTTP basic with the token as the password",
        headers=CHALLENGE,
    )


def _is_page(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    if b"authorization" in headers or b"text/html" not in headers.get(b"accept", b""):
        return False
    return scope["method"] == "GET" and scope["path"] in permissions.PAGES


def _login(scope: Scope) -> RedirectResponse:
    wanted = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
    return RedirectResponse(f"/login?next={quote(wanted, safe='')}", 303)
