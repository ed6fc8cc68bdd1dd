"""Where other nodes reach a node."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("node", "join_token"):
        op.add_column(table, sa.Column("links", sa.JSON(none_as_null=True), nullable=False, server_default="[]"))
