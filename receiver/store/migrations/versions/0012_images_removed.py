"""Kept images by age, and those that were removed and may still be there."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kept, removed = sa.text("state = 'kept'"), sa.text("state = 'removed' AND next_at IS NOT NULL")
    op.create_index("images_kept", "images", ["kept_at"], sqlite_where=kept, postgresql_where=kept)
    op.create_index("images_removed", "images", ["next_at"], sqlite_where=removed, postgresql_where=removed)
