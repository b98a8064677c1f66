"""
A tunnel from the outside world to a receiver on this machine: a child process that is kept alive.

The receiver gets the public URL once a callback URL below it answers from outside; when the child ends, the URL is
withdrawn unless it will be the same again, so that jobs are sent without a callback and polled meanwhile. The child is
restarted after a growing pause. It cannot outlive us: when this process dies for any reason, so does the child; on an
orderly exit its whole process group is ended, by SIGKILL if necessary.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from receiver.cli.findings import Finding, Grade
from receiver.domain.redaction import redact
from receiver.settings import child_environment

log = structlog.get_logger("receiver.tunnel")

_PARENT_DEATH = Path(__file__).with_name("parent_death.py")
_QUICK_TUNNEL = re.compile(r"https://(?!api\.)[a-z0-9-]+\.trycloudflare\.com\b")
_ALLOCATED = re.compile(r"Allocated port (\d+) for remote forward")
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_GRACE_SECONDS = 1.0
_LAST_WORDS_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Way:
    """A tunnel program, with its public URL: known beforehand, or read from a line that it prints."""

    program: Sequence[str]
    fixed_url: str | None = None
    url_in: Callable[[str], str | None] = lambda line: None


def by_cloudflared(port: int) -> Way:
    """Return a quick tunnel: it needs no account, and gets a new name each time."""

    def url_in(line: str) -> str | None:
        found = _QUICK_TUNNEL.search(line)
        return found[0] if found else None

    return Way(("cloudflared", "tunnel", "--no-autoupdate", "--url", f"http://127.0.0.1:{port}"), url_in=url_in)


def by_ssh(
    host: str, port: int, *, remote_port: int = 0, public_url: str | None = None, options: Sequence[str] = ()
) -> Way:
    """
    Return a tunnel through a forwarded port on *host*, which is `[user@]name`.

    With *public_url* something on that host, such as Caddy, passes requests on to *remote_port* of its loopback.
    Without it the port itself is public, which takes `GatewayPorts clientspecified` in its sshd_config.
    """
    bind = "127.0.0.1" if public_url else "*"
    program = ["ssh", "-N", "-T"]
    for option in (
        "BatchMode=yes",
        "ExitOnForwardFailure=yes",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=3",
        "LogLevel=INFO",
        *options,
    ):
        program += ["-o", option]
    program += ["-R", f"{bind}:{remote_port}:127.0.0.1:{port}", host]
    name = host.rpartition("@")[2]

    def url_in(line: str) -> str | None:
        found = _ALLOCATED.search(line)
        return f"http://{name}:{found[1]}" if found else None

    if public_url is None and remote_port:
        public_url = f"http://{name}:{remote_port}"
    return Way(program, fixed_url=public_url, url_in=url_in)


class Tunnel:
    """
    Keeps a tunnel open while `run` runs.

    *use* is called with the public URL, or None when there is none; *reach* tries it from outside.
    """

    def __init__(
        self,
        way: Way,
        *,
        use: Callable[[str | None], None],
        reach: Callable[[str], Awaitable[Finding]],
        on_finding: Callable[[str, Finding], None],
        patience_seconds: float = 30.0,
    ) -> None:
        self._way = way
        self._use = use
        self._reach = reach
        self._on_finding = on_finding
        self._patience_seconds = patience_seconds
        self._pause = _FIRST_PAUSE_SECONDS

    async def run(self) -> None:
        """Run until cancelled; then end the child and all its processes."""
        while True:
            await self._once()
            if self._way.fixed_url is None:
                self._use(None)
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _once(self) -> None:
        """Run the child once."""
        # A pipe of our own: asyncio's would hide the child's death for as long as a child of it holds the pipe.
        reading, writing = os.pipe()
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_PARENT_DEATH), str(os.getpid()), *self._way.program),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                env=child_environment(),
            )
        except OSError as exc:
            os.close(reading)
            log.error("tunnel_not_started", program=self._way.program[0], error=str(exc))
            return
        finally:
            os.close(writing)
        log.info("tunnel_started", program=self._way.program[0], pid=child.pid)
        last: deque[str] = deque(maxlen=5)
        hearing = asyncio.create_task(self._hear(reading, last))
        try:
            status = await child.wait()
            await asyncio.wait({hearing}, timeout=_LAST_WORDS_SECONDS)
            log.warning("tunnel_ended", program=self._way.program[0], status=status, said=list(last))
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
            await _end(child)

    async def _hear(self, pipe: int, last: deque[str]) -> None:
        """Try the public URL, and each new URL that the child prints. Its *last* lines are kept."""
        trying: asyncio.Task[None] | None = None
        if self._way.fixed_url is not None:
            trying = asyncio.create_task(self._try(self._way.fixed_url))
        lines = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(pipe, "rb", buffering=0)
        )
        try:
            async for raw in lines:
                line = raw.decode("utf-8", "replace").strip()
                last.append(redact(line)[:300])
                url = None if self._way.fixed_url else self._way.url_in(line)
                if url is not None:
                    if trying is not None:
                        trying.cancel()
                    trying = asyncio.create_task(self._try(url))
            if trying is not None:
                await trying
        finally:
            transport.close()
            if trying is not None:
                trying.cancel()
                await asyncio.gather(trying, return_exceptions=True)

    async def _try(self, url: str) -> None:
        """
        Use *url* once it leads here; after a while use it even if it does not seem to, and call *on_finding* with the
        problem.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_seconds
        pause = 0.1
        finding = await self._reach(url)
        while finding.grade is not Grade.OK and loop.time() < until:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 2.0)
            finding = await self._reach(url)
        self._use(url)
        self._on_finding(url, finding)
        if finding.grade is Grade.OK:
            self._pause = _FIRST_PAUSE_SECONDS


async def _end(child: asyncio.subprocess.Process) -> None:
    """End the rest of the child's process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_SECONDS):
            await child.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    await child.wait()
