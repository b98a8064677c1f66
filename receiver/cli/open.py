"""`receiver open`: a link that signs in to the dashboard once."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from receiver.cli.sandbox_mark import SandboxMark
from receiver.parts import Credentials
from receiver.settings import load
from receiver.web.auth import Bearer
from receiver.web.page.sessions import LINK_LIFETIME, sign_in_link
from submitter.connecting import checked_url
from submitter.environment import LOCAL_URL
from submitter.printing import failed, print_json, say


def open_page(
    url: Annotated[
        str | None,
        typer.Option(help="Where the receiver answers. Default: the sandboxed one that runs here, or port 8000."),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open it in a browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a link that signs in to the dashboard, once and within two minutes; run it where the receiver runs."""
    settings, _ = load()
    if settings.dashboard == "off":
        raise failed("the dashboard is off; unset RECEIVER_DASHBOARD")
    credentials = Credentials.of(settings)
    bearer = Bearer(credentials.api_tokens)
    token = sign_in_link(credentials.tokens, bearer, credentials.api_tokens[0])
    running = SandboxMark(settings.data_dir).read()
    base = checked_url(url or (running["receiver"] if running else LOCAL_URL))
    link = f"{base}/open?token={token}"
    if as_json:
        print_json({"url": link, "valid_seconds": int(LINK_LIFETIME.total_seconds())})
    else:
        typer.echo(link)
    if browser and not webbrowser.open(link):
        say("no browser could be opened: open the link yourself", err=True, fg="yellow")
