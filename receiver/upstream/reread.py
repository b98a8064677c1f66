"""
Reading old evidence again, after a reader was fixed or a secret was corrected.

Evidence read again changes a job only as a new update would: an ended job stays as it is, events are emitted only for
changes, and an old answer to one of our calls counts for what it says about the task, not for what to do next. Small
batches, each settled in one transaction, allow it to run alongside a working receiver.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from receiver.domain.entity import iso
from receiver.domain.evidence import Evidence, EvidenceFilter
from receiver.domain.jobs import Source, Verdict
from receiver.domain.polling import Timing
from receiver.store.blobs import Blobs
from receiver.store.jobs import JobStore
from receiver.store.settling import EvidenceVerdict, JobUpdate
from receiver.upstream.reader import Reading, as_callback, keep_data
from submitter.errors import CallbackRefused
from submitter.provider import Provider

UNUSED = (Verdict.UNREADABLE, Verdict.IGNORED)
"""Verdicts of evidence that was put aside, and that a fixed reader may be able to use."""
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Reread:
    """The result for one piece of evidence. `state` and `events` are those of the job, if it changed."""

    evidence: Evidence
    verdict: Verdict
    changed: bool = False
    state: str | None = None
    events: tuple[str, ...] = ()
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "evidence": self.evidence.id,
            "job": self.evidence.job_id,
            "provider": self.evidence.provider,
            "source": self.evidence.source.value,
            "received_at": iso(self.evidence.received_at),
            "verdict_before": self.evidence.verdict.value,
            "verdict": self.verdict.value,
            "changed": self.changed,
            "state": self.state,
            "events": list(self.events),
            "note": self.note,
        }


class Rereading:
    """Reads evidence again with the readers of this version and the secrets in force."""

    def __init__(
        self,
        store: JobStore,
        providers: Mapping[str, Provider],
        blobs: Blobs,
        *,
        confirm: str,
        timing_of: Callable[[str], Timing],
    ) -> None:
        self._store = store
        self._providers = providers
        self._blobs = blobs
        self._timing_of = timing_of
        self._reading = Reading(store, providers, blobs, confirm=confirm)

    async def run(
        self, selection: EvidenceFilter, now: datetime, *, reverify: bool = False, dry_run: bool = False
    ) -> AsyncIterator[Reread]:
        """
        Read *selection* again, oldest first.

        Refused callbacks are verified again with *reverify*, as of when they were received, and skipped without it.
        """
        after = 0
        while found := await self._store.evidence.read_before(selection, after=after, limit=_BATCH):
            after = found[-1].id or 0
            wanted = [piece for piece in found if reverify or piece.verdict is not Verdict.REFUSED]
            for reread in await self._batch(wanted, now, dry_run=dry_run):
                yield reread

    async def _batch(self, found: Sequence[Evidence], now: datetime, *, dry_run: bool) -> list[Reread]:
        items: list[JobUpdate] = []
        read: list[Evidence] = []
        closed: list[EvidenceVerdict] = []
        done: list[Reread] = []
        refused = [piece for piece in found if piece.verdict is Verdict.REFUSED]
        repeats = await self._store.evidence.repeats(refused, also_later=True)
        for evidence in found:
            if evidence.verdict is Verdict.REFUSED:
                verified = self._verified(evidence)
                if isinstance(verified, Reread):
                    done.append(verified)
                    continue
                evidence_now = verified
            else:
                evidence_now = evidence
            if evidence.verdict is Verdict.DUPLICATE or evidence.id in repeats:
                done.append(Reread(evidence, Verdict.DUPLICATE))
                if evidence.verdict is not Verdict.DUPLICATE:
                    closed.append((evidence.id, Verdict.DUPLICATE, None))
                continue
            said = await self._reading.read(evidence_now, now, again=True)
            put_aside = evidence.verdict in (*UNUSED, Verdict.REFUSED)
            if said.update is None or evidence.job_id is None:
                verdict = said.verdict or Verdict.IGNORED
                if put_aside:
                    closed.append((evidence.id, verdict, said.note))
                done.append(Reread(evidence, verdict if put_aside else evidence.verdict, note=said.note))
                continue
            update = said.update if dry_run else await keep_data(self._blobs, evidence.job_id, said.update)
            number = evidence.id if put_aside else None
            items.append(JobUpdate(evidence.job_id, update, number, said.verdict, evidence_now.trust))
            read.append(evidence)
        settled = await self._store.settle(items, now, self._timing_of, closed, again=True, dry_run=dry_run)
        for evidence, change, moved in zip(read, settled.changes, settled.moved, strict=True):
            put_aside = evidence.verdict in (*UNUSED, Verdict.REFUSED)
            if change is None:
                done.append(Reread(evidence, Verdict.IGNORED, note="there is no such job"))
                continue
            verdict = change.verdict if put_aside else evidence.verdict
            done.append(Reread(evidence, verdict, moved, change.job.state.value if moved else None, change.events))
        return sorted(done, key=lambda reread: reread.evidence.id or 0)

    def _verified(self, evidence: Evidence) -> Evidence | Reread:
        """Return the evidence with the trust that it deserves now, or the result that it is still refused."""
        provider = self._providers.get(evidence.provider)
        if provider is None or evidence.source is not Source.CALLBACK:
            return Reread(evidence, Verdict.REFUSED, note="this provider is not known here")
        try:
            provider.verify(as_callback(evidence), evidence.received_at)
        except CallbackRefused as exc:
            return Reread(evidence, Verdict.REFUSED, note=f"{exc.reason}: {exc}")
        return replace(evidence, trust=provider.trust)
