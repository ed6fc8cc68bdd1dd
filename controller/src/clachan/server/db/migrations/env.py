"""Alembic's entry: `db.migrate` gives the connection, in whose transaction everything happens."""

from alembic import context
from clachan.server.db.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
context.run_migrations()
