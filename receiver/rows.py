"""Rows to values and back: moments as integer microseconds, JSON as text, a job as one tuple."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import aiosqlite

from receiver.database import on_its_thread
from receiver.jobs import Job, KeptImage, Source
from receiver.tables import images, jobs
from submitter.vocabulary import Cost, Failure, State

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


def us(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def from_us(value: int | None) -> datetime | None:
    return None if value is None else _EPOCH + timedelta(microseconds=value)


def moment(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


JOB_COLUMNS = tuple(column.name for column in jobs.columns if column.name not in ("lease_owner", "lease_until"))
IMAGE_COLUMNS = tuple(column.name for column in images.columns)
MUTABLE = (
    "state",
    "remote_id",
    "remote_status",
    "claimed_id",
    "error_code",
    "error_message",
    "error_permanent",
    "cost_amount",
    "cost_unit",
    "settled_by",
    "tries",
    "retry_at",
    "sent_at",
    "look_at",
    "looked_at",
    "looks",
    "hinted_at",
    "deadline_at",
    "overdue_at",
    "late_at",
    "finished_at",
    "trouble",
)


def job_values(job: Job) -> dict[str, Any]:
    """Column values of *job*, all but the lease."""
    error, cost = job.error, job.cost
    return {
        "id": job.id,
        "provider": job.provider,
        "state": job.state.value,
        "version": job.version,
        "options": json.dumps(job.options, separators=(",", ":"), ensure_ascii=False),
        "metadata": json.dumps(job.metadata, separators=(",", ":"), ensure_ascii=False),
        "notify_url": job.notify_url,
        "remote_id": job.remote_id,
        "remote_status": job.remote_status,
        "claimed_id": job.claimed_id,
        "awaits_callback": int(job.awaits_callback),
        "input_name": job.input_name,
        "input_url": job.input_url,
        "error_code": error and error.code,
        "error_message": error and error.message,
        "error_permanent": None if error is None else int(error.permanent),
        "cost_amount": None if cost is None else format(cost.amount, "f"),
        "cost_unit": cost and cost.unit,
        "settled_by": job.settled_by and job.settled_by.value,
        "tries": job.tries,
        "retry_at": to_us(job.retry_at),
        "sent_at": to_us(job.sent_at),
        "look_at": to_us(job.look_at),
        "looked_at": to_us(job.looked_at),
        "looks": job.looks,
        "hinted_at": to_us(job.hinted_at),
        "deadline_at": to_us(job.deadline_at),
        "overdue_at": to_us(job.overdue_at),
        "late_at": to_us(job.late_at),
        "created_at": us(job.created_at),
        "finished_at": to_us(job.finished_at),
        "trouble": job.trouble,
        "resubmit_of": job.resubmit_of,
    }


def job_from_row(row: Any) -> Job:
    """A job from a row with all of `JOB_COLUMNS`."""
    error = None
    if row["error_code"] is not None:
        error = Failure(row["error_code"], row["error_message"] or row["error_code"], bool(row["error_permanent"]))
    cost = None
    if row["cost_amount"] is not None:
        cost = Cost(Decimal(row["cost_amount"]), row["cost_unit"])
    return Job(
        id=row["id"],
        provider=row["provider"],
        state=State(row["state"]),
        version=row["version"],
        options=json.loads(row["options"]),
        metadata=json.loads(row["metadata"]),
        notify_url=row["notify_url"],
        remote_id=row["remote_id"],
        remote_status=row["remote_status"],
        claimed_id=row["claimed_id"],
        awaits_callback=bool(row["awaits_callback"]),
        input_name=row["input_name"],
        input_url=row["input_url"],
        error=error,
        cost=cost,
        settled_by=None if row["settled_by"] is None else Source(row["settled_by"]),
        tries=row["tries"],
        retry_at=from_us(row["retry_at"]),
        sent_at=from_us(row["sent_at"]),
        look_at=from_us(row["look_at"]),
        looked_at=from_us(row["looked_at"]),
        looks=row["looks"],
        hinted_at=from_us(row["hinted_at"]),
        deadline_at=from_us(row["deadline_at"]),
        overdue_at=from_us(row["overdue_at"]),
        late_at=from_us(row["late_at"]),
        created_at=moment(row["created_at"]),
        finished_at=from_us(row["finished_at"]),
        trouble=row["trouble"],
        resubmit_of=row["resubmit_of"],
    )


def job_from_tuple(row: Sequence[Any]) -> Job:
    return job_from_row(dict(zip(JOB_COLUMNS, row, strict=True)))


def image_from_row(row: Any) -> KeptImage:
    return KeptImage(
        job_id=row["job_id"],
        n=row["n"],
        source_url=row["source_url"],
        expires_at=from_us(row["expires_at"]),
        content_type=row["content_type"],
        width=row["width"],
        height=row["height"],
        bytes=row["bytes"],
        sha256=row["sha256"],
        state=row["state"],
        tries=row["tries"],
    )


# --- Reading inside a transaction of the driver -----------------------------------------------------------------------

_CHUNK = 500


async def jobs_by_id(db: aiosqlite.Connection, ids: set[str]) -> dict[str, Job]:
    return await on_its_thread(db, jobs_in, ids)


def jobs_in(db: sqlite3.Connection, ids: Iterable[str]) -> dict[str, Job]:
    """`jobs_by_id`, for who is on the driver's thread already."""
    found: dict[str, Job] = {}
    for chunk in chunks(sorted(ids)):
        for row in db.execute(_JOBS_BY_ID.format(", ".join("?" * len(chunk))), chunk):
            found[row[0]] = job_from_tuple(row)
    return found


_JOBS_BY_ID = f"SELECT {', '.join(JOB_COLUMNS)} FROM jobs WHERE id IN ({{}})"


async def all_rows(db: aiosqlite.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
    return list(await db.execute_fetchall(sql, values))


async def one_row(db: aiosqlite.Connection, sql: str, values: tuple[Any, ...] = ()) -> Any | None:
    rows = await all_rows(db, sql, values)
    return rows[0] if rows else None


def chunks(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))
