"""
The tables: columns of entities, columns of the store's own, and indexes. `migrations/` builds exactly this.

Times are integer microseconds since the epoch (UTC); JSON is text. The same schema serves SQLite and PostgreSQL: no
type, default or statement here is one engine's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from receiver.domain.deliveries import Attempt, DeliveryView
from receiver.domain.endpoints import Endpoint
from receiver.domain.entity import EntityField, fields_of
from receiver.domain.events import Event
from receiver.domain.evidence import Evidence
from receiver.domain.jobs import Job, KeptImage
from receiver.store.codecs import leaves
from submitter.parsing import NO_RESULT

metadata = sa.MetaData()

_Moment = sa.BigInteger
_IDENTIFIER = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
"""The type of ids, which sort by the time they were made: byte by byte, whatever a database server's locale."""
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_WORD_LENGTH = 16
_COLUMN_TYPES: Mapping[type, type[Any]] = {
    str: sa.Text,
    Decimal: sa.Text,
    int: sa.Integer,
    bool: sa.Integer,
    float: sa.Float,
    datetime: sa.BigInteger,
    bytes: sa.LargeBinary,
}


def _columns_of(
    entity: type, *, key: Collection[str] = ("id",), numbered: bool = False, unset: Collection[str] = ()
) -> list[sa.Column[Any]]:
    """
    Return the columns of *entity*. *key* names the primary key; *numbered*: the database increments it.

    *unset* names columns that may still be NULL in a row, although an entity that is read always has them.
    """
    return [
        sa.Column(
            leaf.column,
            _column_type(leaf) if not (numbered and leaf.column in key) else _NUMBER,
            primary_key=leaf.column in key,
            autoincrement=True if numbered and leaf.column in key else "auto",
            nullable=leaf.column not in key and (leaf.optional or outer.optional or leaf.column in unset),
        )
        for outer in fields_of(entity)
        for leaf in leaves(outer)
    ]


def _column_type(leaf: EntityField) -> Any:
    if issubclass(leaf.kind, StrEnum):
        return sa.String(leaf.about.length or _WORD_LENGTH)
    if leaf.about.identifier:
        return _IDENTIFIER
    if leaf.about.length:
        return sa.String(leaf.about.length)
    return sa.BigInteger() if leaf.about.big else _COLUMN_TYPES.get(leaf.kind, sa.Text)()


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> sa.Index:
    """Return an index over the rows *where* a condition holds, on both engines."""
    condition = sa.text(where)
    return sa.Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


jobs = sa.Table(
    "jobs",
    metadata,
    *_columns_of(Job),
    sa.Column("lease_owner", sa.String(64)),
    sa.Column("lease_until", _Moment),
    _partial("jobs_remote", "provider", "remote_id", where="remote_id IS NOT NULL", unique=True),
    _partial("jobs_poll", "provider", "next_poll_at", where="next_poll_at IS NOT NULL"),
    _partial("jobs_queued", "provider", "retry_at", where="state = 'queued'"),
    _partial("jobs_sending", "lease_until", where="state = 'sending'"),
    sa.Index("jobs_finished", "provider", "finished_at"),
    sa.Index("jobs_listed", "state", "provider", "id"),
    _partial("jobs_no_result", "id", where=f"state = 'failed' AND error_code = '{NO_RESULT}'"),
)

evidence = sa.Table(
    "evidence",
    metadata,
    *_columns_of(Evidence, numbered=True),
    sa.Column("delivery_digest", sa.Text),
    sa.Index("evidence_job", "job_id", "id"),
    _partial("evidence_delivery", "delivery_digest", "id", where="delivery_digest IS NOT NULL"),
    _partial("evidence_unread", "job_id", "id", "received_at", where="read_at IS NULL"),
)

images = sa.Table(
    "images",
    metadata,
    *_columns_of(KeptImage, key=("job_id", "n")),
    sa.Column("next_at", _Moment),
    sa.Column("give_up_at", _Moment),
    sa.Column("lease_until", _Moment),
    sa.Column("lease_owner", sa.String(64)),
    sa.Column("kept_at", _Moment),
    _partial("images_lost", "kept_at", where="state = 'lost'"),
    _partial("images_lost_by_job", "job_id", where="state = 'lost'"),
    _partial("images_dying", "give_up_at", where="state = 'wanted'"),
    _partial("images_wanted", "next_at", where="state = 'wanted'"),
    _partial("images_kept", "kept_at", where="state = 'kept'"),
    _partial("images_removed", "next_at", where="state = 'removed' AND next_at IS NOT NULL"),
)

events = sa.Table(
    "events",
    metadata,
    *_columns_of(Event, unset=("position",)),
    sa.Column("example", sa.Integer, nullable=False, server_default="0"),
    sa.Index("events_position", "position", unique=True),
    sa.Index("events_job", "job_id"),
    _partial("events_unnumbered", "id", where="position IS NULL AND example = 0"),
)

endpoints = sa.Table(
    "endpoints",
    metadata,
    *_columns_of(Endpoint),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    *_columns_of(DeliveryView),
    sa.Column("lane", sa.String(80).with_variant(sa.String(80, collation="C"), "postgresql"), nullable=False),
    sa.Column("retry", sa.Integer, nullable=False),
    sa.Column("lease_owner", sa.String(64)),
    sa.Column("lease_until", _Moment),
    _partial("deliveries_due", "lane", "retry", "next_at", where="state = 'pending'"),
    sa.Index("deliveries_state", "state", "id"),
    sa.Index("deliveries_endpoint", "endpoint_id", "id"),
    sa.Index("deliveries_event", "event_id"),
    sa.Index("deliveries_job", "job_id"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("delivery_id", _IDENTIFIER, nullable=False),
    *_columns_of(Attempt),
    sa.Index("attempts_delivery", "delivery_id", "id"),
)

fan_outs = sa.Table(
    "fan_outs",
    metadata,
    sa.Column("event_id", _IDENTIFIER, primary_key=True),
    sa.Column("place", _IDENTIFIER, nullable=False),
)
"""Events whose deliveries are not all written yet: `place` is the last endpoint whose delivery is."""

revisions = sa.Table(
    "revisions",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("revision", sa.String(64), nullable=False),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("token_id", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("job_id", _IDENTIFIER, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Index("idempotency_age", "created_at"),
)

providers = sa.Table(
    "providers",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("paused_reason", sa.Text),
    sa.Column("paused_at", _Moment),
    sa.Column("probe_at", _Moment),
    sa.Column("probes", sa.Integer, nullable=False),
    sa.Column("degraded_at", _Moment),
    sa.Column("key_at", _Moment),
)

pace = sa.Table(
    "pace",
    metadata,
    sa.Column("name", sa.String(48), primary_key=True),
    sa.Column("rate", sa.String(48), primary_key=True),
    sa.Column("full_at", _Moment, nullable=False),
)

clock = sa.Table(
    "clock",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("seen_at", _Moment, nullable=False),
)
"""One row."""

rollups = sa.Table(
    "rollups",
    metadata,
    sa.Column("hour", _Moment, primary_key=True),
    sa.Column("provider", sa.String(32), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)

spent_tokens = sa.Table(
    "spent_tokens",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("until", _Moment, nullable=False),
)
