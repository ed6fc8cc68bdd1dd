"""The pages' routes. `install` adds them, the plots and the catalogue to the service's application.

A data set's page is found by kind and name in the query. The login puts the token into a cookie that scripts cannot
read and that other sites' pages cannot make a browser send; it serves reading alone.
"""

import json
import re
from collections.abc import Sequence
from itertools import islice
from shlex import quote
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from clachan_lake.access.credentials import COOKIE
from clachan_lake.access.guarding import Identify
from clachan_lake.catalogue import dcat
from clachan_lake.catalogue import routes as catalogue
from clachan_lake.catalogue.routes import described
from clachan_lake.catalogue.search import CursorError, search
from clachan_lake.interface import Array
from clachan_lake.local import LocalLake
from clachan_lake.pages import assets, showing
from clachan_lake.pages.shield import Shield
from clachan_lake.plots import routes as plots
from clachan_lake.plots import series, spectrogram
from clachan_lake.refusal import RefusedError

COOKIE_TEXT = re.compile(r"[!#-+\--:<-\[\]-~]{1,512}")
"""What a cookie's value may be (RFC 6265)."""
FORM_BYTES = 8192
ITEMS = 50
OTHERS = 100
SHOWN = frozenset(
    {
        "title",
        "description",
        "tags",
        "owner",
        "units",
        "license",
        "rate",
        "source",
        "source_kind",
        "sources",
        "transformation",
    }
)
"""Attributes that have a place of their own on a data set's page."""
ROUNDS = 10
"""A search that finds little goes on for so many times the catalogue's own limit before it shows what it has."""
Text = Annotated[str, Query(max_length=1200)]


def install(
    app: FastAPI,
    lake: LocalLake,
    *,
    identify: Identify,
    ancestors: Sequence[str],
) -> None:
    """`ancestors` are who may frame a gadget: sources of CSP's frame-ancestors.
    Called after all that answers requests has been added: what it tells browsers must stand on every answer."""
    templates = Templates()
    for made in (catalogue.routes(lake), plots.routes(lake), _pages(lake, templates)):
        app.include_router(made)
    app.include_router(_open(templates, identify))
    app.add_middleware(Shield, ancestors=ancestors, render=templates.refusal)


class Templates:
    def __init__(self) -> None:
        self._environment = Environment(
            loader=PackageLoader(__package__),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for name in ("size", "moment", "span", "shape", "dtype", "as_json"):
            self._environment.filters[name] = getattr(showing, name)
        self._environment.globals["link"] = link

    def page(self, template: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._environment.get_template(template).render(values))

    def refusal(self, status: int, body: bytes) -> bytes:
        try:
            error = json.loads(body)["error"]
            message, hint = str(error["message"]), error.get("hint") or ""
        except (ValueError, KeyError, TypeError):
            message, hint = "the request was refused", ""
        return self._environment.get_template("refused.html").render(status=status, message=message, hint=hint).encode()


def link(path: str, **query: Any) -> str:
    """A path of the service with its query; what is empty is left out."""
    given = {key: value for key, value in query.items() if value not in ("", None)}
    return f"{path}?{urlencode(given)}" if given else path


def _pages(lake: LocalLake, templates: Templates) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def home(query: Text = "", kind: Text = "", tag: Text = "", cursor: Text = "") -> Response:
        with lake.session() as session:
            items, following = _found(session, query, kind, tag, cursor)
        return templates.page(
            "catalogue.html", items=items, following=following, query=query, kind=kind, tag=tag, cursor=cursor
        )

    @router.get("/page")
    def page(request: Request, kind: str, name: str) -> Response:
        with lake.session() as session:
            known = _known(session, kind, name)
        return templates.page("page.html", base=str(request.base_url), python=repr, shell=quote, **known)

    @router.get("/gadget")
    def gadget(request: Request, kind: str, name: str) -> Response:
        with lake.session() as session:
            known = _known(session, kind, name)
        return templates.page("gadget.html", base=str(request.base_url), **known)

    return router


def _found(lake: LocalLake, query: str, kind: str, tag: str, cursor: str) -> tuple[list[dict[str, Any]], str | None]:
    items: list[dict[str, Any]] = []
    following: str | None = cursor
    try:
        for _ in range(ROUNDS):
            more, following = search(lake, query, kind, tag, limit=ITEMS - len(items), cursor=following or "")
            items += more
            if following is None or len(items) >= ITEMS:
                break
    except CursorError as error:
        raise RefusedError(400, str(error)) from None
    return items, following


def _known(lake: LocalLake, kind: str, name: str) -> dict[str, Any]:
    """What the templates of one data set are given."""
    found = described(lake, kind, name)
    array: Array | None = lake.arrays[name] if kind == "array" else None
    beginning = b"" if array is not None else lake.streams[name].read(found["start"], showing.PREVIEW_BYTES)
    return {
        "found": found,
        "columns": [] if array is None else series.names(array),
        "is_sound": array is not None and spectrogram.is_sound(array),
        "rate": None if array is None else series.rate(array),
        "others": dict(islice(((key, value) for key, value in found["attrs"].items() if key not in SHOWN), OTHERS)),
        "preview": showing.preview(beginning) if beginning else "",
        "license_link": found["license"] if dcat.IRI.fullmatch(found["license"]) else "",
    }


def _open(templates: Templates, identify: Identify) -> APIRouter:
    """What needs no token."""
    router = APIRouter(include_in_schema=False)
    files = assets.load()

    @router.get("/static/{name}")
    def static(name: str, request: Request) -> Response:
        asset = files.get(name)
        if asset is None:
            raise RefusedError(404, f"file {name!r:.80}: none of this name")
        headers = {"ETag": asset.etag, "Cache-Control": "no-cache"}
        if plots.unchanged(request, asset.etag):
            return Response(status_code=304, headers=headers)
        return Response(asset.data, headers=headers, media_type=asset.media_type)

    @router.get("/login")
    def login(following: Annotated[str, Query(alias="next", max_length=4000)] = "/") -> Response:
        return templates.page("login.html", following=_own(following), failed=False)

    @router.post("/login")
    async def enter(request: Request) -> Response:
        form = await _form(request)
        token, following = form.get("token", "").strip(), _own(form.get("next", "/"))
        if not _holds(identify, token):
            answer: Response = templates.page("login.html", following=following, failed=True)
            answer.status_code = 401
            return answer
        answer = RedirectResponse(following, 303)
        answer.set_cookie(
            COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/"
        )
        return answer

    @router.post("/logout")
    async def leave(request: Request) -> Response:
        _same_site(request)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    return router


def _holds(identify: Identify, token: str) -> bool:
    try:
        return COOKIE_TEXT.fullmatch(token) is not None and bool(identify(token))
    except RefusedError:
        return False


def _own(path: str) -> str:
    """A place of this service to go to; the beginning instead of any other."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"


def _same_site(request: Request) -> None:
    """Raises RefusedError for a form that another site's page has sent."""
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise RefusedError(403, "form: from another site, expected from the lake's own page")


async def _form(request: Request) -> dict[str, str]:
    _same_site(request)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES:
            raise RefusedError(413, f"form: over {FORM_BYTES} bytes, expected a token")
    fields = parse_qs(body.decode("latin-1"), max_num_fields=8)
    return {key: values[0] for key, values in fields.items()}
