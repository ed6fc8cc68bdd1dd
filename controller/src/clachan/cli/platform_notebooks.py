"""`clachan demo wav`, `clachan demo usage`: a notebook of the lab, run from here, kept as a page and pictures.

What the notebook needs is ordered when it is not there: the lab, and for the usage records a forwarder that ships
them. What is there is left as it is.
"""

import ast
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clachan.cli import lab_server
from clachan.cli.errors import CommandError
from clachan.cli.lab_server import Lab

if TYPE_CHECKING:
    from clachan.client import Client
    from clachan.contract.api import InstanceView

LAKE, LAB, METER = "home.lake", "home.lab", "home.meter"
FORWARDER = "clachan.platform.forwarder"
INGEST = "ingest_token"
TENANT, USER = "home", "meter"
STARTED_SECONDS = 1200
"""The first lab of a machine fetches and makes its environments."""
RECORDS_SECONDS = 420
PAUSE_SECONDS, NOT_FOUND = 1.0, 404
Say = Callable[[str, str], None]


@dataclass(frozen=True)
class Demo:
    name: str
    notebook: str
    title: str


WAV = Demo("wav", "waveform", "A recording: waveform, spectrum, spectrogram")
USAGE = Demo("usage", "consumption", "What instances consume")


@dataclass
class Outcome:
    """Files in the home, and the notebook's own summary."""

    lab: str
    notebook: Path
    page: Path
    pictures: list[Path]
    results: dict[str, Any]
    changed: list[Path] = field(default_factory=list)
    """Of the page and the pictures, those that this run wrote."""


def run(home: Path, demo: Demo, parameters: dict[str, Any], say: Say) -> Outcome:
    """Raises CommandError that says what is missing, or which cell failed."""
    from clachan.client import Client

    folder = home / "demo"
    if not folder.is_dir():
        raise CommandError(f"folder {folder}: does not exist, expected 'clachan up' to have made it")
    with Client.from_credentials(home) as client:
        lab = _lab(client, say)
        if demo is USAGE:
            _usage(client, home, say)
    folder = folder / demo.name
    folder.mkdir(mode=0o755, exist_ok=True)
    return run_in(lab, demo, parameters, folder, say)


def run_in(lab: Lab, demo: Demo, parameters: dict[str, Any], folder: Path, say: Say) -> Outcome:
    """Of a lab that is there; what it gives goes into `folder`."""
    from clachan.cli import lab_notebook, lab_page

    book = _notebook(lab, demo.notebook)
    lab_notebook.set_parameters(book, [f"{name}={json.dumps(value)}" for name, value in parameters.items()])
    written = folder / f"{demo.notebook}.ipynb"
    lab_notebook.run(book, lab, "science", written, say)
    files = {f"{demo.name}.html": lab_page.page(book, demo.title).encode(), **lab_page.pictures(book)}
    changed = [path for path in (folder / name for name in files) if _put(path, files[path.name])]
    shown = [folder / name for name in files]
    return Outcome(lab.path, written, shown[0], shown[1:], _results(lab_notebook.last_result(book)), changed)


def _notebook(lab: Lab, name: str) -> dict[str, Any]:
    """The lab's own example, so that it is of the same version."""
    try:
        book: dict[str, Any] = lab.ask("GET", f"/api/contents/examples/{name}.ipynb")["content"]
    except lab_server.RefusedError as error:
        if error.http_status != NOT_FOUND:
            raise
        raise CommandError(
            f"lab {lab.path}: no examples/{name}.ipynb, expected a lab of this version: "
            f"clachan request {lab.path} {lab_server.SOFTWARE} makes it one"
        ) from error
    return book


def _results(text: str) -> dict[str, Any]:
    """What the notebook ends with is a dict of numbers and texts."""
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        found = None
    return found if isinstance(found, dict) else {"last": text}


def _put(path: Path, content: bytes) -> bool:
    """Whether the file was another before; written in one step."""
    if path.is_file() and path.read_bytes() == content:
        return False
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(path)
    return True


# -- what it needs


def _lab(client: "Client", say: Say) -> Lab:
    lake = _found(client, LAKE)
    if lake is None or lake.node is None:
        raise CommandError(f"instance {LAKE}: not there, expected 'clachan up' to have made it")
    if _found(client, LAB) is None:
        say("ordering", LAB)
        parameters = {
            "lab_lake_url": _of_lake("url"),
            "lab_lake_token": _of_lake("token"),
            "lab_lake_ca": _of_lake("certificate"),
        }
        _order(client, lake.node, LAB, lab_server.SOFTWARE, parameters)
    _wait(client, LAB, say)
    return lab_server.find(LAB)


def _usage(client: "Client", home: Path, say: Say) -> None:
    """Until the lake has usage records: those of the tenant, which a forwarder ships with a token of its own."""
    from clachan.client.home import load_credentials
    from clachan.contract.api import TokenDeclaration, UserDeclaration

    lake = client.instance(LAKE, reveal=True)
    meters = [one.path for one in client.instances(software=FORWARDER) if "forwarder_usage_url" in one.parameters]
    if not meters:
        known = load_credentials(home)
        client.create_user(UserDeclaration(name=USER, role="member", tenants=[TENANT]))
        for token in client.tokens():
            if token.user == USER:  # of a run that was killed before it had ordered the forwarder
                client.delete_token(token.id)
        made = client.create_token(TokenDeclaration(user=USER, title="ships usage records to the lake"))
        parameters: dict[str, Any] = {
            "forwarder_usage_url": known.url,
            "forwarder_usage_token": made.token,
            "forwarder_url": _of_lake("url"),
            # one that may do less, which a lake of an older version does not have
            "forwarder_token": _of_lake(INGEST if INGEST in lake.published else "token"),
            "forwarder_ca": _of_lake("certificate"),
        }
        if known.ca_file is not None:
            parameters["forwarder_usage_ca"] = known.ca_file.read_text()
        say("ordering", METER)
        _order(client, str(lake.node), METER, FORWARDER, parameters)
        meters = [METER]
    _wait(client, meters[0], say)
    _records(lake, home / "demo" / "lake.pem", say)


def _of_lake(key: str) -> Any:
    return {"from": LAKE, "key": key}


def _found(client: "Client", path: str) -> "InstanceView | None":
    from clachan.cli.declaration import current_instance

    return current_instance(client, path)


def _order(client: "Client", node: str, path: str, software: str, parameters: dict[str, Any]) -> None:
    from clachan.contract.api import Declaration, SupplyDeclaration

    client.supply(node, software, SupplyDeclaration())
    client.request(path, Declaration(software=software, parameters=parameters))


def _wait(client: "Client", path: str, say: Say) -> None:
    """Until it is started; raises CommandError with the reason when it cannot be, or the time is over."""
    from clachan.cli.waiting import why
    from clachan.client import UnreachableError
    from clachan.client.waiting import verdict, watch

    last = "nothing heard of it"
    for seen in watch(client, path, STARTED_SECONDS):
        if seen is None or (not isinstance(seen, UnreachableError) and seen.wanted != "started"):
            raise CommandError(f"instance {path}: {seen.wanted if seen else 'absent'}, expected it to be started")
        if isinstance(seen, UnreachableError):
            last = str(seen)
        else:
            last = "; ".join(filter(None, (seen.observed.state, why(seen), _supplied(client, seen))))
            found = verdict(seen)
            if found == "done":
                return
            if found == "failed":
                raise CommandError(f"instance {path}: {last}, expected it to be started")
        say(f"{path} not started yet", last)
    raise CommandError(f"instance {path}: {last} after {STARTED_SECONDS} s, expected it to be started")


def _supplied(client: "Client", seen: "InstanceView") -> str:
    """Why its software is not there yet, which takes longest."""
    if seen.node is None:
        return ""
    supply = client.supply_view(seen.node, seen.software)
    return "" if supply.observed == "present" else f"its software is made: {supply.message or supply.observed}"


def _records(lake: "InstanceView", ca: Path, say: Say) -> None:
    """Until the first have come: the agent counts for a minute, the forwarder asks each minute. In the file `ca` is the
    certificate of a lake behind TLS."""
    import requests

    url, until = str(lake.published["url"]), time.monotonic() + RECORDS_SECONDS
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {lake.published['token']}"
        if certificate := lake.published.get("certificate"):
            _put(ca, str(certificate).encode())
            session.verify = str(ca)
        while time.monotonic() < until:
            try:
                answer = session.get(f"{url}/streams/meta", params={"name": "usage"}, timeout=30)
            except requests.RequestException as error:
                raise CommandError(f"lake {url}: {error}, expected an answer") from error
            if answer.ok and answer.json()["size"]:
                return
            if not answer.ok and answer.status_code != NOT_FOUND:
                raise CommandError(f"lake {url}: status {answer.status_code}, expected what is known of stream usage")
            say("waiting for the first usage records", "they come in windows of a minute")
            time.sleep(PAUSE_SECONDS)
    raise CommandError(f"lake {url}: no usage records within {RECORDS_SECONDS} s, expected some of {METER}")


# -- what is printed


def print_json(outcome: Outcome) -> None:
    print(json.dumps(asdict(outcome), indent=2, default=str))


def show(outcome: Outcome) -> None:
    from clachan.cli.output import clean, details

    details([(name.replace("_", " "), _shown(value)) for name, value in outcome.results.items()])
    print()
    for what, path in (
        *(("picture", path) for path in outcome.pictures),
        ("page", outcome.page),
        ("notebook", outcome.notebook),
    ):
        print(f"{what.ljust(9)} {clean(path)}{'' if path in outcome.changed or what == 'notebook' else ' (as it was)'}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
