"""The database's tables, as the newest migration leaves them.

Documents are stored as canonical JSON text next to the columns that queries need.
Works on SQLite and PostgreSQL: no type here belongs to one of them.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

devices = sa.Table(
    "devices",
    metadata,
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

operators = sa.Table(
    "operators",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("added_at", sa.Float, nullable=False),
    sa.Column("removed_at", sa.Float),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("used_by", sa.String(64)),
    sa.Column("used_at", sa.Float),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column(
        "device", sa.String(64), sa.ForeignKey("devices.id"), nullable=False, index=True
    ),
    sa.Column("expires_at", sa.Float, nullable=False),
)

releases = sa.Table(
    "releases",
    metadata,
    sa.Column("label", sa.String(140), primary_key=True),
    sa.Column("digest", sa.String(71), nullable=False),
    sa.Column("first_seen_at", sa.Float, nullable=False),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
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
sa.Index(
    "one_active_rollout_per_product",
    rollouts.c.product,
    unique=True,
    sqlite_where=rollouts.c.state.in_(("draft", "running", "paused")),
    postgresql_where=rollouts.c.state.in_(("draft", "running", "paused")),
)

members = sa.Table(
    "members",
    metadata,
    sa.Column("rollout", sa.String(32), sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("device_class", sa.String(64), nullable=False),
    sa.Column("offered_at", sa.Float),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("paired_loss", sa.Float),
    sa.Column("live", sa.Text),
    sa.Column("before", sa.Text),
    sa.Column("site", sa.String(256), nullable=False, server_default=""),
    sa.Column("emulates", sa.String(256), nullable=False, server_default=""),
)

left_out = sa.Table(
    "left_out",
    metadata,
    sa.Column("rollout", sa.String(32), sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
)

assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rollout", sa.String(32), sa.ForeignKey("rollouts.id"), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

installations = sa.Table(
    "installations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("assignment", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Index("installations_by_device", "device", "assignment"),
)

reports = sa.Table(
    "reports",
    metadata,
    sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column(
        "rollout",
        sa.String(32),
        sa.ForeignKey("rollouts.id"),
        nullable=False,
        index=True,
    ),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("gate", sa.String(32), nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String(80), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(140), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)

APPEND_ONLY = ("reports", "installations", "evaluations", "audit", "assignments")
"""Tables whose rows are never changed or removed; triggers see to it.

A migration keeps its own list: what it did to databases out there stays done, whatever
is added here later. A test compares this one with the triggers of a new database.
"""
