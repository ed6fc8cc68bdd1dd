"""Make a controller's home (`init`) and serve it (`serve`)."""

import contextlib
import fcntl
import gc
import json
import logging
import resource
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select

from clachan.contract.api import TokenDeclaration
from clachan.server import ca, clock
from clachan.server.db import migrate
from clachan.server.db.models import Account, Tenant, User
from clachan.server.services import accounts, placing, software
from clachan.server.services.controller import Change, Controller, new_platform
from clachan.server.services.refusals import Unavailable
from clachan.server.settings import Settings, load

if TYPE_CHECKING:
    from clachan.server.protocol import Server

log = logging.getLogger(__name__)
HOME_NAME = "home"
OPEN_FILES = 65536
OPERATOR = "operator"


def prepare(home: Path) -> Controller:
    """The controller of a home: folder, CA, server certificate, database at the newest schema."""
    settings = load(home)
    folder = home / "controller"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    controller = Controller(home, settings, placing.place_waiting)
    if migrate.migrate(controller.database):
        log.info("database migrated to=%s", migrate.HEAD)
    with controller.database.write() as session:
        new_platform(session, secrets.token_bytes)
    controller.authority.server_certificate(settings.server_names, settings.server_certificate_days)
    return controller


def initialise(home: Path) -> bool:
    """Account and tenant `home`, user `operator` with HOME/credentials.json; says whether something was made."""
    controller = prepare(home)
    try:
        with controller.change() as change:
            made = _first_tenant(change)
            user = change.session.scalar(select(User).where(User.name == OPERATOR))
            if user is None:
                made = True
                change.session.add(User(name=OPERATOR, role="admin", reveal=True, created=clock.now()))
                change.session.flush()
        return _credentials(controller) or made
    finally:
        controller.close()


def _first_tenant(change: Change) -> bool:
    if change.session.scalar(select(Tenant).where(Tenant.name == HOME_NAME)) is not None:
        return False
    account = change.session.scalar(select(Account).where(Account.name == HOME_NAME))
    account = account or Account(name=HOME_NAME, title="", created=change.now)
    change.session.add(Tenant(name=HOME_NAME, account=account, title="", created=change.now))
    return True


def _credentials(controller: Controller) -> bool:
    """Write the operator's credentials, unless there are some that still hold."""
    path = controller.home.absolute() / "credentials.json"
    settings = controller.settings
    # a wildcard is where the server listens, nobody's address
    names = [name for name in settings.names if name not in {"0.0.0.0", "::"}]  # noqa: S104
    host = settings.host if settings.host in names else names[0]
    url = f"https://[{host}]:{settings.port}" if ":" in host else f"https://{host}:{settings.port}"
    known = {"url": url, "ca_file": str(controller.folder.absolute() / "ca" / "ca.crt")}
    kept = _kept(controller, path)
    if kept is not None and {**kept, **known} == kept:
        return False
    token = kept["token"] if kept is not None else None
    if token is None:
        with controller.change() as change:
            _, token = accounts.new_token(change, TokenDeclaration(user=OPERATOR, title="credentials.json"))
    ca.write_file(path, json.dumps({**known, "token": token}, indent=2).encode() + b"\n", 0o600)
    return True


def _kept(controller: Controller, path: Path) -> dict[str, str] | None:
    """The credentials of the file when their token is valid."""
    try:
        kept: dict[str, str] = json.loads(path.read_bytes())
        controller.principals.by_token(kept["token"])
    except Exception:  # missing, damaged or unknown: new ones are made
        return None
    return kept


def serve(home: Path) -> None:
    """Serve until SIGTERM or SIGINT; long polls end at once."""
    configure_logging(load(home))
    controller = prepare(home)
    try:
        with _alone(controller.folder):
            _open_files()
            server = build(controller)
            gc.freeze()
            gc.enable()
            server.run()
    finally:
        controller.close()


def _open_files() -> None:
    """As many as we may and need: two connections wait for each node, four are open for each stream."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, OPEN_FILES)), most))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process serves a home: what it keeps in memory would not hear of another's changes."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable(f"controller {folder}: is served by another process, expected none") from None
        yield


def build(controller: Controller) -> "Server":
    """The HTTPS server of a prepared controller, with its platform software registered; `run` serves."""
    import uvicorn

    from clachan.server.api.app import create_app
    from clachan.server.protocol import PeerCertificateProtocol, Server

    software.register_platform(controller)
    folder, settings = controller.folder / "ca", controller.settings

    context = ca.server_context(folder / "server.crt", folder / "server.key", folder / "ca.crt")

    def renew() -> None:
        files = controller.authority.server_certificate(settings.server_names, settings.server_certificate_days)
        # connections that are made from now on get it
        context.load_cert_chain(*files)

    config = uvicorn.Config(
        create_app(controller),
        host=settings.host,
        port=settings.port,
        http=PeerCertificateProtocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=10,
        ssl_context_factory=lambda _config, _default: context,
    )
    return Server(config, controller.end_waits, renew)


class LineFormatter(logging.Formatter):
    """One line for each event, traces too: no text from outside begins a line of its own."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\r", "\\r").replace("\n", "\\n")


def configure_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
