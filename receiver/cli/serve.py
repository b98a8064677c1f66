"""`receiver serve`: the service, one process with everything in it; with `--sandbox` its providers too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import structlog
import typer

from receiver.app import Receiver
from receiver.cli.sandbox_mark import SandboxMark
from receiver.cli.sandboxed import in_sandbox
from receiver.cli.settings_listing import misspelt
from receiver.runtime import logs
from receiver.runtime.data_dir import prepare
from receiver.runtime.server import listen, origin_of, run, running, server
from receiver.runtime.serving_lock import occupied
from receiver.settings import Settings, given, load
from submitter.provider_settings import ProviderSettings
from submitter.sandbox import Sandbox

log = structlog.get_logger("receiver")

_TURNAROUND_SECONDS = (1.0, 3.0)

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
WithSandbox = Annotated[
    bool, typer.Option("--sandbox", help="Stand-ins of all providers in this process: nothing is sent or billed.")
]


def serve(host: Host = "127.0.0.1", port: Port = 8000, sandbox: WithSandbox = False) -> None:
    """Run the service: one process, everything in it."""
    settings, each = load()
    logs.set_up(settings.log_format)
    raise typer.Exit(run(_serve(settings, each, host, port, with_sandbox=sandbox)))


async def _serve(
    settings: Settings, each: Mapping[str, ProviderSettings], host: str, port: int, *, with_sandbox: bool
) -> int:
    sandbox = new_sandbox() if with_sandbox else None
    async with served(settings, each, host=host, port=port, sandbox=sandbox) as live:
        live.announce()
        await asyncio.wait({live.ended})
    return 0


def new_sandbox() -> Sandbox:
    """Stand-ins whose tasks take long enough to be watched."""
    return Sandbox(turnaround_seconds=_TURNAROUND_SECONDS)


@dataclass(frozen=True, slots=True)
class Served:
    """A receiver that answers at `origin`; `ended` is done when a signal has stopped it."""

    receiver: Receiver
    origin: str
    ended: asyncio.Task[None]
    sandbox: str | None = None
    public_port: int | None = None
    """Where a tunnel's requests go: as `origin`, but operators' pages do not answer."""

    def announce(self) -> None:
        """Say where it is. A token that nobody set is shown too, but on a terminal only."""
        if not logs.on_terminal():
            log.info("serving", url=self.origin, public_url=self.receiver.public_url, sandbox=self.sandbox)
            return
        lines = [("receiver", self.origin), ("public URL", self.receiver.public_url or "none: jobs are polled")]
        if self.sandbox:
            lines.append(("sandbox", f"{self.sandbox}  (stands in for every provider; nothing is billed)"))
        if not self.receiver.settings.api_tokens:
            lines.append(("API token", self.receiver.credentials.api_tokens[0]))
        for name, value in lines:
            typer.secho(f"{name:>11}  ", nl=False, err=True, bold=True)
            typer.echo(value, err=True)


@contextlib.asynccontextmanager
async def served(
    settings: Settings,
    each: Mapping[str, ProviderSettings],
    *,
    host: str,
    port: int,
    sandbox: Sandbox | None = None,
    tunnelled: bool = False,
) -> AsyncIterator[Served]:
    """
    A receiver on *host* and *port*, with *sandbox* as its providers, until the block is left or a signal comes.

    *tunnelled*: it listens on a second port too, for a tunnel. A request's Host header says nothing about where it came
    from; the port that it came in at does.
    """
    for warning in misspelt(given()):
        log.warning("unknown_setting", detail=warning)
    async with contextlib.AsyncExitStack() as stack:
        listener = listen(host, port)
        stack.callback(listener.close)
        origin = origin_of(host, listener)
        prepare(settings.data_dir)
        mark = SandboxMark(settings.data_dir)
        stand_ins: str | None = None
        if sandbox is not None and not settings.on_postgresql:
            mark.check(settings.database_path)
        if stack.enter_context(occupied(settings.data_dir)):
            log.warning(
                "data_directory_shared",
                data_dir=str(settings.data_dir),
                effect="another receiver serves it too: both take its jobs, and each keeps to rate limits for itself"
                + (", with stand-ins that don't know each other's tasks" if sandbox else ""),
                remedy="stop one of the two, or give this one a RECEIVER_DATA_DIR of its own",
            )
        if sandbox is not None:
            stand_ins = await stack.enter_async_context(sandbox.serve())
            settings, each = in_sandbox(settings, stand_ins, origin)
            stack.enter_context(mark.put(sandbox=stand_ins, receiver=origin))
        elif mark.there:
            mark.serves_no_sandbox()
            log.warning("sandbox_data", effect="this data directory holds jobs of a sandbox, which no provider knows")
        receiver = Receiver(settings, each)
        made = server(
            receiver.app,
            on_stop=receiver.stopping.set,
            trusted_proxies=settings.trusted_proxies,
            lifespan=receiver.app.router.lifespan_context(receiver.app),
        )
        listeners = [listener]
        if tunnelled:
            listeners.append(stack.enter_context(contextlib.closing(listen("127.0.0.1", 0))))
            receiver.public_ports.add(listeners[-1].getsockname()[1])
        ended = await stack.enter_async_context(running(made, *listeners))
        yield Served(receiver, origin, ended, stand_ins, listeners[-1].getsockname()[1] if tunnelled else None)
