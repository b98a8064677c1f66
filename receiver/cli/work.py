"""`receiver work`: the private side of the service, for a database shared by several processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Annotated

import structlog
import typer

from receiver.app import Receiver
from receiver.parts import WORKERS, Role
from receiver.runtime import logs
from receiver.runtime.data_dir import prepare
from receiver.runtime.server import listen, origin_of, run, running, server
from receiver.runtime.serving_lock import occupied
from receiver.settings import Settings, load
from submitter.printing import failed
from submitter.provider_settings import ProviderSettings

log = structlog.get_logger("receiver")

_NAMES = sorted(role.value for role in WORKERS)

Only = Annotated[
    str | None, typer.Option(help=f"Do only this; comma-separated: {', '.join(_NAMES)}. Default: all of it.")
]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Serve /healthz, /readyz and /metrics on this port. Default: none.")
]


def work(only: Only = None, host: str = "127.0.0.1", port: Port = None) -> None:
    """
    Run the private side: read callbacks, submit, poll, keep images, deliver. Requests are answered by `serve`.

    Any number of `work` and `serve --no-workers` processes share one PostgreSQL database; on one machine they share a
    SQLite file as well. Only `work` needs the providers' keys.
    """
    roles = _roles(only)
    settings, each = load()
    logs.set_up(settings.log_format)
    raise typer.Exit(run(_work(settings, each, roles, host, port)))


def _roles(only: str | None) -> frozenset[Role]:
    names = [name.strip() for name in only.split(",") if name.strip()] if only is not None else _NAMES
    if unknown := [name for name in names if name not in _NAMES]:
        raise failed(f"--only: there is no {unknown[0]!r}; use one of {', '.join(_NAMES)}", status=2)
    if not names:
        raise failed(f"--only: name at least one of {', '.join(_NAMES)}", status=2)
    return frozenset(Role(name) for name in names)


async def _work(
    settings: Settings, each: Mapping[str, ProviderSettings], roles: frozenset[Role], host: str, port: int | None
) -> int:
    prepare(settings.data_dir)
    receiver = Receiver(settings, each, roles=roles)
    with contextlib.ExitStack() as stack:
        stack.enter_context(occupied(settings.data_dir))
        listener = listen(host if port is not None else "127.0.0.1", port or 0)
        stack.callback(listener.close)
        made = server(
            receiver.app,
            on_stop=receiver.stopping.set,
            trusted_proxies=settings.trusted_proxies,
            lifespan=receiver.app.router.lifespan_context(receiver.app),
        )
        async with running(made, listener) as ended:
            log.info("working", roles=sorted(roles), health=None if port is None else origin_of(host, listener))
            await asyncio.wait({ended})
    return 0
