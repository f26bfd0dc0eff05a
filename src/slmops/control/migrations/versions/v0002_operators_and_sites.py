"""Operators with names; where a member stands; drafts count as active rollouts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_INDEX = "one_active_rollout_per_product"
_ACTIVE = "state IN ('draft', 'running', 'paused')"


def upgrade() -> None:
    """Add a table and two columns, and widen the index."""
    op.create_table(
        "operators",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("added_at", sa.Float, nullable=False),
        sa.Column("removed_at", sa.Float),
    )
    for name in ("site", "emulates"):
        column = sa.Column(name, sa.String(256), nullable=False, server_default="")
        op.add_column("members", column)
    op.drop_index(_INDEX, table_name="rollouts")
    op.create_index(
        _INDEX,
        "rollouts",
        ["product"],
        unique=True,
        sqlite_where=sa.text(_ACTIVE),
        postgresql_where=sa.text(_ACTIVE),
    )
