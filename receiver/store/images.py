"""Images: the results of jobs, wanted until our copy is kept or the link is dead."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from receiver.domain.events import job_event
from receiver.domain.jobs import Job, KeptImage
from receiver.store.codecs import Codec, from_us, to_us, us
from receiver.store.database import Database
from receiver.store.outbox import write_events
from receiver.store.rows import jobs_by_id
from receiver.store.statements import Fetch, InsertMany, LockRows, Run, RunMany, Work, alone, first
from submitter.vocabulary import Image


class Images:
    """
    The statements about images, one transaction each.

    Claims are leases of this object, of which a process has a single one; only it renews and ends them.
    """

    def __init__(self, database: Database, *, public_url: Callable[[], str], first_delay_seconds: float) -> None:
        self._database = database
        self._public_url = public_url
        self._first_delay = first_delay_seconds
        self._owner = secrets.token_hex(8)

    async def claim(
        self,
        now: datetime,
        *,
        lease: timedelta,
        limit: int,
        without: Sequence[str] = (),
        choose: Callable[[Sequence[KeptImage]], Sequence[KeptImage]] = lambda due: due,
    ) -> list[tuple[KeptImage, datetime | None]]:
        """
        Claim wanted images whose try is due, earliest dying link first; each with the time to give up.

        *without* are prefixes of links (`https://host`) to leave out for now; *choose* selects among the due images.
        A claimed image is due again at its lease's end: so a held one is not found among the due, and a dead holder's
        is.
        """
        due = await self._database.read(lambda: _due(us(now), limit, without))
        chosen = {(image.job_id, image.n) for image in choose([_CODEC.from_row(row[:-1]) for row in due])}
        due = [row for row in due if (row[0], row[1]) in chosen]
        if not due:
            return []
        taken = await self._database.write(lambda: _claimed(due, us(now), us(now + lease), self._owner))
        return [(_CODEC.from_row(row[:-1]), from_us(row[-1])) for row in taken]

    async def renew(self, images: Sequence[KeptImage], now: datetime, *, lease: timedelta) -> None:
        """Hold on to *images*, as far as they are still held."""
        until = us(now + lease)
        rows = [(until, until, image.job_id, image.n, self._owner) for image in images]
        await self._database.write(alone(RunMany(_RENEW, rows)))

    async def next_at(self) -> datetime | None:
        """Return when the next try of a wanted image is due."""
        row = await self._database.read(lambda: first(_NEXT))
        return from_us(row[0])

    async def kept(self, images: Sequence[tuple[KeptImage, datetime]]) -> dict[str, Job]:
        """
        Record that our copies are safe, each since its time. The last wanted image of a job emits `job.images_kept`.

        Returns the jobs by id.
        """

        def work() -> Work[dict[str, Job]]:
            ids = sorted({image.job_id for image, _ in images})
            yield LockRows("jobs", ids)
            jobs = yield from jobs_by_id(ids)
            done = {}
            for image, now in images:
                if (yield from self._done(image, now, state="kept", last_error=None)):
                    done[image.job_id] = now
            yield from self._all_decided(done, jobs)
            return jobs

        return await self._database.write(work)

    async def lost(self, image: KeptImage, now: datetime, *, last_error: str) -> None:
        """Give an image up. The job's state stays; `job.images_lost` is emitted."""

        def work() -> Work[None]:
            yield LockRows("jobs", [image.job_id])
            jobs = yield from jobs_by_id([image.job_id])
            if (yield from self._done(image, now, state="lost", last_error=last_error)):
                yield from self._all_decided({image.job_id: now}, jobs)

        await self._database.write(work)

    async def ask_for_link(
        self, image: KeptImage, now: datetime, *, providers: Sequence[str], next_at: datetime, last_error: str
    ) -> bool:
        """
        Make a poll of the image's job due, for a fresh link; the image itself is tried again at *next_at*.

        Returns False, and changes nothing, if its provider is not among *providers*, or the job has no task to poll.
        """

        def work() -> Work[bool]:
            if (yield Run(_POLL_FOR_LINK, (us(now), image.job_id, list(providers)))) != 1:
                return False
            yield Run(_ASKED, (us(next_at), last_error, image.job_id, image.n, self._owner))
            return True

        return bool(providers) and await self._database.write(work)

    async def later(self, image: KeptImage, *, next_at: datetime, last_error: str) -> None:
        await self._database.write(alone(Run(_LATER, (us(next_at), last_error, image.job_id, image.n, self._owner))))

    async def gone(self, image: KeptImage, now: datetime) -> bool:
        """
        Record that our copy no longer exists: have it fetched again. An image that never had a link is lost, and
        `job.images_lost` is emitted. Returns False if that is known.
        """
        lost = image.source_url is None
        state, next_at = ("lost", None) if lost else ("wanted", us(now))
        values = (state, next_at, us(now + _GONE_PATIENCE), "our copy of it is gone", image.job_id, image.n)

        def work() -> Work[bool]:
            yield LockRows("jobs", [image.job_id])
            if (yield Run(_GONE, values)) != 1:
                return False
            if lost:
                yield from self._all_decided({image.job_id: now}, (yield from jobs_by_id([image.job_id])))
            return True

        return await self._database.write(work)

    def _done(self, image: KeptImage, now: datetime, *, state: str, last_error: str | None) -> Work[bool]:
        """Record the end of an image; return whether it was held here. Needs a lock on the job, to find the last."""
        values = (state, image.content_type, image.width, image.height, image.bytes, image.sha256, last_error, us(now))
        return bool((yield Run(_DONE, (*values, image.job_id, image.n, self._owner))) == 1)

    def _all_decided(self, done: Mapping[str, datetime], jobs: Mapping[str, Job]) -> Work[None]:
        """Emit what became of the images of those jobs of which none is wanted any more, each *done* at its moment."""
        if not done:
            return
        undecided = {row[0] for row in (yield Fetch(_UNDECIDED, (sorted(done),)))}
        decided = {job_id: list[KeptImage]() for job_id in sorted(done) if job_id not in undecided}
        for image in (yield from images_of(list(decided))):
            decided[image.job_id].append(image)
        for job_id, images in decided.items():
            name = "job.images_lost" if any(image.state == "lost" for image in images) else "job.images_kept"
            new_event = job_event(name, jobs[job_id], images, base_url=self._public_url())
            yield from write_events([new_event], done[job_id], first_delay_seconds=self._first_delay)


_CODEC = Codec(KeptImage)
_COLUMNS = _CODEC.sql
_NEW_COLUMNS = (*_CODEC.columns, "next_at", "give_up_at")
_WANTED = "job_id = ? AND n = ? AND state = 'wanted'"
_HELD = f"{_WANTED} AND lease_owner = ?"
_FREED = "lease_until = NULL, lease_owner = NULL"
_RENEW = f"UPDATE images SET lease_until = ?, next_at = ? WHERE {_HELD}"
_NEXT = "SELECT min(next_at) FROM images WHERE state = 'wanted'"
_LATER = f"UPDATE images SET tries = tries + 1, next_at = ?, last_error = ?, {_FREED} WHERE {_HELD}"
_POLL_FOR_LINK = (
    "UPDATE jobs SET version = version + 1, next_poll_at = coalesce(next_poll_at, ?)"
    " WHERE id = ? AND provider IN (??) AND remote_id IS NOT NULL AND (state = 'succeeded' OR late_at IS NOT NULL)"
)
_ASKED = (
    f"UPDATE images SET tries = tries + 1, renewals = renewals + 1, next_at = ?, last_error = ?, {_FREED} WHERE {_HELD}"
)
# An image that is being fetched is left alone. A link that is the same as before is as dead as before.
_RELINK = (
    f"UPDATE images SET state = 'wanted', next_at = ?, renewed_at = ?, {_FREED}, kept_at = NULL,"
    " give_up_at = CASE WHEN source_url = ? THEN give_up_at ELSE ? END,"
    " tries = CASE WHEN source_url = ? THEN tries ELSE 0 END, expires_at = ?, source_url = ?"
    " WHERE job_id = ? AND n = ? AND (state = 'lost' OR state = 'wanted' AND (lease_until IS NULL OR lease_until <= ?))"
)
_DONE = (
    "UPDATE images SET state = ?, content_type = coalesce(?, content_type), width = coalesce(?, width),"
    " height = coalesce(?, height), bytes = ?, sha256 = ?, tries = tries + 1, last_error = ?, kept_at = ?,"
    f" next_at = NULL, {_FREED} WHERE {_HELD}"
)
_GONE = (
    f"UPDATE images SET state = ?, next_at = ?, give_up_at = ?, last_error = ?, {_FREED}, kept_at = NULL, tries = 0,"
    " renewals = 0, renewed_at = NULL WHERE job_id = ? AND n = ? AND state = 'kept'"
)
_GONE_PATIENCE = timedelta(hours=1)
"""The time for the old link, or a fresh one from the provider, to bring the image again."""
# The sum keeps the planner off the index on next_at: it would read and sort all that is due.
_FREE = "next_at + 0 <= ? AND (lease_until IS NULL OR lease_until <= ?)"
_TAKE = f"UPDATE images SET lease_until = ?, next_at = ?, lease_owner = ? WHERE {_WANTED} AND {_FREE}"
_UNDECIDED = "SELECT DISTINCT job_id FROM images WHERE job_id IN (??) AND state = 'wanted'"
_OF_JOBS = f"SELECT {_COLUMNS} FROM images WHERE job_id IN (??) ORDER BY job_id, n"


def _due(now: int, limit: int, without: Sequence[str]) -> Work[list[Any]]:
    """Read due images without holding the writer: where most links are left out, finding the others takes long."""
    elsewhere = " AND substr(coalesce(source_url, ''), 1, ?) <> ?" * len(without)
    query = f"SELECT {_COLUMNS}, give_up_at FROM images WHERE state = 'wanted' AND {_FREE}{elsewhere}" + (
        " ORDER BY give_up_at LIMIT ?"
    )
    origins = [part for origin in without for part in (len(origin), origin)]
    rows: list[Any] = yield Fetch(query, (now, now, *origins, limit))
    return rows


def _claimed(due: Sequence[Any], now: int, until: int, owner: str) -> Work[list[Any]]:
    """Lease the *due* rows, except those that another process has leased meanwhile."""
    taken = []
    for row in due:
        if (yield Run(_TAKE, (until, until, owner, row[0], row[1], now, now))) == 1:
            taken.append(row)
    return taken


def insert_images(images: Sequence[tuple[KeptImage, datetime]]) -> Work[None]:
    """Write results as wanted, each with the time at which it was learned. A known image stays as it is."""
    if images:
        rows = [_image_values(image, now) for image, now in images]
        yield InsertMany("images", _NEW_COLUMNS, rows, known=("job_id", "n"))


def relink_images(images: Sequence[tuple[KeptImage, datetime]]) -> Work[None]:
    """Give images that are not kept their fresh links; lost ones are wanted again."""
    rows = []
    for image, now in images:
        url, learned_at = image.source_url, us(now)
        gives_up_at = us(_give_up_at(image, now))
        new = (url, gives_up_at, url, to_us(image.expires_at), url)
        rows.append((learned_at, learned_at, *new, image.job_id, image.n, learned_at))
    if rows:
        yield RunMany(_RELINK, rows)


def images_of(job_ids: Sequence[str]) -> Work[list[KeptImage]]:
    """Return all images of these jobs, in order."""
    if not job_ids:
        return []
    rows = yield Fetch(_OF_JOBS, (list(job_ids),))
    return [_CODEC.from_row(row) for row in rows]


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
    return (*_CODEC.to_row(image), us(now), us(_give_up_at(image, now)))


def _give_up_at(image: KeptImage, now: datetime) -> datetime:
    """Return when the link is dead. An expiry in the past is ignored: a fresh link is assumed to live for a day."""
    if image.expires_at is None or image.expires_at <= now:
        return now + timedelta(hours=24)
    return max(image.expires_at, now + timedelta(minutes=1))
