"""What every answer tells a browser, and what people see instead of a refusal in JSON.

Pages run no script and no style but the service's own files, fetch from nowhere else, and send no referrer; only
gadgets may be framed, by whom the configuration says.
"""

from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGES = frozenset({"/", "/page", "/gadget", "/login", "/logout"})
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'; frame-ancestors "
)
BARE = "default-src 'none'; sandbox; frame-ancestors 'none'"
"""Of what is no page."""
REFUSAL_BYTES = 64 << 10
Render = Callable[[int, bytes], bytes]
"""Makes a page of a refusal's status and JSON."""


class Shield:
    """`ancestors` are the sources of CSP's frame-ancestors for gadgets."""

    def __init__(self, app: ASGIApp, ancestors: Sequence[str], render: Render) -> None:
        self._app = app
        self._ancestors = " ".join(ancestors) or "'none'"
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(self, scope, send)
        await self._app(scope, receive, answer.send)

    def policy(self, path: str) -> str:
        if path not in PAGES:
            return BARE
        return POLICY + (self._ancestors if path == "/gadget" else "'none'")

    def page(self, status: int, body: bytes) -> bytes:
        return self._render(status, body)


class _Answer:
    """One answer on its way; a page's refusal is held back until it is whole, and becomes a page."""

    def __init__(self, shield: Shield, scope: Scope, send: Send) -> None:
        self._shield = shield
        self._scope = scope
        self._send = send
        accepted = Headers(scope=scope).get("accept", "")
        self._by_people = scope["path"] in PAGES and "text/html" in accepted
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif self._start is None:
            await self._send(message)
        else:
            self._body = (self._body + message.get("body", b""))[:REFUSAL_BYTES]
            if not message.get("more_body"):
                await self._refuse(self._start)

    async def _begin(self, message: Message) -> None:
        path = self._scope["path"]
        headers = MutableHeaders(scope=message)
        headers["Content-Security-Policy"] = self._shield.policy(path)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        if path in PAGES:
            headers["Cache-Control"] = "no-store"
        if self._by_people and message["status"] >= 400 and headers.get("content-type") == "application/json":
            self._start = message
            return
        await self._send(message)

    async def _refuse(self, start: Message) -> None:
        headers = MutableHeaders(scope=start)
        body = self._shield.page(start["status"], self._body)
        headers["Content-Type"] = "text/html; charset=utf-8"
        # a challenge would make the browser ask for a user's name
        del headers["WWW-Authenticate"]
        headers["Content-Length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
