"""`receiver tunnel`: serve on this machine, reachable from everywhere."""

from __future__ import annotations

import asyncio
import shutil
from typing import Annotated, Any

import structlog
import typer

from receiver.cli.checks import reach
from receiver.cli.findings import Finding, Grade
from receiver.cli.serve import Port, Served, WithSandbox, new_sandbox, served
from receiver.cli.tunnel_process import Tunnel, Way, by_cloudflared, by_ssh
from receiver.runtime import logs
from receiver.runtime.server import run
from receiver.settings import load
from submitter.printing import say

log = structlog.get_logger("receiver.tunnel")

_WAYS = "install cloudflared (no account needed), or give --ssh HOST with a host of yours, or --public-url URL"


def tunnel(
    cloudflared: Annotated[
        bool, typer.Option("--cloudflared", help="A quick tunnel; the default if installed.")
    ] = False,
    ssh: Annotated[str | None, typer.Option(help="Forward a port of this host: [user@]name.")] = None,
    remote_port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --ssh: the port there; 0 takes a free one.")
    ] = 0,
    ssh_option: Annotated[list[str] | None, typer.Option(help="With --ssh: as ssh's -o; may be repeated.")] = None,
    public_url: Annotated[str | None, typer.Option(help="How this machine, or the host of --ssh, is reached.")] = None,
    port: Port = 8000,
    patience: Annotated[
        float, typer.Option(help="Seconds to wait for the public URL to answer before it is used anyway.")
    ] = 30.0,
    sandbox: WithSandbox = False,
) -> None:
    """Serve, get a public address, and use it for callbacks and inputs."""
    if cloudflared and ssh:
        raise typer.BadParameter("take one of --cloudflared and --ssh")
    if ssh and public_url and not remote_port:
        raise typer.BadParameter("--ssh with --public-url needs the --remote-port that the URL leads to")
    if not ssh and not public_url and shutil.which("cloudflared") is None:
        raise typer.BadParameter(f"no tunnel is available: {_WAYS}")
    overrides: dict[str, Any] = {"public_url": public_url} if public_url else {}
    settings, each = load(**overrides)
    logs.set_up(settings.log_format)

    def way(local_port: int) -> Way | None:
        if ssh:
            given = settings.public_url if public_url else None
            return by_ssh(ssh, local_port, remote_port=remote_port, public_url=given, options=ssh_option or ())
        return None if public_url else by_cloudflared(local_port)

    sandbox_too = new_sandbox() if sandbox else None

    async def main() -> int:
        async with served(settings, each, host="127.0.0.1", port=port, sandbox=sandbox_too, tunnelled=True) as live:
            await _tunnelled(live, way(live.public_port or port), settings.public_url, patience)
        return 0

    raise typer.Exit(run(main()))


async def _tunnelled(live: Served, way: Way | None, public_url: str | None, patience: float) -> None:
    """Keep the receiver reachable until a signal ends it."""
    receiver = live.receiver

    def use(url: str | None) -> None:
        receiver.public_url = url

    async def outside_in(url: str) -> Finding:
        return await reach(url, receiver.credentials.tokens, serving=True)

    if way is None:
        live.announce()
        _report(public_url or "", await outside_in(public_url or ""))
        await asyncio.wait({live.ended})
        return
    use(way.fixed_url)
    live.announce()
    kept_open = Tunnel(way, use=use, reach=outside_in, on_finding=_report, patience_seconds=patience)
    open_way = asyncio.create_task(kept_open.run(), name="tunnel")
    try:
        await asyncio.wait({live.ended, open_way}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        open_way.cancel()
        await asyncio.gather(open_way, return_exceptions=True)


def _report(url: str, finding: Finding) -> None:
    """Report the URL and whether it leads here: for people on a terminal, as a log line elsewhere."""
    good = finding.grade is Grade.OK
    if not logs.on_terminal():
        (log.info if good else log.warning)(
            "tunnel_open" if good else "tunnel_unreachable",
            public_url=url,
            **({} if good else {"found": finding.found, "remedy": finding.remedy}),
        )
        return
    typer.secho(f" public URL  {url}  ", bold=True, nl=False, err=True)
    if good:
        typer.secho("(its callback URLs answer from the outside)", fg="green", err=True)
    else:
        say(f"({finding.found}; {finding.remedy})", err=True, fg="yellow")
