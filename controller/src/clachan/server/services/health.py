"""Whether the controller can do its work."""

import logging
from importlib.metadata import version

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from clachan.contract.api import Health
from clachan.server.services.controller import Controller

log = logging.getLogger(__name__)
VERSION = version("clachan")


def check(controller: Controller) -> Health:
    """Anyone may ask: it says what is wrong, not why."""
    checks = {"database": "ok"}
    try:
        with controller.read() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        log.error("database check failed error=%s", type(error).__name__)
        checks["database"] = "failing"
    failing = any(result != "ok" for result in checks.values())
    return Health(status="failing" if failing else "ok", version=VERSION, checks=checks)
