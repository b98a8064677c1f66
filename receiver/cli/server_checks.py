"""Checks of the running receiver, for `receiver doctor`: its keys may be set in its own environment only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC

import httpx
from prometheus_client.parser import text_string_to_metric_families

from receiver.cli.clock_skew import Clocks
from receiver.cli.findings import Finding, fail, ok, warn
from submitter.bounded import BoundedTransport
from submitter.connecting import Address, checked_url, find_receiver
from submitter.errors import RequestRefused, SubmitterError, Unauthorized
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.link import is_hopeless
from submitter.sdk.values import ProviderInfo

_PATIENCE_SECONDS = 10.0
_LAG_SECONDS = 60.0
_QUEUES = {"unread": "callbacks and answers to read", "due_polls": "polls that are due"}
"""Queues that are always short in a healthy receiver; deliveries and images may wait for others."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Findings, and the providers as the server has them; None if it did not answer or refused our token."""

    findings: Sequence[Finding]
    providers: Sequence[ProviderInfo] | None = None


async def ask_server(url: str, *, profile: str | None = None, named: bool, clocks: Clocks | None = None) -> Asked:
    """
    Query the receiver at *url*. *named*: the user named the URL, so that its absence is a failure.

    The token is found as `submitter` finds it. A server that is down or refuses is a finding. *clocks* records its
    time.
    """
    grade: Callable[[str, str, str], Finding] = fail if named else warn
    base = checked_url(url)
    try:
        async with httpx.AsyncClient(transport=BoundedTransport(), timeout=_PATIENCE_SECONDS) as client:
            answer = await client.get(f"{base}/healthz")
        if clocks is not None:
            clocks.note(answer)
    except httpx.TransportError as exc:
        if isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout) and not is_hopeless(exc):
            found = f"no receiver answers at {base} ({type(exc).__name__})"
            remedy = "start `receiver serve`, or say where it answers: --receiver URL"
            return Asked([grade("server", found + ("" if named else "; only this environment is judged"), remedy)])
        # Something answers, and the client below says what is wrong with it.
    try:
        address = find_receiver(base, profile=profile)
        async with AsyncClient(address.url, address.token, timeout=_PATIENCE_SECONDS) as receiver:
            providers = await receiver.providers()
            readiness = await _readiness(receiver)
    except Unauthorized:
        remedy = "set SUBMITTER_TOKEN, or run this with the server's RECEIVER_DATA_DIR or RECEIVER_API_TOKENS"
        return Asked([grade("server", f"{base} takes no token that is known here", remedy)])
    except SubmitterError as exc:
        remedy = "see its log; or say where the receiver answers: --receiver URL"
        return Asked([grade("server", str(exc), getattr(exc, "remedy", None) or remedy)])
    findings = [*readiness, *_provider_findings(providers), *await _lag(address)]
    return Asked(findings, providers)


async def _readiness(receiver: AsyncClient) -> list[Finding]:
    try:
        health = await receiver.health()
    except RequestRefused:  # under its public name it does not answer that
        return [ok("server", f"{receiver.url} answers")]
    if health.ready:
        return [ok("server", f"{receiver.url} is ready")]
    wrong = "; ".join(f"{check}: {found}" for check, found in health.checks.items() if found != "ok")
    return [fail("server", f"{receiver.url} is not ready: {wrong}", "see its log")]


def _provider_findings(providers: Sequence[ProviderInfo]) -> list[Finding]:
    findings = []
    for info in providers:
        lost = info.health.get("lost_callbacks")
        if info.paused is not None:
            since = f" since {info.paused.since.astimezone(UTC):%Y-%m-%d %H:%M}Z" if info.paused.since else ""
            remedy = f"put right what it says, then `receiver providers resume {info.name}`"
            findings.append(fail(f"{info.name} pause", f"paused{since}: {info.paused.reason}", remedy))
        if info.health.get("degraded"):
            share = f"{lost:.0%} of its last callbacks" if isinstance(lost, float) else "callbacks"
            remedy = "see the findings about the public URL; its jobs are polled meanwhile"
            findings.append(warn(f"{info.name} callbacks", f"{share} got lost", remedy))
        if info.configured and not info.capabilities.takes_files:
            remedy = "set RECEIVER_PUBLIC_URL where it runs, or give images by a public URL"
            what = "takes images by URL only and the receiver has no public URL: jobs with a file are refused"
            findings.append(warn(f"{info.name} images", what, remedy))
    if not any(info.configured for info in providers):
        remedy = "set FREEPIK_API_KEY or another provider's in its environment and start it again"
        findings.append(fail("providers", "the running receiver has no key of any", remedy))
    return findings


async def _lag(address: Address) -> list[Finding]:
    """Check how far behind it is; no findings if its metrics are not available."""
    try:
        async with httpx.AsyncClient(transport=BoundedTransport(), timeout=_PATIENCE_SECONDS) as client:
            answer = await client.get(f"{address.url}/metrics")
        if answer.status_code != 200:
            return []
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        waiting, oldest = (
            {sample.labels["queue"]: sample.value for sample in families[name].samples}
            for name in ("receiver_waiting", "receiver_oldest_seconds")
        )
        overdue = sum(sample.value for sample in families["receiver_jobs_overdue"].samples)
    except (httpx.TransportError, ValueError, KeyError):
        return []
    late = [
        warn("lag", f"{waiting[queue]:.0f} {what}, the oldest for {oldest[queue]:.0f} s", "see its log and its load")
        for queue, what in _QUEUES.items()
        if oldest.get(queue, 0) > _LAG_SECONDS
    ]
    if overdue:
        remedy = "`receiver jobs list --state unconfirmed --state running` shows them"
        late.append(warn("jobs", f"{overdue:.0f} are overdue", remedy))
    counts = ", ".join(f"{waiting.get(queue, 0):.0f} {queue}" for queue in ("unread", "queued", "deliveries", "images"))
    return late or [ok("lag", f"nothing waits too long ({counts})")]
