"""Caddy and nginx as deploy/ sets them up, in front of a receiver that runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from submitter.sandbox import FREEPIK_WEBHOOK_SECRET, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.deploy.test_files import DEPLOY, nginx_configuration, tool
from tests.support.ports import free_port
from tests.support.processes import live, submit, wait_for_state
from tests.support.waiting import eventually, patiently

PEER = "127.0.0.9"
BODY = b'{ "task_id" : "another-task",\r\n "status":"COMPLETED", "generated":[],\t"text":"\xc3\xa9\\u00e9 %2F" }\n'


class Front:
    """A running proxy: where it is, how its certificate is checked, and all it has logged."""

    def __init__(self, url: str, directory: Path, verify: ssl.SSLContext | bool = True) -> None:
        self.url = url
        self.verify = verify
        self._directory = directory

    @property
    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self._directory.rglob("*.log")))

    def client(self) -> httpx.AsyncClient:
        """Comes from an address of its own, so that it can be told from the proxy's."""
        transport = httpx.AsyncHTTPTransport(local_address=PEER, verify=self.verify)
        return httpx.AsyncClient(base_url=self.url, transport=transport, trust_env=False, timeout=30)


@contextlib.asynccontextmanager
async def caddy(directory: Path, upstream: int) -> AsyncIterator[Front]:
    program, port = tool("caddy"), free_port()
    homes = {"XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "HOME": str(directory)}
    settings = {"DOMAIN": f"http://127.0.0.1:{port}", "UPSTREAM": f"127.0.0.1:{upstream}"}
    front = Front(f"http://127.0.0.1:{port}", directory)
    arguments = ["run", "--adapter", "caddyfile", "--config", str(DEPLOY / "Caddyfile")]
    async with process(program, *arguments, log=directory / "caddy.log", environment={**settings, **homes}):
        await answering(front)
        yield front


@contextlib.asynccontextmanager
async def nginx(directory: Path, upstream: int) -> AsyncIterator[Front]:
    program, port = tool("nginx"), free_port()
    path = nginx_configuration(directory)
    text = path.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    text = text.replace("listen 443 ssl http2", f"listen 127.0.0.1:{port} ssl http2")
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        text = text.replace("http {", f"http {{\n    {kind}_temp_path {directory / kind};", 1)
    path.write_text(text)
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    front = Front(f"https://127.0.0.1:{port}", directory, unchecked)
    # Its workers would be somebody who can't enter the directories of a test.
    arguments = ["-c", str(path), "-g", "daemon off; user root;" if os.getuid() == 0 else "daemon off;"]
    async with process(program, *arguments, log=directory / "nginx.log", environment={}):
        await answering(front)
        yield front


@contextlib.asynccontextmanager
async def process(program: str, *arguments: str, log: Path, environment: dict[str, str]) -> AsyncIterator[None]:
    with log.open("ab") as output:
        running = await asyncio.create_subprocess_exec(
            program, *arguments, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.terminate()
        await patiently(running.wait())


async def answering(front: Front) -> None:
    async def there() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await client.get("/healthz")).status_code in (200, 502)
        return False

    async with front.client() as client:
        await eventually(there, what=lambda: front.log)


@pytest.mark.parametrize("proxy", [caddy, nginx])
async def test_callbacks_pass_unchanged_and_nothing_else_is_public(proxy, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    front_directory = tmp_path / "front"
    front_directory.mkdir()
    front_directory.chmod(0o777)
    tmp_path.chmod(0o755)
    sandbox = Sandbox(seed=1, turnaround_seconds=(600, 600))
    async with (
        live(tmp_path, sandbox=sandbox) as (receiver, _),
        proxy(front_directory, receiver.port) as front,
        receiver.client() as inside,
        front.client() as outside,
    ):
        job = await submit(inside, "freepik", picture_bytes(160, 120))
        await wait_for_state(inside, job["id"], "running")
        callback_url = sandbox.accepted("freepik")[0].callback_url or ""
        path = callback_url.removeprefix(receiver.url)
        token = path.rpartition("/")[2]

        assert (await outside.get(path)).text == "ok\n"
        answer = await outside.post(path, content=BODY, headers=signed(BODY))
        assert answer.status_code == 200
        altered = await outside.post(path, content=BODY + b" ", headers=signed(BODY))
        assert altered.status_code == 401
        evidence = (await inside.get(f"/v1/jobs/{job['id']}/evidence")).json()["items"]
        kept = next(item for item in evidence if item["body"] == BODY.decode())
        assert (kept["source"], kept["trust"], kept["peer"]) == ("callback", "signed_body", PEER)
        refused = next(item for item in evidence if item["verdict"] == "refused")
        assert refused["peer"] == PEER

        spoofed = await outside.post(path, content=BODY, headers={**signed(BODY), "x-forwarded-for": "8.8.8.8"})
        assert spoofed.status_code == 200
        latest = (await inside.get(f"/v1/jobs/{job['id']}/evidence")).json()["items"][-1]
        assert latest["peer"] == PEER

        assert (await outside.post(path, content=b"x" * (3 << 20))).status_code == 413
        for hidden in ("/metrics", "/readyz", "/", "/callbacks", "/v1", "/nothing"):
            assert (await outside.get(hidden)).status_code == 404, hidden
        for shown_to_all in ("/healthz", "/openapi.json"):
            assert (await outside.get(shown_to_all)).status_code == 200, shown_to_all
        assert (await outside.get("/v1/jobs")).status_code == 401
        shown = await outside.get("/v1/jobs", headers=dict(inside.headers))
        assert [item["id"] for item in shown.json()["items"]] == [job["id"]]
        assert (await outside.post("/inputs/x", content=b"")).status_code in (403, 404, 405)
        await events_come_at_once(inside, outside)

        # The upstream is away for a moment, which is when proxies log whole requests.
        await receiver.stop()
        lost = await outside.post(path, content=BODY, headers=signed(BODY))
        assert lost.status_code in (502, 503, 504)
    log = front.log + receiver.log
    assert "/callbacks/freepik/[redacted]" in log
    assert token not in log
    assert token.rpartition(".")[2] not in log


async def events_come_at_once(inside: httpx.AsyncClient, outside: httpx.AsyncClient) -> None:
    """The event stream is not held back by the proxy's buffers."""
    headers = {**dict(inside.headers), "accept": "text/event-stream"}
    async with outside.stream("GET", "/v1/events", headers=headers) as stream:
        lines = stream.aiter_lines()
        await patiently(anext(lines))
        await submit(inside, "freepik", picture_bytes(160, 120))

        async def first_event() -> str:
            async for line in lines:
                if line.startswith("data:"):
                    return line
            return ""

        assert "job.queued" in await patiently(first_event())


def signed(body: bytes) -> dict[str, str]:
    """As Freepik signs."""
    import base64
    import hmac
    import time

    moment = str(int(time.time()))
    content = f"msg_1.{moment}.".encode() + body
    digest = base64.b64encode(hmac.digest(FREEPIK_WEBHOOK_SECRET.encode(), content, "sha256")).decode()
    return {
        "content-type": "application/json",
        "webhook-id": "msg_1",
        "webhook-timestamp": moment,
        "webhook-signature": f"v1,{digest}",
    }
