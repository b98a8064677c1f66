"""Evidence: a digest that reveals a replay at once, and unread evidence by job, so that no job waits for another's."""

import sqlalchemy as sa
from alembic import op

from receiver.domain.evidence import delivery_digest

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ROWS_AT_ONCE = 500


def upgrade() -> None:
    op.add_column("evidence", sa.Column("delivery_digest", sa.Text))
    _digest_what_is_there()
    given, unread = sa.text("delivery_digest IS NOT NULL"), sa.text("read_at IS NULL")
    op.create_index(
        "evidence_delivery", "evidence", ["delivery_digest", "id"], sqlite_where=given, postgresql_where=given
    )
    op.drop_index("evidence_unread", "evidence")
    columns = ["job_id", "id", "received_at"]
    op.create_index("evidence_unread", "evidence", columns, sqlite_where=unread, postgresql_where=unread)


def _digest_what_is_there() -> None:
    connection = op.get_bind()
    chosen = sa.text(
        "SELECT id, job_id, delivery_id, body FROM evidence WHERE id > :after AND delivery_id IS NOT NULL"
        " AND job_id IS NOT NULL AND verdict != 'refused' ORDER BY id LIMIT :most"
    )
    written = sa.text("UPDATE evidence SET delivery_digest = :digest WHERE id = :id")
    after = 0
    while rows := connection.execute(chosen, {"after": after, "most": _ROWS_AT_ONCE}).fetchall():
        digests = [{"id": row.id, "digest": delivery_digest(row.job_id, row.delivery_id, row.body)} for row in rows]
        connection.execute(written, digests)
        after = rows[-1].id
