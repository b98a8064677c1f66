"""Columns get their standard names: a status call is a poll, the last thing that went wrong is the last error."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_RENAMED = (
    ("jobs", "look_at", "next_poll_at"),
    ("jobs", "looked_at", "polled_at"),
    ("jobs", "looks", "polls"),
    ("jobs", "trouble", "last_error"),
    ("images", "trouble", "last_error"),
)


def upgrade() -> None:
    op.drop_index("jobs_look", "jobs")
    for table, old, new in _RENAMED:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    open_polls = sa.text("next_poll_at IS NOT NULL")
    op.create_index(
        "jobs_poll", "jobs", ["provider", "next_poll_at"], sqlite_where=open_polls, postgresql_where=open_polls
    )
