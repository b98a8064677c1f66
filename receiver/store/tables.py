"""
The tables. Moments are integer microseconds since the epoch (UTC); JSON is text. `migrations/` builds exactly this.

The same schema serves SQLite and PostgreSQL: no type, default or statement here is one engine's own.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

_Id = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
"""Ids sort by the time that they were made, byte by byte, whatever language a database server speaks."""
_Moment = sa.BigInteger

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("provider", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("metadata", sa.Text, nullable=False),
    sa.Column("notify_url", sa.Text),
    sa.Column("remote_id", sa.Text),
    sa.Column("remote_status", sa.Text),
    sa.Column("claimed_id", sa.Text),
    sa.Column("awaits_callback", sa.Integer, nullable=False),
    sa.Column("input_name", sa.Text, nullable=False),
    sa.Column("input_url", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("error_permanent", sa.Integer),
    sa.Column("cost_amount", sa.Text),
    sa.Column("cost_unit", sa.String(16)),
    sa.Column("settled_by", sa.String(16)),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("retry_at", _Moment),
    sa.Column("sent_at", _Moment),
    sa.Column("next_poll_at", _Moment),
    sa.Column("polled_at", _Moment),
    sa.Column("polls", sa.Integer, nullable=False),
    sa.Column("hinted_at", _Moment),
    sa.Column("deadline_at", _Moment),
    sa.Column("overdue_at", _Moment),
    sa.Column("late_at", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("finished_at", _Moment),
    sa.Column("last_error", sa.Text),
    sa.Column("resubmit_of", _Id),
    sa.Column("lease_owner", sa.String(64)),
    sa.Column("lease_until", _Moment),
    sa.Index(
        "jobs_remote",
        "provider",
        "remote_id",
        unique=True,
        sqlite_where=sa.text("remote_id IS NOT NULL"),
        postgresql_where=sa.text("remote_id IS NOT NULL"),
    ),
    sa.Index(
        "jobs_poll",
        "provider",
        "next_poll_at",
        sqlite_where=sa.text("next_poll_at IS NOT NULL"),
        postgresql_where=sa.text("next_poll_at IS NOT NULL"),
    ),
    sa.Index(
        "jobs_queued",
        "provider",
        "retry_at",
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    ),
    sa.Index(
        "jobs_sending",
        "lease_until",
        sqlite_where=sa.text("state = 'sending'"),
        postgresql_where=sa.text("state = 'sending'"),
    ),
    sa.Index("jobs_finished", "provider", "finished_at"),
    sa.Index("jobs_state", "state", "id"),
)

evidence = sa.Table(
    "evidence",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("job_id", _Id),
    sa.Column("provider", sa.String(32), nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("trust", sa.String(32)),
    sa.Column("received_at", _Moment, nullable=False),
    sa.Column("read_at", _Moment),
    sa.Column("asked_at", _Moment),
    sa.Column("status", sa.Integer),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("body_name", sa.Text),
    sa.Column("peer", sa.Text),
    sa.Column("delivery_id", sa.Text),
    sa.Column("note", sa.Text),
    sa.Index("evidence_job", "job_id", "id"),
    sa.Index(
        "evidence_unread",
        "id",
        sqlite_where=sa.text("read_at IS NULL"),
        postgresql_where=sa.text("read_at IS NULL"),
    ),
)

images = sa.Table(
    "images",
    metadata,
    sa.Column("job_id", _Id, primary_key=True),
    sa.Column("n", sa.Integer, primary_key=True),
    sa.Column("source_url", sa.Text),
    sa.Column("expires_at", _Moment),
    sa.Column("content_type", sa.Text),
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("sha256", sa.String(64)),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_at", _Moment),
    sa.Column("give_up_at", _Moment),
    sa.Column("lease_until", _Moment),
    sa.Column("last_error", sa.Text),
    sa.Column("kept_at", _Moment),
    sa.Index(
        "images_dying",
        "give_up_at",
        sqlite_where=sa.text("state = 'wanted'"),
        postgresql_where=sa.text("state = 'wanted'"),
    ),
    sa.Index(
        "images_wanted",
        "next_at",
        sqlite_where=sa.text("state = 'wanted'"),
        postgresql_where=sa.text("state = 'wanted'"),
    ),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("position", sa.BigInteger),
    sa.Column("type", sa.String(48), nullable=False),
    sa.Column("job_id", _Id),
    sa.Column("provider", sa.String(32)),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("example", sa.Integer, nullable=False, server_default="0"),
    sa.Index("events_position", "position", unique=True),
    sa.Index("events_job", "job_id"),
    sa.Index(
        "events_unnumbered",
        "id",
        sqlite_where=sa.text("position IS NULL AND example = 0"),
        postgresql_where=sa.text("position IS NULL AND example = 0"),
    ),
)

endpoints = sa.Table(
    "endpoints",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event_types", sa.Text, nullable=False),
    sa.Column("providers", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("enabled", sa.Integer, nullable=False),
    sa.Column("secrets", sa.Text, nullable=False),
    sa.Column("timeout_seconds", sa.Float, nullable=False),
    sa.Column("concurrency", sa.Integer, nullable=False),
    sa.Column("rate", sa.Text),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("failing_since", _Moment),
    sa.Column("told_failing_at", _Moment),
    sa.Column("disabled_reason", sa.Text),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("event_id", _Id, nullable=False),
    sa.Column("event_type", sa.String(48), nullable=False),
    sa.Column("job_id", _Id),
    sa.Column("endpoint_id", _Id),
    sa.Column("url", sa.Text),
    sa.Column("lane", sa.String(80).with_variant(sa.String(80, collation="C"), "postgresql"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("retry", sa.Integer, nullable=False),
    sa.Column("example", sa.Integer, nullable=False),
    sa.Column("next_at", _Moment),
    sa.Column("lease_owner", sa.String(64)),
    sa.Column("lease_until", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("finished_at", _Moment),
    sa.Column("last_status", sa.Integer),
    sa.Column("last_error", sa.Text),
    sa.Column("fault", sa.String(8)),
    sa.Index(
        "deliveries_due",
        "lane",
        "retry",
        "next_at",
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    ),
    sa.Index("deliveries_state", "state", "id"),
    sa.Index("deliveries_endpoint", "endpoint_id", "id"),
    sa.Index("deliveries_event", "event_id"),
    sa.Index("deliveries_job", "job_id"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("delivery_id", _Id, nullable=False),
    sa.Column("started_at", _Moment, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("answer", sa.LargeBinary),
    sa.Column("error", sa.Text),
    sa.Index("attempts_delivery", "delivery_id", "id"),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("token_id", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("job_id", _Id, nullable=False),
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
)
