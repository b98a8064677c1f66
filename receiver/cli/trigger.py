"""`receiver trigger`: send a realistic callback into a running `serve --sandbox`, and show its effect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import httpx
import typer

from receiver.cli.sandbox_mark import SandboxMark
from receiver.domain.jobs import Verdict
from receiver.parts import Credentials
from receiver.settings import Settings, load
from submitter import tls
from submitter.commands.names import check_provider, complete_provider
from submitter.printing import Listing, failed, print_json, print_table, say
from submitter.providers import PROVIDERS
from submitter.sandbox import CALLBACK_STATES, TWIST_FAULTS, Twist, announced_state, test_picture
from submitter.vocabulary import Trust

_PATIENCE_SECONDS = 15.0
_PAUSE_SECONDS = 0.05


_STATES = "; ".join(f"{name}: {', '.join(words)}" for name, words in CALLBACK_STATES.items() if words)
_FAULTS = "; ".join(f"{name}: {what}" for name, what in TWIST_FAULTS.items())


def trigger(
    provider: Annotated[
        str | None, typer.Argument(help="Which provider calls back.", autocompletion=complete_provider)
    ] = None,
    state: Annotated[
        str | None, typer.Argument(help=f"The provider's own word for the task's state. {_STATES}.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="Call back about this job; default: a new one.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(help="Set a field of the body, as path=value: data.status=ODD. May be repeated."),
    ] = None,
    faults: Annotated[list[str] | None, typer.Option(help=f"What goes wrong; may be repeated. {_FAULTS}.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print providers and states, and send nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Have the sandbox of a running `receiver serve --sandbox` call back, and show its effect."""
    if listed:
        _print_states(as_json)
        return
    if provider is None or state is None:
        raise failed("name both: `receiver trigger PROVIDER STATE`; `receiver trigger --list` lists them", status=2)
    _check(provider, state)
    try:
        twist = Twist(
            dict(_override(text) for text in override or ()),
            frozenset(name.strip() for text in faults or () for name in text.split(",")),
        )
    except ValueError as exc:
        raise failed(str(exc), status=2) from exc
    settings, _ = load()
    found = SandboxMark(settings.data_dir).read()
    if found is None:
        raise failed(f"no `receiver serve --sandbox` runs with the data directory {settings.data_dir}; start one")
    try:
        outcome = asyncio.run(_trigger(settings, found, provider, state, twist, job))
    except httpx.TransportError as exc:
        raise failed("the sandbox or its receiver does not answer; start `receiver serve --sandbox` again") from exc
    if as_json:
        print_json(outcome)
    else:
        _print(outcome)


def _check(provider: str, state: str) -> None:
    """Refuse a callback that can't be made, before there is a job."""
    check_provider(provider)
    if not CALLBACK_STATES[provider]:
        polled = PROVIDERS[provider].pollable
        instead = "its jobs are polled" if polled else "it answers the submit call with the result"
        raise failed(f"{provider} sends no callbacks: {instead}", status=2)
    try:
        announced_state(provider, state)
    except ValueError as exc:
        raise failed(str(exc), status=2) from exc


def _override(text: str) -> tuple[str, Any]:
    path, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--override {text!r}: write it as path=value")
    try:
        return path, json.loads(value)
    except (ValueError, RecursionError):
        return path, value


def _print_states(as_json: bool) -> None:
    if as_json:
        print_json({"items": [{"provider": name, "states": list(words)} for name, words in CALLBACK_STATES.items()]})
        return
    table = Listing("provider", "states")
    for name, words in CALLBACK_STATES.items():
        table.add_row(name, ", ".join(words) or "(sends no callbacks)")
    print_table(table)


async def _trigger(
    settings: Settings, found: dict[str, str], provider: str, state: str, twist: Twist, job_id: str | None
) -> dict[str, Any]:
    credentials = Credentials.of(settings)
    headers = {"authorization": f"Bearer {credentials.api_tokens[0]}"}
    async with httpx.AsyncClient(trust_env=False, verify=tls.context(), timeout=30) as client:
        api = _Api(client, found["receiver"], headers)
        job = await api.job(job_id) if job_id else await api.new_job(provider)
        if job["provider"] != provider:
            raise failed(f"{job['id']} is a job of {job['provider']}")
        seen = max((piece["id"] for piece in await api.evidence(job["id"])), default=0)
        base = settings.public_url or found["receiver"]
        asked = {
            "provider": provider,
            "state": state,
            "callback_url": f"{base}/callbacks/{provider}/{credentials.tokens.callback(job['id'], provider)}",
            "task_id": job["remote_id"],
            "overrides": twist.overrides,
            "faults": sorted(twist.faults),
        }
        answer = await client.post(f"{found['sandbox']}/_sandbox/trigger", json=asked)
        sent = answer.json()
        if answer.status_code != 200:
            raise failed(sent["error"])
        times = 0 if "lose" in twist.faults else 1 + len(twist.faults & {"duplicate", "replay"})
        evidence = await api.read_callback(job["id"], seen) if times else None
        after = await api.job(job["id"])
    return {
        "provider": provider,
        "sent": {"task_id": sent["task_id"], "state": sent["state"], "times": times},
        "answered": sent["status"] or sent["error"],
        "verdict": evidence and evidence["verdict"],
        "trust": evidence and evidence["trust"],
        "job": {"id": job["id"], "was": job["state"], "is": after["state"], "settled_by": after["settled_by"]},
    }


class _Api:
    """The calls to the receiver that are needed here."""

    def __init__(self, client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> None:
        self._client = client
        self._url = url
        self._headers = headers

    async def job(self, job_id: str) -> dict[str, Any]:
        return await self._get(f"/v1/jobs/{job_id}")

    async def evidence(self, job_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = "0"
        while cursor:
            page = await self._get(f"/v1/jobs/{job_id}/evidence?limit=200&cursor={cursor}")
            found += page["items"]
            cursor = page["next"]
        return found

    async def new_job(self, provider: str) -> dict[str, Any]:
        """Return a new job with a generated picture, once the provider has accepted it."""
        answer = await self._client.post(
            f"{self._url}/v1/jobs",
            headers=self._headers,
            data={"job": json.dumps({"provider": provider, "metadata": {"made_by": "receiver trigger"}})},
            files={"image": ("picture.jpg", test_picture(160, 120))},
        )
        if answer.status_code != 202:
            raise failed(f"the receiver takes no job: {answer.json().get('detail', answer.status_code)}")
        job_id = answer.json()["id"]

        async def sent() -> dict[str, Any] | None:
            job = await self.job(job_id)
            return job if job["remote_id"] else None

        job: dict[str, Any] | None = await _eventually(sent)
        if job is None:
            raise failed(f"{job_id} was not sent; see `receiver jobs explain {job_id}`")
        return job

    async def read_callback(self, job_id: str, after: int) -> dict[str, Any] | None:
        """Return the callback that follows evidence *after*, once it was read and, if a hint, confirmed by a poll."""

        async def read() -> dict[str, Any] | None:
            new = [piece for piece in await self.evidence(job_id) if piece["id"] > after]
            callback = next((piece for piece in new if piece["source"] == "callback"), None)
            if callback is None or callback["verdict"] == "received":
                return None
            polled = any(
                piece["source"] == "poll" and piece["id"] > callback["id"] and piece["read_at"] for piece in new
            )
            return callback if callback["verdict"] != "hint" or polled else None

        found: dict[str, Any] | None = await _eventually(read)
        return found

    async def _get(self, path: str) -> dict[str, Any]:
        answer = await self._client.get(self._url + path, headers=self._headers)
        found: dict[str, Any] = answer.json()
        if not answer.is_success:
            raise failed(str(found.get("detail", answer.status_code)))
        return found


async def _eventually(condition: Callable[[], Awaitable[dict[str, Any] | None]]) -> dict[str, Any] | None:
    for _ in range(round(_PATIENCE_SECONDS / _PAUSE_SECONDS)):
        if (found := await condition()) is not None:
            return found
        await asyncio.sleep(_PAUSE_SECONDS)
    return None


def _print(outcome: dict[str, Any]) -> None:
    job, sent = outcome["job"], outcome["sent"]
    if not sent["times"]:
        say(f"{outcome['provider']}: task {sent['task_id']} is {sent['state']}; its callback was lost")
        return
    twice = f" {sent['times']} times" if sent["times"] > 1 else ""
    answered = f"answered {outcome['answered']}"
    say(f"{outcome['provider']} called back{twice}: task {sent['task_id']} is {sent['state']}; {answered}")
    if (outcome["verdict"], outcome["trust"]) == (Verdict.BELIEVED, Trust.SIGNED_BODY):
        say("evidence: signature verified")
    else:
        trust = f" (trust {outcome['trust']})" if outcome["trust"] else ""
        say(f"evidence: {outcome['verdict'] or 'nothing was recorded'}{trust}")
    by = f", settled by {job['settled_by']}" if job["settled_by"] else ""
    say(f"job {job['id']}: {job['was']} → {job['is']}{by}")
    say(f"details: receiver jobs explain {job['id']}", dim=True)
