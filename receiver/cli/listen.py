"""`receiver listen`: events of a running or deployed receiver, forwarded to an application on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import httpx
import typer

from receiver.cli.forwarding import Forwarded, Forwarder
from receiver.domain.events import EVENT_TYPES
from submitter.commands.names import check_names
from submitter.environment import LocalReceiver, config_home
from submitter.errors import RequestRefused
from submitter.printing import failed, say
from submitter.sdk.async_client import AsyncClient
from submitter.signatures import new_secret, parse_secret
from submitter.system_errors import described
from submitter.whole_files import write_whole

if sys.platform != "win32":
    import termios
    import tty

MOST = 2**63 - 1
"""The highest position that a database can give."""
_SECRET_FILE = "listen.secret"
_FOREGROUND_SECONDS = 1.0


def listen(
    address: Annotated[
        str | None, typer.Argument(help="Where to post events, such as http://localhost:3000/hook.")
    ] = None,
    forward_to: Annotated[str | None, typer.Option(help="The same, as an option.")] = None,
    types: Annotated[list[str] | None, typer.Option(help="Only these events; comma-separated or repeated.")] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A header to send along, as `Name: value`.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="The receiver's URL. Default: SUBMITTER_RECEIVER_URL, or this machine.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Its API token. Default: SUBMITTER_TOKEN, a profile's, or this machine's.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="A receiver stored by `submitter login`.")] = None,
    secret: Annotated[
        str | None, typer.Option(help="Sign with this whsec_…; default: one that stays the same here, and is shown.")
    ] = None,
    after: Annotated[
        int | None, typer.Option(min=0, max=MOST, help="Begin after this position; 0: at the first event.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event.")] = False,
) -> None:
    """
    Forward events to an application, in order and signed as an endpoint's would be.

    On a terminal, `r` delivers the last event once more.
    """
    if (address is None) == (forward_to is None):
        raise failed("name one address to post events to, such as http://localhost:3000/hook", status=2)
    target = _checked_address(address or forward_to or "")
    wanted = [name for part in types or () for name in part.split(",") if name]
    check_names(wanted, EVENT_TYPES, "event")
    headers = dict(_header(text) for text in header or ())
    secret = _checked_secret(secret) if secret is not None else _own_secret()

    async def work() -> None:
        said: set[str] = set()

        def forwarded(outcome: Forwarded) -> None:
            said.clear()
            say(_as_json(outcome) if as_json else _as_line(outcome))

        def waiting(why: str) -> None:
            if why not in said:
                said.add(why)
                say(why, err=True, fg="yellow")

        async with AsyncClient(url, token, profile=profile, on_retry=waiting) as receiver:
            await receiver.providers()  # a receiver that does not answer at all is reported now; later cuts are retried
            say(f"signing with {secret}", err=True)
            say(f"events of {receiver.url} go to {target}", err=True)
            forwarder = Forwarder(target, secret=secret, headers=headers, waiting=waiting)
            forwarding = asyncio.create_task(forwarder.run(receiver, forwarded, after=after, types=wanted))
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, forwarding.cancel)
            with _keys({"r": forwarder.redeliver_last}), contextlib.suppress(asyncio.CancelledError):
                await forwarding

    try:
        asyncio.run(work())
    except RequestRefused as exc:
        if exc.code == "no_token":
            raise failed(f"{exc}; or give the receiver's --token", status=2, code=exc.code) from exc
        raise failed(f"the receiver refuses: {exc}", code=exc.code) from exc
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _checked_address(text: str) -> str:
    """Return *text* if events can be posted there; the error says what is wrong with it."""
    try:
        address = httpx.URL(text)
        host, port = address.host, address.port
    except (httpx.InvalidURL, ValueError) as exc:
        raise failed(f"{text!r} is no URL: {exc}; write it as http://localhost:3000/hook", status=2) from exc
    if address.scheme not in ("http", "https") or not host:
        raise failed(f"{text!r} is not an http:// or https:// URL, such as http://localhost:3000/hook", status=2)
    if port is not None and not 1 <= port <= 65535:
        raise failed(f"{text!r}: there is no port {port}; ports end at 65535", status=2)
    try:
        socket.getaddrinfo(host, port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise failed(f"{text!r}: the name {host} can't be resolved", status=2) from exc
    return text


def _header(text: str) -> tuple[str, str]:
    name, sign, value = text.partition(":")
    if not sign or not name.strip() or not text.isascii() or not text.isprintable():
        raise failed(f"--header {text!r}: write it as `Name: value`, in printable ASCII", status=2)
    return name.strip(), value.strip()


def _checked_secret(secret: str) -> str:
    try:
        parse_secret(secret)
    except ValueError as exc:
        raise failed(f"--secret: {exc}", status=2) from exc
    return secret


def _own_secret() -> str:
    """Return the secret of this data directory, or else of this user, so that an application is configured once."""
    data_dir = LocalReceiver().data_dir
    home = config_home()
    if not data_dir.is_dir() and home is None:
        return new_secret()  # nowhere to keep it: one for this run
    directory = data_dir if home is None or data_dir.is_dir() else home / "upscale-receiver"
    path = directory / _SECRET_FILE
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return _kept_secret(path)
    secret = new_secret()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, secret + "\n", mode=0o600, replace=False)
    except FileExistsError:  # another `listen` has just made it
        return _kept_secret(path)
    except OSError:  # a full or read-only disk: one for this run
        return secret
    return secret


def _kept_secret(path: Path) -> str:
    try:
        secret = path.read_text("utf-8").strip()
        parse_secret(secret)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as exc:
        raise failed(f"{described(exc)}; give it to the user that this runs as, or use --secret") from exc
    except ValueError as exc:
        raise failed(f"{path} is not what `receiver listen` keeps there; remove it, and a new one is made") from exc
    return secret


@contextlib.contextmanager
def _keys(actions: dict[str, Callable[[], None]]) -> Iterator[None]:
    """Call the action of each key that is pressed on a terminal while the block runs."""
    if sys.platform == "win32" or not sys.stdin.isatty() or not _in_foreground(sys.stdin.fileno()):
        yield
        return
    number, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(number)
    changed = asyncio.Event()

    def pressed() -> None:
        if _in_foreground(number):
            for key in os.read(number, 100).decode("latin-1"):
                actions.get(key, lambda: None)()
        else:  # after `bg`: reading would stop this process, and so would setting the terminal
            loop.remove_reader(number)
            changed.set()

    async def hear() -> None:
        while True:
            if _in_foreground(number):
                tty.setcbreak(number, termios.TCSADRAIN)
                loop.add_reader(number, pressed)
                await changed.wait()
                changed.clear()
            else:
                await asyncio.sleep(_FOREGROUND_SECONDS)

    hearing = asyncio.create_task(hear())
    loop.add_signal_handler(signal.SIGCONT, changed.set)
    try:
        yield
    finally:
        hearing.cancel()
        loop.remove_signal_handler(signal.SIGCONT)
        loop.remove_reader(number)
        if _in_foreground(number):
            termios.tcsetattr(number, termios.TCSADRAIN, before)


def _in_foreground(terminal: int) -> bool:
    """Return whether what is typed in *terminal* is for this process, and not for another job of its shell."""
    try:
        return os.getpgrp() == os.tcgetpgrp(terminal)
    except OSError:  # the terminal is gone
        return False


def _as_line(outcome: Forwarded) -> str:
    event = outcome.event
    job = f" {event.job.id}" if event.job else ""
    answer, milliseconds = outcome.error or str(outcome.status), outcome.seconds * 1000
    return f"{event.timestamp:%H:%M:%S} {event.position:>6}  {event.type}{job}  → {answer} in {milliseconds:.0f} ms"


def _as_json(outcome: Forwarded) -> str:
    event = outcome.event
    return json.dumps(
        {
            "position": event.position,
            "id": event.id,
            "type": event.type,
            "status": outcome.status,
            "error": outcome.error,
            "seconds": round(outcome.seconds, 4),
        }
    )
