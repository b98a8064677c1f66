"""Dead links are renewed by a status call; lost images are found by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("images", sa.Column("renewals", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("images", sa.Column("renewed_at", sa.BigInteger()))
    lost = sa.text("state = 'lost'")
    op.create_index("images_lost", "images", ["kept_at"], sqlite_where=lost, postgresql_where=lost)
