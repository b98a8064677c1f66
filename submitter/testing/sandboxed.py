"""
A receiver in its own process, and the stand-ins of all providers in a thread of this one.

Nothing is sent or billed: providers are reached at loopback addresses with keys of the sandbox, regardless of the
user's environment and `.env`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from submitter.environment import variables_without_settings
from submitter.providers import PROVIDERS
from submitter.sandbox import Faults, Sandbox
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.sync_client import Client

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_PORT_TRIES = 3


class SandboxedReceiver:
    """
    `with SandboxedReceiver(directory) as receiver:`, or the pytest fixture `receiver`.

    It keeps its data in *directory*, which must exist. *settings* are variables of the receiver, such as
    `{"RECEIVER_POLL_INTERVAL": "1"}`. Providers take a tenth of a second for a task.
    """

    def __init__(self, directory: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.url = ""
        """The URL of the receiver."""
        self.sandbox = Sandbox(seed=1, turnaround_seconds=(0.05, 0.15))
        """The providers' stand-ins, with every task they accepted."""
        self._directory = directory
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._stand_ins = _StandIns(self.sandbox)

    @property
    def faults(self) -> Faults:
        """The faults of the providers; may be set at any time, for everything that follows."""
        return self.sandbox.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._stand_ins.set_faults(faults)

    @property
    def token(self) -> str:
        """The bearer token of its API."""
        return self._secret("api_token")

    @property
    def notify_secret(self) -> str:
        """The `whsec_…` that signs deliveries to a job's `notify_url`."""
        return self._secret("notify_secret")

    @property
    def log(self) -> str:
        """Everything that the receiver has printed."""
        return self._log_path.read_text(errors="replace")

    def client(self) -> Client:
        """A new client, to be closed by its user."""
        return Client(self.url, self.token)

    def async_client(self) -> AsyncClient:
        """A new client, to be closed by its user."""
        return AsyncClient(self.url, self.token)

    def __enter__(self) -> Self:
        origin = self._stand_ins.start()
        try:
            for last in [False] * (_PORT_TRIES - 1) + [True]:
                if self._start(origin):
                    return self
                if last:
                    raise RuntimeError(f"the receiver did not start:\n{self.log[-2000:]}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        raise AssertionError("unreachable")

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._stand_ins.stop()

    def _start(self, origin: str) -> bool:
        """Start the receiver. Returns False if its port was taken meanwhile or its settings can't be used."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "receiver", "serve", "--port", str(port)],
                env=self._variables(origin),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + _START_SECONDS
        with httpx.Client(trust_env=False) as http:
            while self._process.poll() is None and time.monotonic() < until:
                try:
                    if http.get(f"{self.url}/readyz").status_code == 200:
                        return True
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
        return False

    def _variables(self, origin: str) -> dict[str, str]:
        prefixes = ("RECEIVER_", "SUBMITTER_", *(f"{name.upper()}_" for name in PROVIDERS))
        return {
            **variables_without_settings(*prefixes),
            **self.sandbox.environment(origin),
            "RECEIVER_DATA_DIR": str(self._directory / "data"),
            "RECEIVER_PUBLIC_URL": self.url,
            "RECEIVER_ALLOW_NETWORKS": "127.0.0.0/8,::1/128",
            "RECEIVER_POLL_INTERVAL": "0.5",
            "RECEIVER_CALLBACK_TIMEOUT": "1",
            "RECEIVER_RETRY_SCHEDULE": "0,0.2,0.5,1",
            **self._settings,
        }

    @property
    def _log_path(self) -> Path:
        return self._directory / "receiver.log"

    def _secret(self, name: str) -> str:
        found: str = json.loads((self._directory / "data" / "secrets.json").read_bytes())[name]
        return found


class _StandIns:
    """Serves *sandbox* from an event loop in a thread."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox", daemon=True)
        self._ending = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> str:
        """Start serving; return the origin."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_START_SECONDS)

    def set_faults(self, faults: Faults) -> None:
        asyncio.run_coroutine_threadsafe(self._set_faults(faults), self._loop).result(_STOP_SECONDS)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        self._loop.close()

    async def _start(self) -> str:
        origin: asyncio.Future[str] = self._loop.create_future()
        self._serving = self._loop.create_task(self._serve(origin))
        return await origin

    async def _serve(self, origin: asyncio.Future[str]) -> None:
        async with self._sandbox.serve() as served:
            origin.set_result(served)
            await self._ending.wait()

    async def _set_faults(self, faults: Faults) -> None:
        self._sandbox.faults = faults

    async def _stop(self) -> None:
        self._ending.set()
        if self._serving is not None:
            await self._serving
