"""Real processes for the tests: `receiver serve` in its own process, the sandbox beside it, and an API client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import httpx

from submitter import tls
from submitter.sandbox import API_KEYS, FREEPIK_WEBHOOK_SECRET, Sandbox
from submitter.signatures import new_secret
from tests.support import forking
from tests.support.engines import database_of, on_engine
from tests.support.ports import free_port
from tests.support.waiting import eventually

TOKEN = "a-token-for-tests"
ROOT = forking.ROOT
INTERPRETER = (sys.executable, "-c", "from receiver.cli import main; main()")
"""`receiver`, where it matters how an interpreter starts or ends."""


def provider_environment(base_urls: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that points the receiver's providers at the sandbox, which has no rates to wait for."""
    environment = {"FREEPIK_WEBHOOK_SECRET": FREEPIK_WEBHOOK_SECRET}
    for name, url in base_urls.items():
        environment[f"{name.upper()}_BASE_URL"] = url
        environment[f"{name.upper()}_API_KEY"] = API_KEYS[name]
        environment[f"{name.upper()}_RATE"] = "1000/1"
    return environment


@dataclass
class LiveReceiver:
    """A `receiver serve` of its own process. `start` and `kill` may be called again and again: the data stays."""

    data_dir: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    notify_secret: str = field(default_factory=new_secret)
    command: tuple[str, ...] = ("serve",)
    process: asyncio.subprocess.Process | forking.Forked | None = None
    forked: ClassVar[forking.Program] = "receiver"

    @property
    def program(self) -> Sequence[str] | None:
        """The program that runs it; None for *forked* in a forked process (`tests.support.forking`)."""
        return INTERPRETER if any(name.startswith("PYTHON") for name in self.environment) else None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Everything that it has printed, over all its runs."""
        path = self.data_dir.parent / f"{self.data_dir.name}.log"
        return path.read_text() if path.exists() else ""

    def output(self) -> BinaryIO:
        """The file that it prints into."""
        return (self.data_dir.parent / f"{self.data_dir.name}.log").open("ab")

    def full_environment(self) -> dict[str, str]:
        # PYTHONUNBUFFERED would hide what buffers do at the end.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RECEIVER_", "PYTHONUNBUF"))}
        environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "RECEIVER_DATA_DIR": str(self.data_dir),
            "RECEIVER_PUBLIC_URL": self.url,
            "RECEIVER_ALLOW_NETWORKS": "127.0.0.0/8",
            "RECEIVER_API_TOKENS": TOKEN,
            "RECEIVER_NOTIFY_SECRETS": self.notify_secret,
            "RECEIVER_POLL_INTERVAL": "0.3",
            "RECEIVER_RETRY_SCHEDULE": "0,0.2,0.4,0.8",
            **self.environment,
        }
        return on_engine(environment, self.data_dir.parent)

    async def start(self, *, ready: bool = True) -> None:
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        if "RECEIVER_DATABASE_URL" not in self.environment:
            database_of(self.data_dir)
        arguments = [*self.command, "--port", str(self.port)]
        environment, directory = self.full_environment(), self.data_dir.parent
        with self.output() as log:
            if self.program is None:
                self.process = await forking.fork(
                    self.forked, *arguments, environment=environment, directory=directory, out=log, err=log
                )
            else:
                self.process = await asyncio.create_subprocess_exec(
                    *self.program, *arguments, env=environment, cwd=directory, stdout=log, stderr=log
                )
        if ready:
            async with httpx.AsyncClient(base_url=self.url, trust_env=False, verify=tls.context()) as client:
                await eventually(lambda: _has_started(client, self.process, lambda: self.log))

    async def stop(self) -> int:
        """SIGTERM, and wait. Returns the exit status."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> int:
        process = self.process
        if process is None:
            return 0
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        status = await process.wait()
        self.process = None
        return status

    def client(self, **options: Any) -> httpx.AsyncClient:
        """An API client with the bearer token."""
        headers = {"authorization": f"Bearer {TOKEN}"}
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, trust_env=False, verify=tls.context(), timeout=30, **options
        )


@contextlib.asynccontextmanager
async def live(
    tmp_path: Path, *, sandbox: Sandbox | None = None, environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[LiveReceiver, Sandbox]]:
    """A running receiver whose providers are a running sandbox; both end with the block."""
    sandbox = sandbox or Sandbox(seed=7, turnaround_seconds=(0.1, 0.3))
    async with sandbox.serve() as origin:
        wiring = provider_environment(sandbox.base_urls(origin))
        receiver = LiveReceiver(tmp_path / "data", {**wiring, **(environment or {})})
        await receiver.start()
        try:
            yield receiver, sandbox
        finally:
            await receiver.stop()


async def submit(
    client: httpx.AsyncClient, provider: str, picture: bytes, *, headers: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """Post one job with the picture as a file; returns the job, fails on anything but 200 and 202."""
    described = json.dumps({"provider": provider, **more})
    answer = await client.post(
        "/v1/jobs", data={"job": described}, files={"image": ("in.jpg", picture)}, headers=dict(headers or {})
    )
    assert answer.status_code in (200, 202), answer.text
    job: dict[str, Any] = answer.json()
    return job


async def wait_for_state(client: httpx.AsyncClient, job_id: str, *states: str, kept: bool = False) -> dict[str, Any]:
    """The job, once it is in one of *states* (any terminal one if none are given), with its images kept if asked."""
    wanted = states or ("succeeded", "failed", "expired", "canceled")
    found: dict[str, Any] = {}

    async def there() -> bool:
        found.update((await client.get(f"/v1/jobs/{job_id}")).json())
        return found["state"] in wanted and (not kept or all(image["kept"] for image in found["images"]))

    await eventually(there, what=lambda: f"job is {found.get('state')}, wanted {wanted}")
    return found


async def is_ready(client: httpx.AsyncClient) -> bool:
    """Return whether a receiver answers there and is ready."""
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def _has_started(
    client: httpx.AsyncClient, process: asyncio.subprocess.Process | forking.Forked | None, log: Callable[[], str]
) -> bool:
    if process is not None and process.returncode is not None:
        raise AssertionError(f"the receiver ended with {process.returncode}: {log()[-2000:]}")
    return await is_ready(client)
