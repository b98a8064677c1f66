"""Test events are marked: an event without a position is one that waits for it. PostgreSQL sorts ids by byte."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SORTED = (
    ("jobs", ("id", "resubmit_of")),
    ("evidence", ("job_id",)),
    ("images", ("job_id",)),
    ("events", ("id", "job_id")),
    ("endpoints", ("id",)),
    ("deliveries", ("id", "event_id", "job_id", "endpoint_id")),
    ("attempts", ("delivery_id",)),
    ("idempotency", ("job_id",)),
)
_BUSY = ("jobs", "evidence", "deliveries", "images")


def upgrade() -> None:
    op.add_column("events", sa.Column("example", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE events SET example = 1 WHERE position IS NULL")
    waiting = sa.text("position IS NULL AND example = 0")
    op.create_index("events_unnumbered", "events", ["id"], sqlite_where=waiting, postgresql_where=waiting)
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in _SORTED:
        changes = ", ".join(f'ALTER COLUMN {column} TYPE varchar(64) COLLATE "C"' for column in columns)
        op.execute(f"ALTER TABLE {table} {changes}")
    op.execute('ALTER TABLE deliveries ALTER COLUMN lane TYPE varchar(80) COLLATE "C"')
    for table in _BUSY:  # most of their updates move an index: dead rows are to be cleared away early
        op.execute(f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.02)")
