"""A receiver in this process, with its loops and its database, and a provider that answers polls as it is told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.app import Receiver
from receiver.domain.evidence import Evidence
from receiver.domain.ids import new_id
from receiver.domain.jobs import Job, KeptImage
from receiver.runtime.direct_protocol import DirectRoute
from receiver.runtime.server import listen, running, server
from receiver.settings import load
from receiver.store.codecs import us
from submitter import tls
from submitter.vocabulary import State
from tests.support.engines import engine_settings
from tests.support.rows import execute, fetch
from tests.support.waiting import eventually

SECRET = "freepik-secret-of-the-tests"
SECRET_KEY = "a-key-of-the-tests"
WAY = "TESTS_CLIENT_WAY"
"""Set to `server`, a receiver's client goes through a real server instead of to the application."""
RESULT = "https://cdn.example.com/result.png"


class Upstream:
    """Freepik's and Novita's status calls. `says[task]` is the answer; `polls` lists the tasks that were asked for."""

    def __init__(self) -> None:
        self.says: dict[str, str] = {}
        self.polls: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.callback_urls: dict[str, str] = {}
        self.novita_gate = asyncio.Event()
        self.novita_gate.set()
        self.entered = asyncio.Event()
        self.app = Starlette(
            routes=[
                Route("/v1/ai/image-upscaler/{task}", self.freepik),
                Route("/v3/async/task-result", self.novita),
            ]
        )

    async def freepik(self, request: Request) -> Response:
        task = request.path_params["task"]
        said = await self._asked(task)
        if said is None:
            return JSONResponse({"message": "not found"}, 404)
        return JSONResponse({"data": freepik_task(task, said)})

    async def novita(self, request: Request) -> Response:
        task = request.query_params["task_id"]
        said = await self._asked(task)
        await self.novita_gate.wait()
        if said is None:
            return JSONResponse({"code": 404, "reason": "TASK_NOT_FOUND", "message": "task not found"}, 404)
        answer = novita_task(task, said)
        if task in self.callback_urls:
            answer["extra"] = {"webhook": {"url": self.callback_urls[task]}}
        return JSONResponse(answer)

    async def _asked(self, task: str) -> str | None:
        self.polls.append(task)
        said = self.says.get(task)
        self.entered.set()
        await self.gate.wait()
        return said


def freepik_task(task: str, status: str, *, url: str = RESULT) -> dict[str, Any]:
    return {"task_id": task, "status": status, "generated": [url] if status == "COMPLETED" else []}


def novita_task(task: str, status: str, *, url: str = RESULT) -> dict[str, Any]:
    words = {"COMPLETED": "TASK_STATUS_SUCCEED", "FAILED": "TASK_STATUS_FAILED"}
    images = [{"image_url": url, "image_url_ttl": "3600", "image_type": "png"}] if status == "COMPLETED" else []
    return {"task": {"task_id": task, "status": words.get(status, "TASK_STATUS_PROCESSING")}, "images": images}


def freepik_body(task: str, status: str, **more: Any) -> bytes:
    return json.dumps(freepik_task(task, status, **more)).encode()


def novita_body(task: str, status: str, **more: Any) -> bytes:
    return json.dumps({"event_type": "ASYNC_TASK_RESULT", "payload": novita_task(task, status, **more)}).encode()


BODIES = {"freepik": freepik_body, "novita": novita_body}


def signed(body: bytes, *, secret: str = SECRET, message: str | None = None, at: float | None = None) -> dict[str, str]:
    """Freepik's headers for *body*; written out here, apart from the code under test."""
    message = message or f"msg_{secrets.token_hex(8)}"
    timestamp = str(int(time.time() if at is None else at))
    mac = hmac.new(secret.encode(), f"{message}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(mac).decode(),
    }


@dataclass
class RunningReceiver:
    """The running parts, and shorthands for what the tests ask."""

    receiver: Receiver
    client: httpx.AsyncClient
    upstream: Upstream = field(default_factory=Upstream)

    async def job(self, provider: str = "freepik", state: State = State.RUNNING, **fields: Any) -> Job:
        """A job in *state*, as if it had come there by itself."""
        now = datetime.now(UTC)
        sent = state is not State.QUEUED
        values: dict[str, Any] = {
            "remote_id": f"task-{secrets.token_hex(6)}",
            "sent_at": now if sent else None,
            "deadline_at": now + timedelta(hours=1) if sent else None,
            "awaits_callback": sent,
            "next_poll_at": now + timedelta(minutes=30) if state is State.RUNNING else None,
            "finished_at": now if state.terminal else None,
            "retry_at": now + timedelta(hours=1) if not sent else None,
            "tries": int(sent),
            **fields,
        }
        made = Job(id=new_id("job"), provider=provider, state=state, version=1, created_at=now, **values)
        if state is not State.SENDING:
            await self.receiver.parts.store.add_job(made)
            return made
        # Held by somebody from the start, or it would be given up for dead.
        await self.receiver.parts.store.add_job(replace(made, state=State.QUEUED, retry_at=now + timedelta(hours=1)))
        held = (
            "UPDATE jobs SET state = 'sending', retry_at = NULL, lease_owner = 'holder', lease_until = ? WHERE id = ?"
        )
        await execute(self.receiver.parts.database, held, us(now + timedelta(hours=1)), made.id)
        return made

    def path(self, job: Job) -> str:
        return f"/callbacks/{job.provider}/{self.receiver.credentials.tokens.callback(job.id, job.provider)}"

    async def post(self, job: Job, body: bytes, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return await self.client.post(self.path(job), content=body, headers=dict(headers or {}))

    async def write_events(self, job: Job, status: str, *, task: str | None = None, **more: Any) -> httpx.Response:
        """A callback as the job's provider sends it, signed where it signs."""
        body = BODIES[job.provider](task or job.remote_id or "", status, **more)
        return await self.post(job, body, signed(body) if job.provider == "freepik" else {})

    async def now(self, job: Job) -> Job:
        return (await self.whole(job))[0]

    async def whole(self, job: Job) -> tuple[Job, list[KeptImage]]:
        found = await self.receiver.parts.store.job(job.id)
        assert found is not None
        return found

    async def evidence(self, job: Job) -> list[Evidence]:
        return await self.receiver.parts.store.evidence.of(job.id, limit=1000)

    async def verdicts(self, job: Job, source: str = "callback") -> list[str]:
        return [piece.verdict.value for piece in await self.evidence(job) if piece.source.value == source]

    async def events(self, job: Job) -> list[str]:
        """Return the events about *job* after `job.queued`, in order."""
        query = "SELECT type FROM events WHERE job_id = ? ORDER BY position, id"
        return [row[0] for row in await fetch(self.receiver.parts.database, query, job.id)][1:]

    async def read(self) -> None:
        """Return when nothing is unread."""

        async def nothing_unread() -> bool:
            return not (await self.receiver.parts.store.evidence.unread(limit=1)).evidence

        await eventually(nothing_unread, what=lambda: "evidence stays unread")

    async def becomes(self, job: Job, *states: State) -> Job:
        async def there() -> bool:
            return (await self.now(job)).state in states

        await eventually(there, what=lambda: f"it did not become {states}")
        return await self.now(job)


@contextlib.asynccontextmanager
async def running_receiver(
    tmp_path: Path, *, webhook_secrets: Sequence[str] = (SECRET,), trusted: bool = False, **overrides: Any
) -> AsyncIterator[RunningReceiver]:
    """A receiver whose polls go to an `Upstream` on this machine. *overrides* are fields of its settings."""
    upstream = Upstream()
    listener = listen("127.0.0.1", 0)
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    given: dict[str, Any] = {
        **engine_settings(tmp_path / "data"),
        "data_dir": tmp_path / "data",
        "public_url": "https://hooks.example.com",
        "secret_keys": SECRET_KEY,
        "api_tokens": "a-token-of-the-tests",
        "poll_interval": 0.2,
        "callback_timeout": 600,
        **overrides,
    }
    own = {"api_key": "a-key", "base_url": origin}
    freepik = {**own, "webhook_secret": ",".join(webhook_secrets)} if webhook_secrets else own
    settings, each = load(providers={"freepik": freepik, "novita": own}, **given)
    async with running(server(upstream.app, on_stop=lambda: None), listener):
        receiver = Receiver(settings, each)
        async with receiver.app.router.lifespan_context(receiver.app), contextlib.AsyncExitStack() as stack:
            transport: httpx.AsyncBaseTransport = httpx.ASGITransport(receiver.app, client=("203.0.113.9", 4711))
            if os.environ.get(WAY) == "server":
                transport = _ByServer(await stack.enter_async_context(at_the_wire(receiver)))
            headers = {"authorization": "Bearer a-token-of-the-tests"}
            client = httpx.AsyncClient(transport=transport, base_url="https://hooks.example.com", headers=headers)
            yield RunningReceiver(receiver, await stack.enter_async_context(client), upstream)


@contextlib.asynccontextmanager
async def at_the_wire(
    receiver: Receiver, *, trusted: tuple[str, ...] = (), direct: DirectRoute | None = None
) -> AsyncIterator[int]:
    """The port of a real server in front of *receiver*, whose lifespan runs; *direct* in place of its own."""
    listener = listen("127.0.0.1", 0)
    made = server(receiver.app, on_stop=lambda: None, trusted_proxies=trusted, direct=direct or receiver.direct)
    made.config.lifespan = "off"
    async with running(made, listener):
        yield listener.getsockname()[1]


class _ByServer(httpx.AsyncHTTPTransport):
    """A transport that sends every request to the server at *port*."""

    def __init__(self, port: int) -> None:
        super().__init__(verify=tls.context())
        self._port = port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)
