"""Nothing that opens a door is ever printed: tokens, keys, secrets, signed links, prompts, payloads."""

from pathlib import Path

import httpx
import pytest

from receiver.domain.redaction import MASK, redact
from receiver.domain.tokens import Tokens
from submitter.sandbox import API_KEYS, FREEPIK_WEBHOOK_SECRET, Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.ports import free_port
from tests.support.processes import TOKEN, live, submit, wait_for_state
from tests.support.waiting import eventually

PROMPT = "a very private prompt about a dog in space"


async def test_no_secret_is_printed_whatever_happens_to_the_jobs(tmp_path: Path) -> None:
    faults = Faults(duplicate=0.5, forge=0.5, busy=1, bad_gateway=1, dead_links=1, fail=1, hang=1, hang_seconds=1)
    sandbox = Sandbox(seed=3, turnaround_seconds=(0.05, 0.2), faults=faults)
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        notify = f"http://127.0.0.1:{free_port()}/hook?secret=in-the-notify-url"
        jobs = [
            await submit(
                client,
                provider,
                picture_bytes(96, 96),
                options={"prompt": PROMPT} if provider == "freepik" else {},
                notify_url=notify,
            )
            for provider in ("freepik", "apixo", "novita", "upscayl", "pixelcut")
            for _ in range(3)
        ]
        states = [
            (await wait_for_state(client, job["id"], "succeeded", "failed", "unconfirmed"))["state"] for job in jobs
        ]
        assert len(set(states)) > 1, "the faults were meant to bring several outcomes"
        callback_urls = [task.callback_url for task in sandbox.tasks if task.callback_url]
        async with httpx.AsyncClient(trust_env=False) as stranger:
            for url in callback_urls:
                await stranger.post(url, content=b'{"payload-marker": "\xff')
                await stranger.post(f"{url}x", content=b"{}")
            await stranger.get(f"{receiver.url}/v1/jobs", headers={"authorization": "Bearer wrong-token-marker"})

        async def all_read() -> bool:
            return 'receiver_waiting{queue="unread"} 0.0' in (await client.get("/metrics")).text

        await eventually(all_read)
        shown = [(await client.get(f"/v1/jobs/{job['id']}/evidence")).text for job in jobs]
        links = [image["source_url"] for job in jobs for image in (await _job(client, job))["images"]]
    printed = receiver.log
    tokens = [url.rpartition("/")[2] for url in callback_urls]
    assert tokens
    assert links
    secrets = [
        *tokens,
        *links,
        *API_KEYS.values(),
        FREEPIK_WEBHOOK_SECRET,
        TOKEN,
        receiver.notify_secret,
        receiver.notify_secret.removeprefix("whsec_"),
        PROMPT,
        "in-the-notify-url",
        "payload-marker",
        "wrong-token-marker",
    ]
    assert [secret for secret in secrets if secret in printed] == []
    assert "callback" in printed, "the log was read, and something was in it"
    for token in tokens:
        assert all(token not in text for text in shown), "the API redacts capability URLs in evidence"


async def _job(client: httpx.AsyncClient, job: dict[str, object]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = (await client.get(f"/v1/jobs/{job['id']}")).json()
    return found


@pytest.mark.parametrize(
    "quoted",
    [
        "{url}",
        "the token {token} is unknown",
        "https%3A%2F%2Fhooks.example.com%2Fcallbacks%2Ffreepik%2F{token}",
        "https:\\/\\/hooks.example.com\\/callbacks\\/freepik\\/{token}",
        "https:\\\\/\\\\/hooks.example.com\\\\/callbacks\\\\/freepik\\\\/{token}",
        "https:\\u002f\\u002fhooks.example.com\\u002fcallbacks\\u002ffreepik\\u002f{token}",
        "https:&#x2F;&#x2F;hooks.example.com&#x2F;callbacks&#x2F;freepik&#x2F;{token}",
        "{dotless}",
    ],
)
def test_a_token_is_masked_however_it_is_quoted(quoted: str) -> None:
    tokens, job = Tokens(["key"]), "job_01k0000000000000000000000z"
    for token in (tokens.callback(job, "freepik"), tokens.input(job)):
        text = quoted.format(
            url=f"https://hooks.example.com/callbacks/freepik/{token}",
            token=token,
            dotless=token.replace(".", "\\u002e"),
        )
        assert token.rpartition(".")[2] not in redact(f"before {text} behind")
        assert redact(text).endswith((MASK, f"{MASK} is unknown"))
