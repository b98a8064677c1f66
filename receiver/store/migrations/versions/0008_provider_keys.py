"""The time when a process that submits last had a provider's key: the public side has none, and must know."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("providers", sa.Column("key_at", sa.BigInteger(), nullable=True))
