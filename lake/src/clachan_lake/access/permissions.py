"""What each route of the service needs, in one place. A route that is not here is not served (`guarding`).

`OPEN` needs no token. A scope (`READ`, `WRITE`, ...): a token with it, or with one that contains it. `Ingest`: the
scope for the policy in the path. `View`: `read`, or the scope for the one data set that the query names.
"""

from dataclasses import dataclass
from urllib.parse import parse_qs

from clachan_lake.access.scopes import ADMIN, COMPUTE, INGEST, KINDS, READ, VIEW, WORK, WRITE

OPEN = "open"


@dataclass(frozen=True)
class Ingest:
    """The policy is the path's part `{policy}`."""


@dataclass(frozen=True)
class View:
    """`kind` is that of all data sets of the route; None: the query's `kind`."""

    kind: str | None


Need = str | Ingest | View
INGESTION = ("/ingest/{policy}", "/portal_ingestion_policies/{policy}/ingest")
STATIC = "/static/"
STREAM, ARRAY, EITHER = View("stream"), View("array"), View(None)

MATRIX: dict[tuple[str, str], Need] = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/login"): OPEN,
    ("POST", "/login"): OPEN,
    ("POST", "/logout"): OPEN,
    ("GET", "/static/{name}"): OPEN,
    **{("POST", path): Ingest() for path in INGESTION},
    ("GET", "/streams"): READ,
    ("GET", "/streams/meta"): STREAM,
    ("PUT", "/streams/meta"): WRITE,
    ("DELETE", "/streams/meta"): WRITE,
    ("GET", "/streams/data"): STREAM,
    ("GET", "/streams/sha256"): READ,
    ("GET", "/streams/chunks"): READ,
    ("POST", "/streams/truncate"): WRITE,
    ("GET", "/arrays"): READ,
    ("GET", "/arrays/meta"): ARRAY,
    ("PUT", "/arrays/meta"): WRITE,
    ("DELETE", "/arrays/meta"): WRITE,
    ("GET", "/arrays/data"): ARRAY,
    ("GET", "/arrays/files"): ARRAY,
    ("POST", "/arrays/data"): WRITE,
    ("GET", "/arrays/history"): READ,
    ("GET", "/policies"): READ,
    ("GET", "/policies/meta"): READ,
    ("GET", "/policies/place"): READ,
    ("PUT", "/policies/meta"): ADMIN,
    ("DELETE", "/policies/meta"): ADMIN,
    ("GET", "/transformations"): READ,
    ("GET", "/transformations/meta"): READ,
    ("GET", "/transformations/positions"): READ,
    # a transformation may carry code, which then runs in the worker
    ("PUT", "/transformations/meta"): ADMIN,
    ("DELETE", "/transformations/meta"): ADMIN,
    ("POST", "/transformations/action"): WRITE,
    ("GET", "/tokens"): ADMIN,
    ("POST", "/tokens"): ADMIN,
    ("DELETE", "/tokens/meta"): ADMIN,
    ("GET", "/dead"): READ,
    ("GET", "/dead/meta"): READ,
    ("GET", "/dead/data"): READ,
    ("POST", "/dead/replay"): WRITE,
    ("DELETE", "/dead/meta"): WRITE,
    ("GET", "/jobs"): COMPUTE,
    ("POST", "/jobs"): COMPUTE,
    ("GET", "/jobs/meta"): COMPUTE,
    ("DELETE", "/jobs/meta"): COMPUTE,
    ("GET", "/jobs/result"): COMPUTE,
    ("GET", "/jobs/log"): COMPUTE,
    ("GET", "/jobs/workers"): COMPUTE,
    ("POST", "/jobs/cancel"): COMPUTE,
    ("PUT", "/jobs/part"): COMPUTE,
    ("DELETE", "/jobs/part"): COMPUTE,
    ("GET", "/jobs/part"): WORK,
    ("POST", "/jobs/take"): WORK,
    ("GET", "/jobs/call"): WORK,
    ("POST", "/jobs/beat"): WORK,
    ("POST", "/jobs/log"): WORK,
    ("POST", "/jobs/finish"): WORK,
    ("POST", "/jobs/release"): WORK,
    ("GET", "/catalogue"): READ,
    ("GET", "/catalogue/meta"): EITHER,
    ("GET", "/catalogue.jsonld"): READ,
    ("GET", "/plot"): ARRAY,
    ("GET", "/spectrogram"): ARRAY,
    ("GET", "/"): READ,
    ("GET", "/page"): EITHER,
    ("GET", "/gadget"): EITHER,
}
PAGES = frozenset({"/", "/page"})
"""A browser that has no token is led from there to the login."""

_METHODS = {path: {method for method, other in MATRIX if other == path} for _, path in MATRIX}


def needed(method: str, path: str) -> tuple[Need | None, frozenset[str], str]:
    """What a request needs, the methods that its path has, and the part of the path that is a name. No methods: no such
    path; no need: not this method."""
    template, part = path, ""
    if path not in _METHODS:
        template, part = _template(path)
    methods = frozenset(_METHODS.get(template, ()))
    return MATRIX.get(("GET" if method == "HEAD" else method, template)), methods, part


def scope_of(need: Need, part: str, query: bytes) -> str | None:
    """The scope that a request needs; None when it cannot be said, as when the query names two data sets."""
    if isinstance(need, Ingest):
        return f"{INGEST}:{part}"
    if isinstance(need, str):
        return need
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    name, kind = given.get("name", []), [need.kind] if need.kind else given.get("kind", [])
    if len(name) != 1 or len(kind) != 1 or kind[0] not in KINDS:
        return None
    return f"{VIEW}:{kind[0]}/{name[0]}"


def _template(path: str) -> tuple[str, str]:
    if path.startswith(STATIC):
        return f"{STATIC}{{name}}", path.removeprefix(STATIC)
    for template in INGESTION:
        before, after = template.split("{policy}")
        part = path[len(before) : len(path) - len(after)]
        if path == f"{before}{part}{after}" and part and "/" not in part:
            return template, part
    return path, ""
