"""Rows to values and back: moments as integer microseconds, JSON as text, a job as one tuple."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

from receiver.domain.jobs import Job, KeptImage, Source
from receiver.store.statements import FetchWide, Work
from receiver.store.tables import images, jobs
from submitter.vocabulary import Cost, Failure, State

T = TypeVar("T")
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


def job_values(job: Job) -> dict[str, Any]:
    """Column values of *job*, all but the lease."""
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
        **_error_columns(job.error),
        **_cost_columns(job.cost),
        "settled_by": job.settled_by and job.settled_by.value,
        "tries": job.tries,
        "retry_at": to_us(job.retry_at),
        "sent_at": to_us(job.sent_at),
        "next_poll_at": to_us(job.next_poll_at),
        "polled_at": to_us(job.polled_at),
        "polls": job.polls,
        "hinted_at": to_us(job.hinted_at),
        "deadline_at": to_us(job.deadline_at),
        "overdue_at": to_us(job.overdue_at),
        "late_at": to_us(job.late_at),
        "created_at": us(job.created_at),
        "finished_at": to_us(job.finished_at),
        "last_error": job.last_error,
        "resubmit_of": job.resubmit_of,
    }


def _error_columns(error: Failure | None) -> dict[str, Any]:
    return {
        "error_code": error and error.code,
        "error_message": error and error.message,
        "error_permanent": None if error is None else int(error.permanent),
    }


def _cost_columns(cost: Cost | None) -> dict[str, Any]:
    return {"cost_amount": None if cost is None else format(cost.amount, "f"), "cost_unit": cost and cost.unit}


def _column(name: str, value_of: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: None if value is None else value_of(value)}


_CHANGEABLE: tuple[tuple[str, Callable[[Any], dict[str, Any]]], ...] = (
    *((name, _column(name, str)) for name in ("state", "remote_id", "remote_status", "claimed_id", "settled_by")),
    *((name, _column(name, int)) for name in ("tries", "polls")),
    *((name, _column(name, us)) for name in ("retry_at", "sent_at", "next_poll_at", "polled_at", "hinted_at")),
    *((name, _column(name, us)) for name in ("deadline_at", "overdue_at", "late_at", "finished_at")),
    ("last_error", _column("last_error", str)),
    ("error", _error_columns),
    ("cost", _cost_columns),
)


def changed_columns(before: Job, after: Job) -> dict[str, Any]:
    """
    The columns in which *after* differs, with their new values, always in the same order.

    Only these are written: a column that is set to what it was still costs the rewriting of every index on it.
    """
    changed: dict[str, Any] = {}
    if before is after:
        return changed
    for name, columns_of in _CHANGEABLE:
        old, new = getattr(before, name), getattr(after, name)
        if new is not old and new != old:
            changed.update(columns_of(new))
    return changed


def job_from_tuple(row: Sequence[Any]) -> Job:
    """A job from the values of `JOB_COLUMNS`, in their order. Spelt out: this is where settling spends its time."""
    (
        job_id,
        provider,
        state,
        version,
        options,
        metadata,
        notify_url,
        remote_id,
        remote_status,
        claimed_id,
        awaits_callback,
        input_name,
        input_url,
        error_code,
        error_message,
        error_permanent,
        cost_amount,
        cost_unit,
        settled_by,
        tries,
        retry_at,
        sent_at,
        next_poll_at,
        polled_at,
        polls,
        hinted_at,
        deadline_at,
        overdue_at,
        late_at,
        created_at,
        finished_at,
        last_error,
        resubmit_of,
    ) = row
    error = cost = None
    if error_code is not None:
        error = Failure(error_code, error_message or error_code, bool(error_permanent))
    if cost_amount is not None:
        cost = Cost(Decimal(cost_amount), cost_unit)
    return Job(
        id=job_id,
        provider=provider,
        state=State(state),
        version=version,
        options=json.loads(options) if options != "{}" else {},
        metadata=json.loads(metadata) if metadata != "{}" else {},
        notify_url=notify_url,
        remote_id=remote_id,
        remote_status=remote_status,
        claimed_id=claimed_id,
        awaits_callback=bool(awaits_callback),
        input_name=input_name,
        input_url=input_url,
        settled_by=None if settled_by is None else Source(settled_by),
        tries=tries,
        retry_at=None if retry_at is None else moment(retry_at),
        sent_at=None if sent_at is None else moment(sent_at),
        next_poll_at=None if next_poll_at is None else moment(next_poll_at),
        polled_at=None if polled_at is None else moment(polled_at),
        polls=polls,
        hinted_at=None if hinted_at is None else moment(hinted_at),
        deadline_at=None if deadline_at is None else moment(deadline_at),
        overdue_at=None if overdue_at is None else moment(overdue_at),
        late_at=None if late_at is None else moment(late_at),
        created_at=moment(created_at),
        finished_at=None if finished_at is None else moment(finished_at),
        last_error=last_error,
        resubmit_of=resubmit_of,
        error=error,
        cost=cost,
    )


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
        last_error=row["last_error"],
        renewals=row["renewals"],
        renewed_at=from_us(row["renewed_at"]),
    )


def image_from_tuple(row: Sequence[Any]) -> KeptImage:
    """An image from the values of `IMAGE_COLUMNS`, in their order."""
    return image_from_row(dict(zip(IMAGE_COLUMNS, row, strict=True)))


def jobs_by_id(ids: Iterable[str]) -> Work[dict[str, Job]]:
    """Those of the jobs that there are."""
    rows = yield FetchWide(JOB_COLUMNS, "FROM jobs WHERE id IN (??)", (sorted(ids),))
    return {row[0]: job_from_tuple(row) for row in rows}


def chunks(values: Sequence[T], size: int = 500) -> Iterable[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def delivery_digest(job_id: str, delivery_id: str, body: bytes) -> str:
    """
    What two deliveries have in common if one is a replay of the other.

    It begins with the job's id: new entries of an index then stand beside each other, and not all over it.
    """
    digest = hashlib.sha256(b"%s\n%s" % (delivery_id.encode(), body)).digest()
    return f"{job_id}.{base64.urlsafe_b64encode(digest[:18]).decode()}"
