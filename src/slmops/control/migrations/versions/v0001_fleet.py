"""The first schema: devices, credentials, rollouts, and histories that only grow."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ACTIVE = "state IN ('running', 'paused')"
_APPEND_ONLY = ("reports", "installations", "evaluations", "audit", "assignments")


def upgrade() -> None:
    """Make all tables."""
    _credentials()
    _rollouts()
    _histories()
    if op.get_bind().dialect.name == "sqlite":
        _refuse_changes_to_histories()


def _credentials() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("public_key", sa.String(64), nullable=False),
        sa.Column("enrolled_at", sa.Float, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.Column("counter", sa.BigInteger, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("telemetry", sa.Text, nullable=False),
        sa.Column("retired_at", sa.Float),
    )
    op.create_table(
        "tokens",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("used_by", sa.String(64)),
        sa.Column("used_at", sa.Float),
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("ix_sessions_device", "sessions", ["device"])


def _rollouts() -> None:
    op.create_table(
        "releases",
        sa.Column("label", sa.String(140), primary_key=True),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("first_seen_at", sa.Float, nullable=False),
    )
    op.create_table(
        "rollouts",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("product", sa.String(64), nullable=False),
        sa.Column("release", sa.String(140), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index(
        "one_active_rollout_per_product",
        "rollouts",
        ["product"],
        unique=True,
        sqlite_where=sa.text(_ACTIVE),
        postgresql_where=sa.text(_ACTIVE),
    )
    op.create_table(
        "members",
        sa.Column(
            "rollout", sa.String(32), sa.ForeignKey("rollouts.id"), primary_key=True
        ),
        sa.Column(
            "device", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True
        ),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("device_class", sa.String(64), nullable=False),
        sa.Column("offered_at", sa.Float),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("paired_loss", sa.Float),
        sa.Column("live", sa.Text),
        sa.Column("before", sa.Text),
    )
    op.create_table(
        "left_out",
        sa.Column(
            "rollout", sa.String(32), sa.ForeignKey("rollouts.id"), primary_key=True
        ),
        sa.Column(
            "device", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True
        ),
        sa.Column("reason", sa.Text, nullable=False),
    )


def _histories() -> None:
    op.create_table(
        "assignments",
        sa.Column(
            "device", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True
        ),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column(
            "rollout", sa.String(32), sa.ForeignKey("rollouts.id"), nullable=False
        ),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "installations",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), nullable=False),
        sa.Column("assignment", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("received_at", sa.Float, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index(
        "installations_by_device", "installations", ["device", "assignment"]
    )
    op.create_table(
        "reports",
        sa.Column(
            "device", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True
        ),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("received_at", sa.Float, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "evaluations",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column(
            "rollout", sa.String(32), sa.ForeignKey("rollouts.id"), nullable=False
        ),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("gate", sa.String(32), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_evaluations_rollout", "evaluations", ["rollout"])
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(80), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(140), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )


def _refuse_changes_to_histories() -> None:
    for table in _APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
