"""A lab's server: where it is, with which token, and its requests."""

import os
import ssl
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from clachan.cli.errors import CommandError

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter

    from clachan.client import Client

SOFTWARE = "clachan.platform.lab"
SECONDS = 60
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


class RefusedError(CommandError):
    """The lab answered, and not with success."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


@dataclass(frozen=True)
class Lab:
    """`url` is what it published, the address of its page, `certificate` that of an https one (PEM)."""

    path: str
    url: str
    token: str = field(repr=False)
    certificate: str = field(default="", repr=False)

    @property
    def base(self) -> str:
        return self.url.removesuffix("/lab")

    @property
    def link(self) -> str:
        """Logs whoever opens it in."""
        return f"{self.url}?token={quote(self.token, safe='')}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}

    def context(self) -> ssl.SSLContext:
        """That trusts its certificate."""
        return ssl.create_default_context(cadata=self.certificate or None)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request; raises CommandError when the lab refuses it or does not answer."""
        import requests

        with requests.Session() as session:
            session.trust_env = False
            session.mount("https://", _trusting(self.context()))
            try:
                answer = session.request(
                    method, self.base + path, json=body, headers=self.headers, timeout=SECONDS, allow_redirects=False
                )
            except requests.RequestException as error:
                raise CommandError(f"lab {self.path}: {error}, expected an answer from {self.base}") from error
        if answer.ok and not answer.is_redirect:
            return answer.json() if answer.content else None
        message = f"lab {self.path}: {method} {path}: status {answer.status_code}, expected success"
        raise RefusedError(message, answer.status_code)


def _trusting(context: ssl.SSLContext) -> "HTTPAdapter":
    from requests.adapters import HTTPAdapter

    class Trusting(HTTPAdapter):
        def init_poolmanager(self, *given: Any, **more: Any) -> None:
            super().init_poolmanager(*given, ssl_context=context, **more)

    return Trusting()


def find(path: str | None) -> Lab:
    """The lab of that path, or the only one; asking for its token is an event."""
    from clachan.cli.connection import connect

    with connect() as client:
        wanted = path or only(client)
        found = client.instance(wanted, reveal=True).published
    for key in ("url", "token"):
        if not isinstance(found.get(key), str):
            raise CommandError(f"instance {wanted}: has not published {key}, expected a lab that is started")
    return Lab(wanted, str(found["url"]), str(found["token"]), str(found.get("certificate") or ""))


def only(client: "Client") -> str:
    """The path of the one lab that the caller sees; raises CommandError for none and for several."""
    found = [each.path for each in client.instances(software=SOFTWARE)]
    if not found:
        raise CommandError(f"lab: none, expected one, as by: clachan request home.lab {SOFTWARE}")
    if len(found) > 1:
        raise CommandError(f"lab: {', '.join(sorted(found))}, expected the path of one of them")
    return found[0]


def open_in_browser(lab: Lab) -> bool:
    """Whether there was a browser. It is given a file that only this user can read: an address with a token would
    stand in the list of processes."""
    if sys.platform == "linux" and not any(os.environ.get(name) for name in DISPLAYS):
        return False
    import webbrowser

    from clachan.client.home import home

    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    return browser.open(_page(home() / "lab.html", lab).as_uri())


def _page(file: Path, lab: Lab) -> Path:
    link = escape(lab.link, quote=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(
            f'<!doctype html><meta charset="utf-8"><title>{escape(lab.path)}</title>'
            f'<meta http-equiv="refresh" content="0; url={link}"><a href="{link}">{escape(lab.path)}</a>\n'
        )
    return file
