"""`receiver listen`: events of a running or deployed receiver, forwarded to an application on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from typing import Annotated

import typer

from receiver.cli.forwarding import Forwarded, Forwarder
from receiver.domain.events import EVENT_TYPES
from receiver.runtime.secrets import generated, secrets_path
from receiver.settings import Settings, load
from submitter.environment import LOCAL_URL, Environment
from submitter.printing import failed, say
from submitter.remote import NoReceiver, Receiver, RequestRefused
from submitter.signatures import new_secret, parse_secret


def listen(
    forward_to: Annotated[str, typer.Option(help="Where to post events, such as http://localhost:3000/hook.")],
    types: Annotated[list[str] | None, typer.Option(help="Only these events; comma-separated or repeated.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Where the receiver is. Default: SUBMITTER_RECEIVER_URL, or this machine.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Its API token. Default: SUBMITTER_TOKEN, or that of the settings in force.")
    ] = None,
    secret: Annotated[str | None, typer.Option(help="Sign with this whsec_…; default: a new one, shown.")] = None,
    after: Annotated[int | None, typer.Option(help="Begin after this position; 0: at the first event.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event.")] = False,
) -> None:
    """Forward events as they happen, in order and signed as an endpoint's would be."""
    wanted = [one for part in types or () for one in part.split(",") if one]
    if unknown := [one for one in wanted if one not in EVENT_TYPES]:
        raise typer.BadParameter(f"there is no event {unknown[0]!r}; there are {', '.join(EVENT_TYPES)}")
    if not forward_to.startswith(("http://", "https://")):
        raise typer.BadParameter("--forward-to needs an http:// or https:// URL")
    if secret is None:
        secret = new_secret()
        typer.echo(f"signing with {secret}", err=True)
    try:
        parse_secret(secret)
    except ValueError as exc:
        raise typer.BadParameter(f"--secret: {exc}") from exc
    given = Environment()
    url = url or given.receiver_url or LOCAL_URL
    token = token or (given.token.get_secret_value() if given.token else None) or _own_token(load()[0])
    try:
        asyncio.run(_listen(forward_to, wanted, url, token, secret, after, as_json=as_json))
    except RequestRefused as exc:
        raise failed(f"the receiver at {url} refuses: {exc}") from exc
    except NoReceiver as exc:
        raise failed(str(exc)) from exc
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


async def _listen(
    forward_to: str, types: list[str], url: str, token: str, secret: str, after: int | None, *, as_json: bool
) -> None:
    said: set[str] = set()

    def told(one: Forwarded) -> None:
        said.clear()
        say(_as_json(one) if as_json else _as_line(one))

    def waiting(why: str) -> None:
        if why not in said:
            said.add(why)
            say(why, err=True, fg="yellow")

    async with Receiver(url, token, on_retry=waiting) as receiver:
        await receiver.providers()  # whoever does not answer at all is told of now, a cut later on is mended
        typer.echo(f"events of {url} go to {forward_to}", err=True)
        forwarding = asyncio.create_task(
            Forwarder(forward_to, secret=secret, waiting=waiting).run(receiver, told, after=after, types=types)
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, forwarding.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await forwarding


def _own_token(settings: Settings) -> str:
    if settings.api_tokens:
        return settings.api_tokens[0].get_secret_value()
    if not secrets_path(settings.data_dir).exists():
        raise typer.BadParameter("give the receiver's --token, or run where its RECEIVER_DATA_DIR is")
    return generated(settings.data_dir)["api_token"]


def _as_line(one: Forwarded) -> str:
    event = one.event
    job = f" {event.job.id}" if event.job else ""
    came = one.error or str(one.status)
    return f"{event.timestamp:%H:%M:%S} {event.position:>6}  {event.type}{job}  → {came} in {one.seconds * 1000:.0f} ms"


def _as_json(one: Forwarded) -> str:
    event = one.event
    return json.dumps(
        {
            "position": event.position,
            "id": event.id,
            "type": event.type,
            "status": one.status,
            "error": one.error,
            "seconds": round(one.seconds, 4),
        }
    )
