"""`submitter login` and `whoami`: receivers by name."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

import typer

from submitter.commands.completion import AsJson
from submitter.commands.connection import CommandFailed, Connection, as_text, run
from submitter.connecting import checked_url, find_receiver
from submitter.environment import LOCAL_URL
from submitter.printing import print_fields, say
from submitter.profiles import DEFAULT_NAME, Profile, profiles_path, read_profiles, update_profiles
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.values import Health


def login(
    context: typer.Context,
    url: Annotated[str | None, typer.Argument(help="The receiver's URL. Default: --receiver, or this machine.")] = None,
    name: Annotated[str, typer.Option(help="Its name, to be chosen with `--profile`.")] = DEFAULT_NAME,
    default: Annotated[bool, typer.Option("--default", help="Use it where no receiver is named.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Forget the profile instead.")] = False,
) -> None:
    """
    Store a receiver's URL and token under a name, readable by you only.

    The token is asked for on a terminal, and else read from standard input: `submitter login URL < token.txt`.
    """
    connection: Connection = context.obj
    profiles_path()  # before a token is asked for
    profiles = read_profiles()
    if remove:
        if profiles.get(name) is None:
            raise CommandFailed(f"there is no profile {name!r}")
        update_profiles(lambda profiles: profiles.without(name))
        say(f"removed the profile {name}")
        return
    where = checked_url(url or connection.url or LOCAL_URL)
    token = _asked() if sys.stdin.isatty() else sys.stdin.readline()
    token = token.strip()
    if not token:
        raise CommandFailed("no token was given", status=2)

    async def try_it() -> None:
        async with AsyncClient(where, token, timeout=10.0) as client:
            await client.providers()

    run(try_it())
    path = update_profiles(lambda profiles: profiles.with_profile(name, Profile(where, token), default=default))
    say(f"logged in to {where}; stored as {name} in {path}")


def _asked() -> str:
    try:
        return getpass.getpass("API token: ")  # typer's own prompt makes an interrupt a failure
    except EOFError:
        say("", err=True)
        return ""


def whoami(context: typer.Context, as_json: AsJson = False) -> None:
    """Show which receiver commands use, where its token comes from, and whether it answers."""
    connection: Connection = context.obj
    address = find_receiver(connection.url, profile=connection.profile)

    async def ask() -> Health:
        async with AsyncClient(address.url, address.token, timeout=10.0) as client:
            await client.providers()
            return await client.health()

    health = run(ask())
    found = {"receiver": address.url, "token_from": address.found_in, "status": health.status, **health.checks}
    if as_json:
        typer.echo(as_text(found))
    else:
        print_fields(found)
