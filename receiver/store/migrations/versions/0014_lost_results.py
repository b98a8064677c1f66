"""Jobs whose results were lost, by id: the list of them is no walk over all jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    lost, no_result = sa.text("state = 'lost'"), sa.text("state = 'failed' AND error_code = 'no_result_url'")
    op.create_index("images_lost_by_job", "images", ["job_id"], sqlite_where=lost, postgresql_where=lost)
    op.create_index("jobs_no_result", "jobs", ["id"], sqlite_where=no_result, postgresql_where=no_result)
