"""
Keeping images before their links die.

The image whose link dies first is fetched first, through the guard, into a temporary file, inspected, and renamed into
place; only then is it `kept`. A download that fails is tried again with growing pauses. If the link seems to be dead,
the provider is asked for a fresh one by status calls, until it has answered one. Only then is an image whose link is
dead `lost`: this is announced, and does not affect the job, which is paid and done. A crash in between leaves a part
file, removed at the next start, and a lapsed lease.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import structlog

from receiver.domain.jobs import KeptImage, enlargement
from receiver.net.client import Arrived, Arriving, DownloadCut, DownloadFailed, NotContinued, Outbound
from receiver.net.guard import OutboundError
from receiver.runtime.group_commit import GroupCommit
from receiver.runtime.loops import Loop, TaskPool
from receiver.runtime.metrics import Metrics
from receiver.runtime.wakes import Wakes
from receiver.store.blobs import Blobs
from receiver.store.jobs import JobStore
from receiver.store.leases import LEASE
from receiver.store.part_files import PartWriter
from submitter.errors import TaskRefused

log = structlog.get_logger("receiver.archive")

_PAUSES = (1, 3, 10, 30, 60, 120, 300, 600)
_MAX_IMAGE_BYTES = 512 * 1024 * 1024
_DOWNLOAD_SECONDS = (60.0, 120.0, 300.0)  # by tries made: a host that hangs holds its place for a minute at first
_LINGER_SECONDS = 0.02
"""Images that end within this time share a commit: nobody waits for it, and each costs as much as inspecting one."""
_REFUSALS = 3
"""After this many tries, a host's refusal means that the link died before its time."""
_RENEWALS = (20.0, 60.0, 180.0)
"""The longest wait for the status call that brings a fresh link, in seconds, by the number of requests so far."""
_FINAL = frozenset({200, 203, 206, 410})
"""Statuses with which the file itself can't be kept, or is gone for good."""
_AT_ONCE = 16
"""Downloads, over all hosts."""
MOST_PER_HOST = 6
_MOST_HELD = 3 * MOST_PER_HOST
"""Of one host, downloads that wait for their turn included: so the next one does not wait for a claim."""
_FEW_HELD = 2 * MOST_PER_HOST
"""More of a host are claimed when no more of its images are held, so that a claim brings several."""
_SETTLING = 3
"""Downloads that are synced and inspected at once: this blocks threads that others need, too."""
_SEARCH_SECONDS = 1.0
"""The interval of searches for images of other hosts, while the known hosts are busy enough."""


class Archive:
    """
    Fetches wanted images, several at once, a few from each host: one that hangs delays only itself.

    Three times as many are claimed, so that no download waits for the database. *renewable* are the providers that can
    be asked for fresh links; *hosts*, if not empty, the only ones to fetch from.
    """

    def __init__(
        self,
        store: JobStore,
        blobs: Blobs,
        outbound: Outbound,
        metrics: Metrics,
        *,
        wakes: Wakes,
        renewable: Sequence[str] = (),
        hosts: Sequence[str] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._outbound = outbound
        self._metrics = metrics
        self._wakes = wakes
        self._renewable = renewable
        self._hosts = hosts
        self._clock = clock
        self.loop = Loop("archive", self.step, woken=wakes.archive)
        self.renewals = Loop("image-leases", self._renew, idle_seconds=LEASE.total_seconds() / 4)
        self.pool = TaskPool(3 * _AT_ONCE, on_idle=self.loop.wake)
        self._keeping: GroupCommit[tuple[KeptImage, datetime]] = GroupCommit(
            self._keep, batch=self.pool.size, limit=None, patience_seconds=None, linger_seconds=_LINGER_SECONDS
        )
        """Images that end together share a commit. An image whose commit fails is fetched again after its lease."""
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._places_at: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._settling = asyncio.Semaphore(_SETTLING)
        self._held: Counter[str] = Counter()
        self._leased: list[KeptImage] = []
        self._unfinished = Unfinished()
        self._searched: frozenset[str] | None = None
        """The full hosts other than which the last search found nothing, and until when that is assumed to hold."""
        self._search_at = 0.0

    async def step(self) -> float:
        now = self._clock()
        if self.pool.free < max(self.pool.size // 8, 1):
            return 3600.0
        full = frozenset(origin for origin, count in self._held.items() if origin and count > _FEW_HELD)
        rest = self._search_at - time.monotonic()
        if full and full == self._searched and rest > 0:
            return rest
        claimed = await self._store.images.claim(
            now, lease=LEASE, limit=self.pool.free, without=sorted(full), choose=self._with_room
        )
        if not (claimed or full):
            next_at = await self._store.images.next_at()
            return 3600.0 if next_at is None else max((next_at - now).total_seconds(), 0.1)
        self._searched, self._search_at = (None, 0.0) if claimed else (full, time.monotonic() + _SEARCH_SECONDS)
        for image, give_up_at in claimed:
            origin = _origin(image)
            self._held[origin] += bool(origin)
            name = f"image {image.job_id}/{image.n}"
            self.pool.start(self._work(image, give_up_at or now, origin), name=name, job=image.job_id)
        return 0.0 if claimed else 1.0

    def _with_room(self, due: Sequence[KeptImage]) -> list[KeptImage]:
        """Select the images of *due* that their hosts have room for."""
        held, chosen = self._held.copy(), []
        for image in due:
            origin = _origin(image)
            if not origin or held[origin] < _MOST_HELD:
                held[origin] += 1
                chosen.append(image)
        return chosen

    async def _work(self, image: KeptImage, give_up_at: datetime, origin: str) -> None:
        self._leased.append(image)
        try:
            kept = await self._fetch(image, origin)
        except OutboundError as exc:
            refused = isinstance(exc, DownloadFailed) and exc.permanent
            dead = isinstance(exc, DownloadFailed) and exc.permanent and exc.status in _FINAL
            await self._failed(image, give_up_at, str(exc), dead=dead, refused=refused)
        except TaskRefused as exc:
            await self._failed(image, give_up_at, f"the download is not kept: {exc}")
        except OSError as exc:
            await self._failed(image, give_up_at, f"our disk: {exc.strerror}")
        else:
            await self._keeping.add((kept, self._clock()))
            self._metrics.images.labels("kept").inc()
            log.info("image_kept", job=image.job_id, n=image.n, bytes=kept.bytes, width=kept.width, height=kept.height)
            self._wakes.events_written()
        finally:
            self._leased.remove(image)

    async def _keep(self, images: Sequence[tuple[KeptImage, datetime]]) -> None:
        """Record kept images; log each result that is smaller than what was paid for."""
        jobs = await self._store.images.kept(images)
        for image, _ in images:
            job = jobs.get(image.job_id)
            if job is not None and enlargement(job, image)["upscaled"] is False:
                self._metrics.images.labels("not_upscaled").inc()
                log.warning("image_not_upscaled", job=image.job_id, n=image.n, width=image.width, height=image.height)

    async def _fetch(self, image: KeptImage, origin: str) -> KeptImage:
        if image.source_url is None:
            picture = await self._blobs.inspect_image(image.job_id, image.n)
        else:
            part, earlier = self._unfinished.take(image) or (PartWriter(self._blobs.new_part()), None)
            try:
                came = await self._download(image, part, origin, earlier)
                async with self._settling:
                    picture = await self._blobs.keep_image(
                        part, image.job_id, image.n, finish=came.finish, size=came.bytes
                    )
            except DownloadCut as exc:
                await self._unfinished.put(image, part, exc.arriving)
                raise
            except BaseException:
                await asyncio.to_thread(part.drop)
                raise
        return replace(
            image,
            content_type=picture.content_type,
            width=picture.width,
            height=picture.height,
            bytes=picture.size,
            sha256=picture.sha256,
        )

    async def _download(self, image: KeptImage, part: PartWriter, origin: str, earlier: Arriving | None) -> Arrived:
        """
        Fetch *image* into *part*, once its host has a place for it. Places are given in the order of claims.

        Goes on from what *earlier* tries brought, or begins again where its host does not.
        """
        assert image.source_url is not None
        patience = _DOWNLOAD_SECONDS[min(image.tries, len(_DOWNLOAD_SECONDS) - 1)]
        place_there = self._places_at.setdefault(origin, asyncio.Semaphore(MOST_PER_HOST))
        fetch = partial(
            self._outbound.fetch,
            image.source_url,
            part,
            max_bytes=_MAX_IMAGE_BYTES,
            timeout_seconds=patience,
            hosts=self._hosts,
        )
        try:
            async with place_there, self._places:
                try:
                    return await fetch(resume=earlier)
                except NotContinued:
                    if earlier is None:
                        raise
                    await asyncio.to_thread(part.restart)
                    return await fetch()
        finally:
            self._held -= Counter([origin])
            self.loop.wake()

    async def _failed(
        self, image: KeptImage, give_up_at: datetime, last_error: str, *, dead: bool = False, refused: bool = False
    ) -> None:
        """Try again, renew or give up. *dead*: the linked file can never be kept; *refused*: its host may relent."""
        now, last_error = self._clock(), last_error[:300]
        over = dead or now >= give_up_at
        if (over or (refused and image.tries + 1 >= _REFUSALS)) and await self._ask_for_link(image, now, last_error):
            return
        if over:
            await self._store.images.lost(image, now, last_error=last_error)
            self._metrics.images.labels("lost").inc()
            log.error("image_lost", job=image.job_id, n=image.n, reason=last_error)
            self._wakes.events_written()
            return
        self._metrics.images.labels("again").inc()
        log.warning("image_not_kept_yet", job=image.job_id, n=image.n, tries=image.tries + 1, reason=last_error)
        pause = timedelta(seconds=_PAUSES[min(image.tries, len(_PAUSES) - 1)])
        await self._store.images.later(image, next_at=min(now + pause, give_up_at), last_error=last_error)

    async def _ask_for_link(self, image: KeptImage, now: datetime, last_error: str) -> bool:
        """Ask for a fresh link, a few times at most until the provider has answered once. Returns whether it did."""
        if image.source_url is None or image.renewed_at is not None or image.renewals >= len(_RENEWALS):
            return False
        asked = await self._store.images.ask_for_link(
            image,
            now,
            providers=self._renewable,
            next_at=now + timedelta(seconds=_RENEWALS[image.renewals]),
            last_error=last_error,
        )
        if asked:
            self._metrics.images.labels("renewed").inc()
            log.warning("image_link_renewed", job=image.job_id, n=image.n, reason=last_error)
            self._wakes.poller.set()
        return asked

    async def _renew(self) -> float:
        if self._leased:
            await self._store.images.renew(list(self._leased), self._clock(), lease=LEASE)
        return LEASE.total_seconds() / 4


class Unfinished:
    """
    Downloads that were cut, for their next try: the file and what is known of it. The oldest go first, when there are
    too many or they are too large. Nobody else knows of them; after a death they are dropped as parts.
    """

    def __init__(self, *, most: int = 16, most_bytes: int = 1 << 30) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._cut: dict[tuple[str, int], tuple[str | None, PartWriter, Arriving]] = {}

    def take(self, image: KeptImage) -> tuple[PartWriter, Arriving] | None:
        """Take the received part of *image*, if it is still wanted from the same link."""
        found = self._cut.get((image.job_id, image.n))
        if found is None or found[0] != image.source_url:
            return None
        del self._cut[image.job_id, image.n]
        return found[1:]

    async def put(self, image: KeptImage, part: PartWriter, arriving: Arriving) -> None:
        """Keep *part* for the next try of *image*; what it replaces, and what is too much, is dropped."""
        dropped = [self._cut.pop((image.job_id, image.n), None)]
        await asyncio.to_thread(part.pause)
        self._cut[image.job_id, image.n] = (image.source_url, part, arriving)
        while len(self._cut) > self._most or sum(cut.size for *_, cut in self._cut.values()) > self._most_bytes:
            dropped.append(self._cut.pop(next(iter(self._cut))))
        for cut in dropped:
            if cut is not None:
                await asyncio.to_thread(cut[1].drop)


def _origin(image: KeptImage) -> str:
    """Return `https://host` of its link; empty for an image that arrived as bytes."""
    return "://".join(urlsplit(image.source_url)[:2]) if image.source_url else ""
