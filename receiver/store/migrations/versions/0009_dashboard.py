"""Tables for the dashboard: hourly sums, an index for every filter of the job list, and spent tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rollups",
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("provider", sa.String(length=32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "provider"),
    )
    op.create_table(
        "spent_tokens",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("jobs_listed", "jobs", ["state", "provider", "id"])
    op.drop_index("jobs_state", "jobs")
