"""`receiver serve`: the service, one process with everything in it; with `--sandbox` its providers too."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import structlog
import typer

from receiver.app import Receiver
from receiver.cli.processes import Processes, roles_of
from receiver.cli.sandbox_mark import SandboxMark
from receiver.cli.sandboxed import in_sandbox
from receiver.cli.settings_listing import misspelt
from receiver.parts import EVERYTHING, Credentials, Role
from receiver.runtime import logs
from receiver.runtime.data_dir import prepare
from receiver.runtime.server import listen, origin_of, run, running, server
from receiver.runtime.serving_lock import occupied
from receiver.settings import Settings, given, load, names_alone
from receiver.store.database import migrate
from submitter.printing import failed
from submitter.provider_settings import ProviderSettings
from submitter.sandbox import Sandbox

log = structlog.get_logger("receiver")

_TURNAROUND_SECONDS = (1.0, 3.0)

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
WithSandbox = Annotated[
    bool, typer.Option("--sandbox", help="Stand-ins of all providers in this process: nothing is sent or billed.")
]


NoWorkers = Annotated[
    bool,
    typer.Option(
        "--no-workers", help="Only answer requests; `receiver work` processes do the rest. Needs no provider key."
    ),
]
Count = Annotated[
    int, typer.Option(min=1, max=64, help="Processes on this machine: the last does the work, the others answer.")
]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    sandbox: WithSandbox = False,
    no_workers: NoWorkers = False,
    processes: Count = 1,
) -> None:
    """Run the service: everything in one process, unless options say otherwise."""
    if sandbox and (no_workers or processes > 1):
        raise failed("--sandbox runs in one process, with everything in it: leave out the other option", status=2)
    if no_workers and processes > 1:
        raise failed("--no-workers and --processes exclude each other: start as many processes as are wanted", status=2)
    settings, each = load()
    if processes > 1:
        raise typer.Exit(_serve_in_processes(settings, each, host, port, processes))
    logs.set_up(settings.log_format)
    roles = frozenset({Role.WEB}) if no_workers else EVERYTHING
    raise typer.Exit(run(_serve(settings, each, host, port, with_sandbox=sandbox, roles=roles)))


def _serve_in_processes(
    settings: Settings, each: Mapping[str, ProviderSettings], host: str, port: int, count: int
) -> int:
    prepare(settings.data_dir)
    Credentials.of(settings)  # generated once, before several processes need them
    if not settings.on_postgresql:
        asyncio.run(migrate(settings.database_address))
    with contextlib.closing(listen(host, port)) as listener:

        def main(number: int) -> int:
            logs.set_up(settings.log_format)
            roles = roles_of(number, count)
            return run(_serve(settings, each, host, port, roles=roles, listener=listener))

        return Processes(count, main).run()


async def _serve(
    settings: Settings,
    each: Mapping[str, ProviderSettings],
    host: str,
    port: int,
    *,
    with_sandbox: bool = False,
    roles: frozenset[Role],
    listener: socket.socket | None = None,
) -> int:
    sandbox = new_sandbox() if with_sandbox else None
    if Role.WEB not in roles and listener is not None:
        listener.close()  # its connections are for the others
        listener, host, port = None, "127.0.0.1", 0
    async with served(settings, each, host=host, port=port, sandbox=sandbox, roles=roles, listener=listener) as live:
        live.announce()
        await asyncio.wait({live.ended})
    return 0


def new_sandbox() -> Sandbox:
    """Return stand-ins whose tasks take long enough to be watched."""
    return Sandbox(turnaround_seconds=_TURNAROUND_SECONDS)


@dataclass(frozen=True, slots=True)
class Served:
    """A receiver that answers at `origin`; `ended` is done when a signal has stopped it."""

    receiver: Receiver
    origin: str
    ended: asyncio.Task[None]
    sandbox: str | None = None
    public_port: int | None = None
    """The port for a tunnel's requests: as `origin`, but operators' pages do not answer there."""

    def announce(self) -> None:
        """Print its addresses, and on a terminal a generated token."""
        if not logs.on_terminal():
            log.info("serving", url=self.origin, public_url=self.receiver.public_url, sandbox=self.sandbox)
            return
        lines = [("receiver", self.origin), ("public URL", self.receiver.public_url or "none: jobs are polled")]
        if self.sandbox:
            lines.append(("sandbox", f"{self.sandbox}  (all providers; nothing is billed)"))
        if self.receiver.settings.dashboard == "on" and Role.WEB in self.receiver.roles:
            lines.append(("dashboard", f"{self.origin}/  (`receiver open` signs in)"))
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
    roles: frozenset[Role] = EVERYTHING,
    listener: socket.socket | None = None,
) -> AsyncIterator[Served]:
    """
    Run a receiver on *host* and *port*, with *sandbox* as its providers, until the block is left or a signal arrives.

    *tunnelled*: it listens on a second port too, for a tunnel. A request's origin shows in the port that it arrived
    at, not in its Host header.
    """
    for warning in (*names_alone(), *misspelt(given())):
        log.warning("unknown_setting", detail=warning)
    async with contextlib.AsyncExitStack() as stack:
        listener = listener or listen(host, port)
        stack.callback(listener.close)
        origin = origin_of(host, listener)
        prepare(settings.data_dir)
        mark = SandboxMark(settings.data_dir)
        stand_ins: str | None = None
        if sandbox is not None and not settings.on_postgresql:
            mark.check(settings.database_path)
        if stack.enter_context(occupied(settings.data_dir)) and roles == EVERYTHING:
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
        receiver = Receiver(settings, each, roles=roles)
        made = server(
            receiver.app,
            on_stop=receiver.stopping.set,
            trusted_proxies=settings.trusted_proxies,
            lifespan=receiver.app.router.lifespan_context(receiver.app),
            direct=receiver.direct,
        )
        listeners = [listener]
        if tunnelled:
            listeners.append(stack.enter_context(contextlib.closing(listen("127.0.0.1", 0))))
            receiver.public_ports.add(listeners[-1].getsockname()[1])
        ended = await stack.enter_async_context(running(made, *listeners))
        yield Served(receiver, origin, ended, stand_ins, listeners[-1].getsockname()[1] if tunnelled else None)
