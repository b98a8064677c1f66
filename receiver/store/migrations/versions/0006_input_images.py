"""Jobs know their input image: its file name, width, height and size."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("input_file_name", sa.Text()))
    op.add_column("jobs", sa.Column("input_width", sa.Integer()))
    op.add_column("jobs", sa.Column("input_height", sa.Integer()))
    op.add_column("jobs", sa.Column("input_bytes", sa.BigInteger()))
