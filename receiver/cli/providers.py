"""`receiver providers`: list, pause and resume the running receiver's providers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from receiver.cli.completion import ProviderName
from submitter.commands.names import check_provider
from submitter.printing import Listing, print_json, print_table, say
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.values import ProviderInfo

T = TypeVar("T")

providers = typer.Typer(no_args_is_help=True, help="Show, pause and resume the providers of the running receiver.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@providers.command(name="list")
def list_providers(as_json: AsJson = False) -> None:
    """List the providers: key, queue, and why one is paused."""
    found: list[ProviderInfo] = _call(lambda client: client.providers())
    if as_json:
        print_json({"items": [info.to_json() for info in found]})
        return
    table = Listing("provider", "key", "queued", "paused", "since")
    for info in found:
        since = f"{info.paused.since:%Y-%m-%d %H:%M:%S}Z" if info.paused and info.paused.since else ""
        reason = info.paused.reason if info.paused else "no"
        table.add_row(info.name, "yes" if info.configured else "no", str(info.queue.length), reason, since)
    print_table(table)


@providers.command()
def pause(
    name: ProviderName,
    reason: Annotated[str | None, typer.Option(help="Why; it is shown wherever the pause is.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send no more jobs to a provider until it is resumed; what was sent goes on."""
    check_provider(name)
    paused = _call(lambda client: client.pause(name, reason=reason))
    if as_json:
        print_json({"name": name, "paused": paused and paused.to_json()})
    else:
        say(f"{name} is paused" + (f": {paused.reason}" if paused else ""))


@providers.command()
def resume(name: ProviderName, as_json: AsJson = False) -> None:
    """Send jobs to a paused provider again."""
    check_provider(name)
    resumed = _call(lambda client: client.resume(name))
    if as_json:
        print_json({"name": name, "resumed": resumed})
    else:
        say(f"{name} is resumed" if resumed else f"{name} was not paused")


def _call(work: Callable[[AsyncClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with AsyncClient(timeout=10.0) as client:
            return await work(client)

    return asyncio.run(run())
