"""
From evidence to updates: the meaning for its job of a callback, or of the answer to a poll or a submit call.

The provider's own readers do the work, on the stored bytes, so that everything can be read again after a crash or a
fix. Whatever they raise, a piece of evidence never blocks the others: an unreadable piece is marked, and its job is
resolved by a poll.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import httpx
import structlog

from receiver.domain.evidence import Evidence
from receiver.domain.jobs import Source, Verdict
from receiver.domain.lifecycle import Update
from receiver.domain.redaction import redact
from receiver.domain.tokens import job_of_callback_url
from receiver.runtime.logs import InfoLines
from receiver.store.blobs import Blobs
from receiver.store.errors import StoreError
from receiver.store.jobs import JobStore
from submitter.errors import (
    AccountRefused,
    AnswerLost,
    CallbackUnreadable,
    ProviderBusy,
    ProviderError,
    ProviderRefused,
    TaskNotFound,
)
from submitter.parsing import EMPTY_POLLS, lists_nothing
from submitter.provider import Provider
from submitter.vocabulary import Callback, Failure, Image, Report, State, Trust

log = structlog.get_logger("receiver.reading")
_CALLBACK_READ = InfoLines(log, "callback_read", "provider", "job", "status", on_terminals=True)

_DECODED = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
"""Stored bodies are decoded already."""


_PASSING = timedelta(minutes=10)
"""
How long an unreadable file may hold up all reading; after that, it counts as a fault of its piece, or a bad block would
stop everything. An unreadable database (a corrupt page) is never the evidence's fault: it stays unread until a backup
is restored.
"""


@dataclass(frozen=True, slots=True)
class Read:
    """The result of reading a piece. Without `update` it is closed with `verdict`; with it, `verdict` overrides."""

    update: Update | None
    verdict: Verdict | None = None
    note: str | None = None


class Reading:
    """Reads evidence with the providers' readers. *confirm* says which callbacks are hints (`RECEIVER_CONFIRM`)."""

    def __init__(self, store: JobStore, providers: Mapping[str, Provider], blobs: Blobs, *, confirm: str) -> None:
        self._store = store
        self._providers = providers
        self._blobs = blobs
        self._confirm = confirm

    async def read(self, evidence: Evidence, now: datetime, *, again: bool = False) -> Read:
        """
        Read *evidence*. Raises only for passing errors on our side (disk, database); then it stays unread.

        Read *again* (long after), an answer counts for what it says about the task, not for what to do next.
        """
        try:
            return _discreet(await self._read(evidence, now, again))
        except CallbackUnreadable as exc:
            log.warning("callback_unreadable", provider=evidence.provider, job=evidence.job_id, reason=str(exc))
            return Read(None, Verdict.UNREADABLE, str(exc))
        except FileNotFoundError as exc:
            return self._failed(evidence, exc, again)
        except StoreError:
            raise
        except OSError as exc:
            if now - evidence.received_at < _PASSING:
                raise
            return self._failed(evidence, exc, again)
        except Exception as exc:  # noqa: BLE001 (a bug in a reader must not stop the reading of all the others)
            return self._failed(evidence, exc, again)

    def _failed(self, evidence: Evidence, exc: Exception, again: bool) -> Read:
        log.error(
            "reader_failed",
            provider=evidence.provider,
            job=evidence.job_id,
            evidence=evidence.id,
            error=type(exc).__name__,
        )
        note = f"the reader failed: {type(exc).__name__}"
        return Read(None if again else _without_an_answer(evidence, note), Verdict.UNREADABLE, note)

    async def _read(self, evidence: Evidence, now: datetime, again: bool) -> Read:
        provider = self._providers.get(evidence.provider)
        if provider is None or evidence.job_id is None:
            return Read(None, Verdict.IGNORED, "this provider is not known here")
        if evidence.source is Source.CALLBACK:
            return self._callback(provider, evidence, again)
        body = evidence.body if evidence.body_name is None else await self._blobs.read_body(evidence.body_name)
        response = _response(evidence, body)
        if evidence.source is Source.RESPONSE:
            return await self._answer_to_submit(provider, evidence, response, now, again)
        return await self._poll_answer(provider, evidence, response, now, again)

    def _callback(self, provider: Provider, evidence: Evidence, again: bool) -> Read:
        report = provider.read(as_callback(evidence))
        if report is None:
            return Read(None, Verdict.IGNORED, "it is not about a task")
        if not again:
            _CALLBACK_READ.write([(provider.name, evidence.job_id, report.remote_status or report.state.value)])
        signed = evidence.trust is Trust.SIGNED_BODY
        if self._confirm == "never":
            believed = True
        elif self._confirm == "always" and provider.pollable:
            believed = signed and not report.state.terminal
        else:
            believed = signed
        if lists_nothing(report) and provider.pollable:
            believed = False  # done, and no image named: a paid result is not given up before a poll has asked for it
        return Read(
            Update(report, Source.CALLBACK, believed=believed, received_at=evidence.received_at, again=again), None
        )

    async def _answer_to_submit(
        self, provider: Provider, evidence: Evidence, response: httpx.Response, now: datetime, again: bool
    ) -> Read:
        try:
            report = provider.submitted(response)
        except ProviderError as exc:
            unreadable = _unreadable(exc)
            if again:
                return Read(None, unreadable or Verdict.IGNORED)
            found = await self._store.job(evidence.job_id) if evidence.job_id else None
            tries = found[0].tries if found else 0
            update = outcome_of(exc, tries=tries, alike=await self._alike(provider, evidence, exc), now=now)
            return Read(replace(update, asked_at=evidence.asked_at), unreadable)
        return Read(Update(report, Source.RESPONSE, asked_at=evidence.asked_at, again=again))

    async def _alike(self, provider: Provider, evidence: Evidence, exc: ProviderError) -> int:
        """Count the job's answers so far, this one included, of the kind that is retried only a few times."""
        if not isinstance(exc, ProviderBusy) or exc.tries is None:
            return 0
        count = 1
        for earlier in await self._store.evidence.answers_before(evidence):
            try:
                provider.submitted(_response(earlier, earlier.body))
            except ProviderBusy as other:
                count += other.tries is not None
            except ProviderError:
                continue
        return count

    async def _poll_answer(
        self, provider: Provider, evidence: Evidence, response: httpx.Response, now: datetime, again: bool
    ) -> Read:
        try:
            report = provider.polled(response)
        except ProviderError as exc:
            unreadable = _unreadable(exc)
            if again:
                return Read(None, unreadable or Verdict.IGNORED)
            log.warning("poll_failed", provider=provider.name, job=evidence.job_id, code=exc.code)
            pause = exc.retry_after_seconds
            update = Update(
                None,
                Source.POLL,
                retry_at=None if pause is None else now + timedelta(seconds=pause),
                last_error=f"poll: {exc.code}: {exc}"[:500],
                forget_claim=isinstance(exc, TaskNotFound),
                asked_at=evidence.asked_at,
            )
            return Read(update, unreadable)
        if await self._is_anothers(report, evidence):
            log.warning("task_of_another_job", provider=provider.name, job=evidence.job_id)
            error = "poll: the task that an unsigned callback named belongs to another job"
            forget = Update(None, Source.POLL, last_error=error, forget_claim=True, asked_at=evidence.asked_at)
            return Read(None if again else forget, Verdict.IGNORED, "it is about a task that was sent for another job")
        empty = 0 if again or not lists_nothing(report) else await self._empty_polls(provider, evidence)
        return Read(Update(report, Source.POLL, asked_at=evidence.asked_at, again=again, empty_polls=empty))

    async def _is_anothers(self, report: Report, evidence: Evidence) -> bool:
        """
        Return whether the task was submitted for something other than the job, as far as the answer shows.

        A job without a task id is polled by the id that an unsigned callback claims: anyone who knows the job's
        callback URL may name any task of the account.
        """
        if report.callback_url is None or job_of_callback_url(report.callback_url) == evidence.job_id:
            return False
        found = await self._store.job(evidence.job_id or "")
        return found is not None and found[0].remote_id is None

    async def _empty_polls(self, provider: Provider, evidence: Evidence) -> int:
        """Count the polls in a row, this one included, that found the job's task done and no image listed."""
        count = 1
        for earlier in await self._store.evidence.answers_before(evidence, limit=EMPTY_POLLS):
            try:
                if not lists_nothing(provider.polled(_response(earlier, earlier.body))):
                    break
            except ProviderError:
                break
            count += 1
        return count


def _discreet(read: Read) -> Read:
    """Redact the provider's description of a failure, which goes to events and pages and may quote our tokens."""
    update = read.update
    if update is None or (update.last_error is None and (update.report is None or update.report.error is None)):
        return read
    report, last_error = update.report, update.last_error
    if report is not None and report.error is not None:
        report = replace(report, error=replace(report.error, message=redact(report.error.message)))
    return replace(read, update=replace(update, report=report, last_error=last_error and redact(last_error)))


def holds_data(update: Update) -> bool:
    """Return whether *update* brings images as bytes."""
    return update.report is not None and any(image.data for image in update.report.images)


async def keep_data(blobs: Blobs, job_id: str, update: Update) -> Update:
    """Write images that arrived as bytes to disk; from then on they are rows like all others, already kept."""
    report = update.report
    if report is None or not holds_data(update):
        return update
    kept: list[Image] = []
    for n, image in enumerate(report.images):
        kept.append(image if image.data is None else await blobs.keep_data(job_id, n, image))
    return replace(update, report=replace(report, images=tuple(kept)))


def as_callback(evidence: Evidence) -> Callback:
    """Return the callback as it was received, from its evidence."""
    return Callback(
        headers=evidence.raw_headers(),
        body=evidence.body,
        received_at=evidence.received_at,
        peer=evidence.peer,
    )


def _response(evidence: Evidence, body: bytes) -> httpx.Response:
    # As bytes: httpx would encode texts as ASCII, and a name in a header may be anything.
    headers = [(name, value) for name, value in evidence.raw_headers() if name not in _DECODED]
    return httpx.Response(evidence.status or 0, headers=headers, content=body)


def outcome_of(exc: ProviderError, *, tries: int, now: datetime, alike: int = 0) -> Update:
    """
    Return the update for an unsuccessful submit call. *alike*: the number of such answers, where that counts.

    Refused: failed. Busy or not sent: queued again, later. Key or credit: queued again. Lost: unconfirmed.
    """
    last_error = f"submit: {exc.code}: {exc}"[:500]
    error = Failure(exc.code, str(exc), exc.permanent)
    if isinstance(exc, AnswerLost):
        return Update(Report(None, State.UNCONFIRMED, error=error), Source.RESPONSE, last_error=last_error)
    if isinstance(exc, ProviderRefused | TaskNotFound):
        return Update(Report(None, State.FAILED, error=error), Source.RESPONSE)
    if isinstance(exc, ProviderBusy) and exc.tries is not None and alike >= exc.tries:
        return Update(Report(None, State.FAILED, error=error), Source.RESPONSE)
    if isinstance(exc, AccountRefused):
        return Update(Report(None, State.QUEUED), Source.RESPONSE, retry_at=now, last_error=last_error)
    pause = exc.retry_after_seconds
    if pause is None:
        pause = min(2.0 ** min(max(tries - 1, 0), 6), 60.0)
    return Update(
        Report(None, State.QUEUED), Source.RESPONSE, retry_at=now + timedelta(seconds=pause), last_error=last_error
    )


def _unreadable(exc: ProviderError) -> Verdict | None:
    return Verdict.UNREADABLE if isinstance(exc, AnswerLost) and exc.code == "unreadable_answer" else None


def _without_an_answer(evidence: Evidence, note: str) -> Update | None:
    """Return the update for an answer that our reader failed on."""
    if evidence.source is Source.POLL:
        return Update(None, Source.POLL, last_error=f"poll: {note}", asked_at=evidence.asked_at)
    if evidence.source is Source.RESPONSE:
        error = Failure("unreadable_answer", note, permanent=False)
        report = Report(None, State.UNCONFIRMED, error=error)
        return Update(report, Source.RESPONSE, last_error=f"submit: {note}", asked_at=evidence.asked_at)
    return None
