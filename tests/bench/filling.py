"""A database as it looks after a while in production, written straight into the tables: jobs, events, evidence."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from receiver.domain.ids import new_id
from submitter.providers.freepik import Freepik

JOB = (
    *("id", "provider", "state", "version", "options", "metadata", "remote_id", "remote_status", "awaits_callback"),
    *(
        "input_name",
        "settled_by",
        "tries",
        "polls",
        "sent_at",
        "next_poll_at",
        "deadline_at",
        "created_at",
        "finished_at",
    ),
)
EVIDENCE = (
    *("job_id", "provider", "source", "verdict", "trust", "received_at", "read_at", "asked_at", "status", "headers"),
    *("body", "peer", "delivery_id"),
)
EVENT = ("id", "position", "type", "job_id", "provider", "created_at", "body")
_BATCH = 20_000


def evidence_rows(path: Path) -> int:
    with sqlite3.connect(path) as db:
        return int(db.execute("SELECT coalesce(max(id), 0) FROM evidence").fetchone()[0])


def fill(path: Path, *, evidence: int) -> None:
    """Add finished jobs until about *evidence* rows are there: a submit answer and two callbacks for each job."""
    jobs = -(-max(evidence - evidence_rows(path), 0) // 3)
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("PRAGMA synchronous=OFF")
        position = db.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()[0]
        for start in range(0, jobs, _BATCH):
            made = [_finished(position + 3 * (start + n)) for n in range(min(_BATCH, jobs - start))]
            db.execute("BEGIN")
            _insert(db, "jobs", JOB, (job for job, _, _ in made))
            _insert(db, "evidence", EVIDENCE, (row for _, rows, _ in made for row in rows))
            _insert(db, "events", EVENT, (row for _, _, rows in made for row in rows))
            db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def add_running(path: Path, count: int) -> list[tuple[str, str]]:
    """(job id, task id) of *count* fresh running jobs that await their callbacks."""
    made = running_jobs(count)
    with sqlite3.connect(path, isolation_level=None, timeout=30) as db:
        for start in range(0, count, 2000):
            db.execute("BEGIN IMMEDIATE")
            _insert(db, "jobs", JOB, iter(made[start : start + 2000]))
            db.execute("COMMIT")
    return [(row[0], row[6]) for row in made]


def running_jobs(count: int) -> list[tuple[Any, ...]]:
    """Rows of *count* fresh running jobs; the columns are those of `JOB`."""
    now, hour = time.time_ns() // 1000, 3_600_000_000
    options, metadata = '{"scale_factor":"2x","optimized_for":"soft_portraits"}', '{"order":"2026-4711"}'
    rows: list[tuple[Any, ...]] = []
    for _ in range(count):
        job, task = new_id("job"), secrets.token_hex(18)
        moments = (now, now + hour, now + hour, now, None)
        rows.append((job, "freepik", "running", 3, options, metadata, task, "CREATED", 1, job, None, 1, 0, *moments))
    return rows


def settle_old_images(path: Path) -> None:
    """Results of an earlier run are gone: its server has ended."""
    with sqlite3.connect(path, timeout=30) as db:
        db.execute("UPDATE images SET state = 'lost', next_at = NULL, lease_until = NULL WHERE state = 'wanted'")


def _finished(position: int) -> tuple[tuple[Any, ...], list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    job, task = new_id("job"), secrets.token_hex(18)
    at = time.time_ns() // 1000 - 86_400_000_000
    seconds = 1_000_000
    options = '{"scale_factor":"2x","optimized_for":"soft_portraits"}'
    row: tuple[Any, ...] = (
        job,
        "freepik",
        "succeeded",
        5,
        options,
        '{"order":"2026-4711"}',
        task,
        "COMPLETED",
        1,
        job,
        "callback",
        1,
        0,
    )
    row += (at, None, at + 3600 * seconds, at, at + 40 * seconds)
    answer = json.dumps({"data": {"task_id": task, "status": "CREATED", "generated": []}}).encode()
    evidence: list[tuple[Any, ...]] = [
        (job, "freepik", "response", "believed", "own_call", at, at, at, 200, _answer_headers(), answer, None, None)
    ]
    for status in ("IN_PROGRESS", "COMPLETED"):
        message = f"msg_{secrets.token_hex(12)}"
        body = callback_body(task, status, "https://ai-statics.freepik.com/content/mg-upscaler/result.png")
        headers = json.dumps([list(pair) for pair in callback_headers(message, "1790000000", "v1," + "A" * 43 + "=")])
        common = (job, "freepik", "callback", "believed", "signed_body", at, at, None, None)
        evidence.append((*common, headers, body, "203.0.113.7", message))
    data = {"id": job, "provider": "freepik", "state": "succeeded", "options": json.loads(options), "remote_id": task}
    events = [
        (
            new_id("evt"),
            position + n,
            name,
            job,
            "freepik",
            at,
            json.dumps({"type": name, "timestamp": "2026-11-01T00:00:00.000Z", "data": data}) + " " * 400,
        )
        for n, name in enumerate(("job.queued", "job.running", "job.succeeded"), 1)
    ]
    return row, evidence, events


def callback_body(task: str, status: str, url: str, size: int = 0) -> bytes:
    """Return the body of a callback, filled to *size* bytes."""
    said = {"task_id": task, "status": status, "generated": [url] if status == "COMPLETED" else []}
    body = json.dumps(said).encode()
    if len(body) < size:
        text = base64.b64encode(os.urandom(size)).decode()
        body = json.dumps(said | {"metadata": text[: max(size - len(body) - 16, 0)]}).encode()
    return body


def callback_headers(message: str, timestamp: str, signature: str) -> Iterator[tuple[str, str]]:
    """Return the headers of Freepik's callbacks behind a proxy, about 600 bytes."""
    yield "host", "hooks.example.com"
    yield "user-agent", "Freepik-Webhooks/1.0 (+https://docs.freepik.com/webhooks)"
    yield "accept", "application/json, text/plain, */*"
    yield "accept-encoding", "gzip, compress, deflate, br"
    yield "content-type", "application/json"
    yield "webhook-id", message
    yield "webhook-timestamp", timestamp
    yield "webhook-signature", signature
    yield "x-forwarded-for", "203.0.113.7"
    yield "x-forwarded-proto", "https"
    yield "x-request-id", "b7f0a3f1c2d94e5f8a6b7c8d9e0f1a2b"


def _answer_headers() -> str:
    return json.dumps(
        [
            ["date", "Sun, 01 Nov 2026 00:00:00 GMT"],
            ["content-type", "application/json"],
            ["x-ratelimit-remaining", "1180"],
            ["server", Freepik.title],
        ]
    )


def _insert(db: sqlite3.Connection, table: str, columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    marks = ", ".join("?" for _ in columns)
    db.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)
