"""Images: the results that jobs brought, wanted until our copy is kept or the link is dead."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.jobs import KeptImage
from receiver.store import tables
from receiver.store.database import Database
from receiver.store.outbox import job_event, write_events
from receiver.store.rows import (
    IMAGE_COLUMNS,
    all_rows,
    execute_rows,
    from_us,
    image_from_row,
    jobs_by_id,
    moment,
    to_us,
    us,
)
from submitter.vocabulary import Image


class Images:
    """The sentences about images."""

    def __init__(self, database: Database, *, public_url: Callable[[], str], first_delay_seconds: float) -> None:
        self._database = database
        self._public_url = public_url
        self._first_delay = first_delay_seconds

    async def claim(
        self, now: datetime, *, lease: timedelta, limit: int, without: Sequence[str] = ()
    ) -> list[tuple[KeptImage, datetime | None]]:
        """
        Take wanted images whose try is due, the one whose link dies first at the front; with when to give up.

        *without* are beginnings of links (`https://host`) that are not wanted now. What is held is due again at its
        lease's end, so that it is not among what is due, and a dead holder's is.
        """
        due = await self._database.glance(lambda db: _due(db, us(now), limit, without))
        if not due:
            return []
        taken = await self._database.batch(lambda db: _taken(db, due, us(now), us(now + lease)))
        return [(image_from_row(row), from_us(row["give_up_at"])) for row in taken]

    async def renew(self, image: KeptImage, now: datetime, *, lease: timedelta) -> None:
        async with self._database.write_raw() as db:
            await db.execute(
                "UPDATE images SET lease_until = ?, next_at = ? WHERE job_id = ? AND n = ? AND state = 'wanted'",
                (us(now + lease), us(now + lease), image.job_id, image.n),
            )

    async def next_at(self) -> datetime | None:
        table = tables.images.c
        async with self._database.read() as connection:
            value = await connection.scalar(select(func.min(table.next_at)).where(table.state == "wanted"))
        return None if value is None else moment(value)

    async def kept(self, image: KeptImage, now: datetime) -> int:
        """Our copy is safe. When it was the last one wanted, `job.images_kept`. Returns deliveries queued."""
        return await self._done(image, now, state="kept", last_error=None)

    async def lost(self, image: KeptImage, now: datetime, *, last_error: str) -> int:
        """Given up. The job's state is not touched; `job.images_lost` tells."""
        return await self._done(image, now, state="lost", last_error=last_error)

    async def later(self, image: KeptImage, *, next_at: datetime, last_error: str) -> None:
        async with self._database.write_raw() as db:
            await db.execute(
                "UPDATE images SET tries = tries + 1, next_at = ?, last_error = ?, lease_until = NULL"
                " WHERE job_id = ? AND n = ? AND state = 'wanted'",
                (us(next_at), last_error, image.job_id, image.n),
            )

    async def put_back(self, images: Sequence[KeptImage], now: datetime) -> None:
        """Let go of claimed images, untried."""
        async with self._database.write_raw() as db:
            await db.executemany(
                "UPDATE images SET next_at = ?, lease_until = NULL WHERE job_id = ? AND n = ? AND state = 'wanted'",
                [(us(now), image.job_id, image.n) for image in images],
            )

    async def _done(self, image: KeptImage, now: datetime, *, state: str, last_error: str | None) -> int:
        async with self._database.write_raw() as db:
            cursor = await db.execute(
                "UPDATE images SET state = ?, content_type = coalesce(?, content_type), width = coalesce(?, width),"
                " height = coalesce(?, height), bytes = ?, sha256 = ?, tries = tries + 1, last_error = ?, kept_at = ?,"
                " next_at = NULL, lease_until = NULL WHERE job_id = ? AND n = ? AND state = 'wanted'",
                (
                    state,
                    image.content_type,
                    image.width,
                    image.height,
                    image.bytes,
                    image.sha256,
                    last_error,
                    us(now),
                    image.job_id,
                    image.n,
                ),
            )
            if cursor.rowcount != 1:
                return 0
            rows = await all_rows(
                db, f"SELECT {', '.join(IMAGE_COLUMNS)} FROM images WHERE job_id = ? ORDER BY n", (image.job_id,)
            )
            all_of_it = [image_from_row(dict(zip(IMAGE_COLUMNS, row, strict=True))) for row in rows]
            if any(one.state == "wanted" for one in all_of_it):
                return 0
            job = (await jobs_by_id(db, {image.job_id}))[image.job_id]
            name = "job.images_kept" if all(one.kept for one in all_of_it) else "job.images_lost"
            return await write_events(
                db,
                [job_event(name, job, all_of_it, base_url=self._public_url())],
                now,
                first_delay_seconds=self._first_delay,
            )


def _due(db: sqlite3.Connection, now: int, limit: int, without: Sequence[str]) -> list[dict[str, Any]]:
    """Read beside the writer: where most links are not wanted now, finding the others is a long search."""
    elsewhere = " AND substr(coalesce(source_url, ''), 1, ?) <> ?" * len(without)
    rows = db.execute(
        # The plus keeps the planner off the index on next_at: it would read and sort all that is due.
        f"SELECT {', '.join(IMAGE_COLUMNS)} FROM images WHERE state = 'wanted' AND +next_at <= ?"
        f" AND (lease_until IS NULL OR lease_until <= ?){elsewhere} ORDER BY give_up_at LIMIT ?",
        (now, now, *(part for origin in without for part in (len(origin), origin)), limit),
    )
    return [dict(zip(IMAGE_COLUMNS, row, strict=True)) for row in rows]


def _taken(db: sqlite3.Connection, due: Sequence[dict[str, Any]], now: int, until: int) -> list[dict[str, Any]]:
    """Those that nobody else has taken meanwhile."""
    statement = (
        "UPDATE images SET lease_until = ?, next_at = ? WHERE job_id = ? AND n = ? AND state = 'wanted'"
        " AND +next_at <= ? AND (lease_until IS NULL OR lease_until <= ?)"
    )
    return [
        row for row in due if db.execute(statement, (until, until, row["job_id"], row["n"], now, now)).rowcount == 1
    ]


_INSERT_IMAGE = (
    f"INSERT INTO images ({', '.join(IMAGE_COLUMNS)}) VALUES ({', '.join('?' for _ in IMAGE_COLUMNS)})"
    " ON CONFLICT (job_id, n) DO NOTHING"
)


def insert_images(db: sqlite3.Connection, images: Sequence[tuple[KeptImage, datetime]]) -> None:
    """Write results as wanted, each with the moment at which it was learned. One that is known stays as it is."""
    if images:
        execute_rows(db, _INSERT_IMAGE, [_image_values(image, now) for image, now in images])


async def images_of(connection: AsyncConnection, job_ids: Sequence[str]) -> list[KeptImage]:
    if not job_ids:
        return []
    rows = await connection.execute(
        select(tables.images)
        .where(tables.images.c.job_id.in_(job_ids))
        .order_by(tables.images.c.job_id, tables.images.c.n)
    )
    return [image_from_row(row) for row in rows.mappings()]


def new_image(job_id: str, n: int, image: Image, now: datetime) -> KeptImage:
    return KeptImage(
        job_id=job_id,
        n=n,
        source_url=image.url,
        expires_at=image.expires_at,
        content_type=image.content_type,
        width=image.width,
        height=image.height,
    )


def _image_values(image: KeptImage, now: datetime) -> tuple[Any, ...]:
    give_up_at = image.expires_at or now + timedelta(hours=24)
    values = {
        "job_id": image.job_id,
        "n": image.n,
        "source_url": image.source_url,
        "expires_at": to_us(image.expires_at),
        "content_type": image.content_type,
        "width": image.width,
        "height": image.height,
        "state": image.state,
        "tries": 0,
        "next_at": us(now),
        "give_up_at": us(max(give_up_at, now + timedelta(minutes=1))),
    }
    return tuple(values.get(name) for name in IMAGE_COLUMNS)
