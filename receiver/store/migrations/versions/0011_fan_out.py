"""Revisions of data kept in memory, and events whose deliveries are not all written yet."""

import sqlalchemy as sa
from alembic import op

from receiver.domain.ids import new_id

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "revisions",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    identifier = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
    op.create_table(
        "fan_outs",
        sa.Column("event_id", identifier, nullable=False),
        sa.Column("place", identifier, nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
    )
    if op.get_bind().execute(sa.text("SELECT count(*) FROM endpoints")).scalar():
        op.get_bind().execute(
            sa.text("INSERT INTO revisions (name, revision) VALUES ('subscriptions', :revision)"),
            {"revision": new_id("rev")},
        )
