"""Limits over all processes: the rates of calls to providers, and the leases on images being fetched."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pace",
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("rate", sa.String(length=48), nullable=False),
        sa.Column("full_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "rate"),
    )
    op.add_column("images", sa.Column("lease_owner", sa.String(length=64), nullable=True))
