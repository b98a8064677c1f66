"""
The parts of one process, built in the order of their dependencies.

Loops that give each other work meet at `Wakes`, which exists before them all, so that no part is built from a promise
of another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import structlog

from receiver.domain.polling import Timing
from receiver.domain.tokens import Tokens
from receiver.downstream.notifier import DeliveryPolicy, Notifier
from receiver.downstream.sequencer import Sequencer
from receiver.downstream.stream import Stream
from receiver.net.client import Outbound
from receiver.net.guard import Guard
from receiver.runtime.announcements import Announcements
from receiver.runtime.loops import Loop
from receiver.runtime.metrics import Metrics
from receiver.runtime.secrets import generated
from receiver.runtime.wakes import Wakes
from receiver.settings import Settings, check_shared_secrets
from receiver.store.blobs import Blobs, open_blobs
from receiver.store.clock import ClockRecord
from receiver.store.database import Database, open_database
from receiver.store.deliveries import Deliveries
from receiver.store.delivery_log import DeliveryLog
from receiver.store.endpoints import Endpoints
from receiver.store.errors import StoreError
from receiver.store.events import Events
from receiver.store.jobs import JobStore
from receiver.store.object_store import warn_if_unreachable
from receiver.store.providers import ProviderTable
from receiver.store.retention import Pruning, Retention
from receiver.upstream.archive import Archive
from receiver.upstream.callback_watch import CallbackWatch
from receiver.upstream.intake import Intake
from receiver.upstream.leases import Leases
from receiver.upstream.pauses import Pauses
from receiver.upstream.poller import MOST_POLLS, Poller
from receiver.upstream.presence import ProviderPresence
from receiver.upstream.rate_limits import Pace
from receiver.upstream.rollups import Rollups
from receiver.upstream.slots import ProviderSlot
from receiver.upstream.statistics import ProviderStatistics
from receiver.upstream.submissions import Submissions
from receiver.upstream.task_preparation import TaskPreparation
from submitter.client import HttpSender
from submitter.provider import Provider
from submitter.provider_settings import ProviderSettings, Rate
from submitter.providers import PROVIDERS

_CLOCK_SECONDS = 10.0
_CHECKPOINT_SECONDS = 0.5
log = structlog.get_logger("receiver")

_GRACE_SECONDS = 3.0


class Role(StrEnum):
    """A role of a process. One process may have all of them; any number of processes may share a database."""

    WEB = "web"
    """Answers requests: callbacks, inputs, the API, the dashboard, the event stream. Needs no provider key."""
    READER = "reader"
    """Reads evidence, settles jobs, and does maintenance."""
    SUBMISSIONS = "submissions"
    POLLER = "poller"
    ARCHIVE = "archive"
    NOTIFIER = "notifier"


EVERYTHING = frozenset(Role)
WORKERS = EVERYTHING - {Role.WEB}


@dataclass(frozen=True, slots=True)
class Credentials:
    """The secrets of this service: those that are set, else those generated into the data directory."""

    tokens: Tokens
    api_tokens: tuple[str, ...]
    read_tokens: tuple[str, ...]
    notify_secrets: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> Credentials:
        check_shared_secrets(settings)
        made = generated(settings.data_dir)
        keys = [key.get_secret_value() for key in settings.secret_keys] or [made["secret_key"]]
        return cls(
            Tokens(keys),
            tuple(token.get_secret_value() for token in settings.api_tokens) or (made["api_token"],),
            tuple(token.get_secret_value() for token in settings.read_tokens),
            tuple(secret.get_secret_value() for secret in settings.notify_secrets) or (made["notify_secret"],),
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts of a process, whatever its *roles*; `loops` are those of its roles, not yet running."""

    roles: frozenset[Role]

    database: Database
    blobs: Blobs
    outbound: Outbound
    store: JobStore
    slots: Mapping[str, ProviderSlot]
    presence: ProviderPresence
    pauses: Pauses
    statistics: ProviderStatistics
    leases: Leases
    wakes: Wakes
    intake: Intake
    submissions: Submissions
    poller: Poller
    archive: Archive
    endpoints: Endpoints
    delivery_log: DeliveryLog
    notifier: Notifier
    events: Events
    stream: Stream
    loops: tuple[Loop, ...]

    async def stop(self, tasks: list[asyncio.Task[None]]) -> None:
        """
        End the *tasks* of the loops: calls in flight get a few seconds, and the reader settles their answers.

        Leases are renewed to the end.
        """
        last = {f"loop {self.intake.loop.name}", f"loop {self.leases.loop.name}"}
        for task in tasks:
            if task.get_name() not in last:
                task.cancel()
        await asyncio.gather(
            *(pool.shutdown(grace_seconds=_GRACE_SECONDS) for pool in self.submissions.pools.values()),
            self.poller.shutdown(grace_seconds=_GRACE_SECONDS),
            self.archive.pool.shutdown(grace_seconds=_GRACE_SECONDS / 2),
            self.notifier.shutdown(grace_seconds=_GRACE_SECONDS / 2),
        )
        if Role.READER in self.roles:
            with contextlib.suppress(TimeoutError, StoreError):  # what stays unread is read at the next start
                async with asyncio.timeout(2):
                    while await self.intake.read_some() == 0.0:
                        pass
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def build(
    settings: Settings,
    each: Mapping[str, ProviderSettings],
    stack: contextlib.AsyncExitStack,
    *,
    roles: frozenset[Role],
    credentials: Credentials,
    metrics: Metrics,
    stopping: asyncio.Event,
    public_url: Callable[[], str | None],
) -> Parts:
    """Open the database and build all parts; *stack* closes everything that they hold open."""
    blobs = open_blobs(settings.data_dir, settings.blob_url)
    if blobs.objects is not None:
        await warn_if_unreachable(blobs.objects)
    await asyncio.to_thread(blobs.prepare)
    stack.callback(blobs.close)
    database = await open_database(settings.database_address, listen_url=settings.database_listen_url)
    stack.push_async_callback(database.close)
    guard = Guard(settings.allow_networks)
    outbound = await stack.enter_async_context(Outbound(guard))
    sender = await stack.enter_async_context(HttpSender())
    shared = Announcements(database.notify, database.listen)
    wakes = shared.wakes()

    store = JobStore(database, public_url=lambda: public_url() or "", first_delay_seconds=settings.retry_schedule[0])
    pauses = Pauses(database)
    await pauses.load()
    statistics = ProviderStatistics(database)
    await statistics.load()
    slots = {name: slot(settings, PROVIDERS[name].from_settings(its), its) for name, its in each.items()}

    leases = Leases(store.leases)
    intake = Intake(store, slots, blobs, metrics, confirm=settings.confirm, wakes=wakes)
    preparation = TaskPreparation(blobs, credentials.tokens, public_url)
    submissions = Submissions(intake, slots, pauses, leases, preparation, sender, metrics)
    poller = Poller(intake, slots, leases, sender, metrics)
    renewable = [name for name, its in slots.items() if its.configured and its.provider.pollable]
    archive = Archive(store, blobs, outbound, metrics, wakes=wakes, renewable=renewable, hosts=settings.result_hosts)

    endpoints = Endpoints(database)
    notifier = Notifier(
        Deliveries(database),
        endpoints,
        lambda: Outbound(guard, max_connections=1),
        metrics,
        DeliveryPolicy(secrets=credentials.notify_secrets, schedule=settings.retry_schedule),
        handover=store.handover,
        wakes=wakes,
    )
    events = Events(database)
    numbered = shared.event("positions") if settings.on_postgresql else wakes.stream
    stream = Stream(events, stopping, woken=numbered)
    parts = Parts(
        roles=roles,
        database=database,
        blobs=blobs,
        outbound=outbound,
        store=store,
        slots=slots,
        presence=ProviderPresence(slots, ProviderTable(database), works=Role.SUBMISSIONS in roles),
        pauses=pauses,
        statistics=statistics,
        leases=leases,
        wakes=wakes,
        intake=intake,
        submissions=submissions,
        poller=poller,
        archive=archive,
        endpoints=endpoints,
        delivery_log=DeliveryLog(database),
        notifier=notifier,
        events=events,
        stream=stream,
        loops=(),
    )
    return replace(parts, loops=await _loops(parts, settings, shared, numbered))


async def _loops(parts: Parts, settings: Settings, shared: Announcements, numbered: asyncio.Event) -> tuple[Loop, ...]:
    """Return the loops of the roles of *parts*, and those of every process. *numbered* is set with new positions."""
    database, slots, wakes = parts.database, parts.slots, parts.wakes
    clock = ClockRecord(database)

    async def watch_clock() -> float:
        step = await clock.beat(datetime.now(UTC))
        if step is not None:
            await parts.pauses.load()
            log.warning("clock_set_back", seconds=step.total_seconds(), effect="what was due is due by the new time")
        return _CLOCK_SECONDS

    async def checkpoint() -> float:
        await database.checkpoint()
        return _CHECKPOINT_SECONDS

    await watch_clock()
    await parts.presence.step()
    by_role = {
        Role.WEB: (parts.stream.loop,),
        Role.READER: (
            parts.intake.loop,
            Rollups(database, tuple(slots)).loop,
            Pruning(database, parts.blobs, keep=_retention(settings)).loop,
        ),
        Role.SUBMISSIONS: (parts.submissions.loop,),
        Role.POLLER: (parts.poller.loop,),
        Role.ARCHIVE: (parts.archive.loop, parts.archive.renewals),
        Role.NOTIFIER: (parts.notifier.loop, parts.notifier.renewals),
    }
    if settings.on_postgresql:
        of_engine = Sequencer(database, written=wakes.stream, numbered=numbered).loop
    else:
        of_engine = Loop("checkpoints", checkpoint, idle_seconds=_CHECKPOINT_SECONDS)
    return (
        Loop("clock", watch_clock, idle_seconds=_CLOCK_SECONDS),
        parts.leases.loop,
        CallbackWatch(parts.statistics, slots, wakes, judges=Role.READER in parts.roles).loop,
        *(loop for role in Role if role in parts.roles for loop in by_role[role]),
        parts.presence.loop,
        shared.loop,
        of_engine,
    )


def _retention(settings: Settings) -> Retention:
    def days(count: float | None) -> timedelta | None:
        return None if count is None else timedelta(days=count)

    return Retention(
        timedelta(days=settings.keep_days),
        jobs=days(settings.keep_jobs_days),
        events=days(settings.keep_events_days),
        images=days(settings.keep_images_days),
    )


def slot(settings: Settings, provider: Provider, its: ProviderSettings) -> ProviderSlot:
    """Return *provider* with its paces and timing, by the settings in force."""
    rates = provider.rates if its.rate is None else [its.rate]
    return ProviderSlot(
        provider=provider,
        pace=Pace(rates, concurrency=its.concurrency or provider.concurrency),
        poll_pace=Pace(_poll_rates(settings, provider, its.rate), concurrency=MOST_POLLS),
        configured=its.configured,
        usual=timing(settings, provider),
        early=timing(settings, provider, degraded=True),
    )


def timing(settings: Settings, provider: Provider, *, degraded: bool = False) -> Timing:
    """Return when to poll *provider*'s jobs; a *degraded* provider, whose callbacks get lost, is polled early."""
    rhythm, interval = provider.rhythm, settings.poll_interval
    first = interval or rhythm.first
    return Timing(
        first=first,
        interval=interval or rhythm.interval,
        silence=first if degraded else settings.callback_timeout,
        growth=rhythm.growth,
        cap=4 * interval if interval else rhythm.cap,
        lifetime=settings.job_timeout,
        pollable=provider.pollable,
    )


def _poll_rates(settings: Settings, provider: Provider, rate: Rate | None) -> list[Rate]:
    """
    Return the documented limits of status calls; an operator's own rate scales them in proportion.

    Empty where an operator sets POLL_INTERVAL, which alone then determines how often a job is polled.
    """
    if settings.poll_interval is not None:
        return []
    if rate is None or not provider.rates or not provider.poll_rates:
        return list(provider.poll_rates)
    documented = provider.rates[0].count / provider.rates[0].seconds
    factor = rate.count / rate.seconds / documented
    return [Rate(max(round(limit.count * max(factor, 1.0)), 1), limit.seconds) for limit in provider.poll_rates]
