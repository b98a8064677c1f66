"""`receiver signature`: sign and verify as Standard Webhooks do, to find out why a signature does not match."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from receiver.domain.ids import new_id
from submitter.errors import CallbackRefused
from submitter.printing import failed, print_json, say
from submitter.signatures import TOLERANCE_SECONDS, check, parse_key, parse_secret
from submitter.signatures import sign as sign_message

signature = typer.Typer(no_args_is_help=True, help="Sign and verify webhooks.")

Body = Annotated[Path, typer.Argument(help="A file with the raw body; `-` for standard input.")]
Secret = Annotated[str, typer.Option(help="whsec_…, or with --encoding a provider's secret.")]
Encoding = Annotated[
    str | None, typer.Option(help="utf8, base64 or hex: how a provider's secret becomes a key. Default: whsec_….")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@signature.command()
def sign(
    body: Body,
    secret: Secret,
    encoding: Encoding = None,
    message_id: Annotated[str | None, typer.Option("--id", help="The webhook-id. Default: a new one.")] = None,
    timestamp: Annotated[int | None, typer.Option(min=0, help="Unix seconds. Default: now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the three headers that sign a body."""
    at = timestamp if timestamp is not None else int(datetime.now(UTC).timestamp())
    name = message_id or new_id("evt")
    headers = {
        "webhook-id": name,
        "webhook-timestamp": str(at),
        "webhook-signature": sign_message(_key(secret, encoding), name, at, _read(body)),
    }
    if as_json:
        print_json(headers)
        return
    for header, value in headers.items():
        say(f"{header}: {value}")


@signature.command()
def verify(
    body: Body,
    secret: Secret,
    header: Annotated[list[str], typer.Option("--header", "-H", help="`webhook-id: …` and the other two.")],
    encoding: Encoding = None,
    any_age: Annotated[bool, typer.Option("--any-age", help="Accept a signature of any age.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a body was signed with a secret, and if not, what does not match. Exit status 1: it was not."""
    headers = dict(_header(text) for text in header)

    def value(name: str) -> bytes | None:
        return headers[name].encode("utf-8", "replace") if name in headers else None

    try:
        check(
            value("webhook-id"),
            value("webhook-timestamp"),
            value("webhook-signature"),
            _read(body),
            [_key(secret, encoding)],
            now=datetime.now(UTC),
            tolerance_seconds=math.inf if any_age else TOLERANCE_SECONDS,
        )
    except CallbackRefused as exc:
        raise failed(str(exc), code=exc.reason) from exc
    if as_json:
        print_json({"verified": True})
    else:
        say("verified: the body was signed with this secret")


def _read(body: Path) -> bytes:
    return sys.stdin.buffer.read() if str(body) == "-" else body.read_bytes()


def _key(secret: str, encoding: str | None) -> bytes:
    try:
        if encoding is None:
            return parse_secret(secret)
        if encoding not in ("utf8", "base64", "hex"):
            raise failed(f"--encoding {encoding!r}: use utf8, base64 or hex", status=2)
        return parse_key(secret, encoding)  # type: ignore[arg-type]
    except ValueError as exc:
        raise failed(f"--secret: {exc}", status=2) from exc


def _header(text: str) -> tuple[str, str]:
    name, sign_, value = text.partition(":")
    if not sign_:
        raise failed(f"--header {text!r}: write it as `Name: value`", status=2)
    return name.strip().lower(), value.strip()
