"""`receiver trigger`: one realistic callback into a running `serve --sandbox`, and what became of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import httpx
import typer

from receiver.cli.sandbox_mark import SandboxMark
from receiver.parts import Credentials
from receiver.settings import Settings, load
from submitter.printing import failed, print_json, say
from submitter.providers import PROVIDERS
from submitter.sandbox import test_picture

_PATIENCE_SECONDS = 15.0
_PAUSE_SECONDS = 0.05


def trigger(
    provider: Annotated[str, typer.Argument(help=f"One of {', '.join(PROVIDERS)}.")],
    state: Annotated[str, typer.Argument(help="The provider's own word for the task's state, such as `completed`.")],
    job: Annotated[str | None, typer.Option(help="Call back about this job; default: a new one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Have the sandbox of a running `receiver serve --sandbox` call back, and show what became of it."""
    if provider not in PROVIDERS:
        raise failed(f"there is no provider {provider!r}; there are {', '.join(PROVIDERS)}")
    kind = PROVIDERS[provider]
    if not kind.callbacks:
        instead = "its jobs are polled" if kind.pollable else "it answers the submit call with the result"
        raise failed(f"{provider} sends no callbacks: {instead}")
    settings, _ = load()
    found = SandboxMark(settings.data_dir).read()
    if found is None:
        raise failed(f"no `receiver serve --sandbox` runs with the data directory {settings.data_dir}; start one")
    try:
        outcome = asyncio.run(_trigger(settings, found, provider, state, job))
    except httpx.TransportError as exc:
        raise failed("the sandbox or its receiver does not answer; start `receiver serve --sandbox` again") from exc
    if as_json:
        print_json(outcome)
    else:
        _print(outcome)


async def _trigger(
    settings: Settings, found: dict[str, str], provider: str, state: str, job_id: str | None
) -> dict[str, Any]:
    credentials = Credentials.of(settings)
    headers = {"authorization": f"Bearer {credentials.api_tokens[0]}"}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        api = _Api(client, found["receiver"], headers)
        job = await api.job(job_id) if job_id else await api.new_job(provider)
        if job["provider"] != provider:
            raise failed(f"{job['id']} is a job of {job['provider']}")
        seen = max((one["id"] for one in await api.evidence(job["id"])), default=0)
        base = settings.public_url or found["receiver"]
        asked = {
            "provider": provider,
            "state": state,
            "callback_url": f"{base}/callbacks/{provider}/{credentials.tokens.callback(job['id'], provider)}",
            "task_id": job["remote_id"],
        }
        answer = await client.post(f"{found['sandbox']}/_sandbox/trigger", json=asked)
        sent = answer.json()
        if answer.status_code != 200:
            raise failed(sent["error"])
        evidence = await api.read_callback(job["id"], seen)
        after = await api.job(job["id"])
    return {
        "provider": provider,
        "sent": {"task_id": sent["task_id"], "state": sent["state"]},
        "answered": sent["status"] or sent["error"],
        "verdict": evidence and evidence["verdict"],
        "trust": evidence and evidence["trust"],
        "job": {"id": job["id"], "was": job["state"], "is": after["state"], "settled_by": after["settled_by"]},
    }


class _Api:
    """The few calls that are needed of the receiver."""

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
        """A job with a picture of our own, once the provider has taken it."""
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
        """The callback that came after evidence *after*, once it was read and, being a hint, confirmed by a poll."""

        async def read() -> dict[str, Any] | None:
            new = [one for one in await self.evidence(job_id) if one["id"] > after]
            callback = next((one for one in new if one["source"] == "callback"), None)
            if callback is None or callback["verdict"] == "received":
                return None
            polled = any(one["source"] == "poll" and one["id"] > callback["id"] and one["read_at"] for one in new)
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
    say(f"{outcome['provider']} called back: task {sent['task_id']} is {sent['state']}; answered {outcome['answered']}")
    trust = f" (trust {outcome['trust']})" if outcome["trust"] else ""
    say(f"evidence: {outcome['verdict'] or 'nothing was recorded'}{trust}")
    by = f", settled by {job['settled_by']}" if job["settled_by"] else ""
    say(f"job {job['id']}: {job['was']} → {job['is']}{by}")
    say(f"all of it: receiver jobs explain {job['id']}", dim=True)
