"""Bring a database to the models' schema. Migrations ship in the package: `migrations/versions`."""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError

from clachan.server.db.engine import Database

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0004"
"""The newest migration; known here so that an ordinary start need not load Alembic (a third of a second)."""


def configuration(connection: Connection | None = None) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def current(database: Database) -> str | None:
    """The migration that the database is at; None for an empty one."""
    try:
        with database.engine.connect() as connection:
            found = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return str(found) if found is not None else None
    except DatabaseError:
        return None


def migrate(database: Database) -> bool:
    """Upgrade to HEAD in one transaction; says whether there was something to do."""
    if current(database) == HEAD:
        return False
    from alembic import command

    with database.write() as session:
        command.upgrade(configuration(session.connection()), "head")
    return True
