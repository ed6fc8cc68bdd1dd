"""Nodes that are VMs of their tenant; who counted a usage record."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # added in place: a batch makes the table anew on SQLite, and dropping the old one would delete what refers to it
    vm = "vm_id VARCHAR(36) CONSTRAINT fk_node_vm_id_instance REFERENCES instance (id)"
    op.execute(f"ALTER TABLE node ADD COLUMN {vm}")
    op.add_column("node", sa.Column("generation", sa.String(length=255), nullable=True))
    op.create_index("ix_node_vm_id", "node", ["vm_id"], unique=True)
    with op.batch_alter_table("join_token", schema=None) as batch_op:
        batch_op.add_column(sa.Column("vm_id", sa.String(length=36), nullable=True))
        batch_op.add_column(sa.Column("generation", sa.String(length=255), nullable=True))
        name = batch_op.f("fk_join_token_vm_id_instance")
        batch_op.create_foreign_key(name, "instance", ["vm_id"], ["id"], ondelete="CASCADE")
        batch_op.create_index(batch_op.f("ix_join_token_vm_id"), ["vm_id"], unique=False)
    op.add_column("usage", sa.Column("billable", sa.Boolean(), nullable=False, server_default=sa.true()))
    usage = sa.table("usage", sa.column("billable", sa.Boolean()), sa.column("node"))
    owned = sa.text("node IN (SELECT name FROM node WHERE owner_id IS NOT NULL)")
    op.execute(usage.update().where(owned).values(billable=False))
