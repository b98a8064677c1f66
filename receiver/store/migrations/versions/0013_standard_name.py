"""The column for when an endpoint's failure was reported gets its standard name."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE endpoints RENAME COLUMN told_failing_at TO failure_reported_at")
