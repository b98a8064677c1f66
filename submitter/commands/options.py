"""`--option k=v`: provider options as they are written in a shell."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from submitter.commands.connection import CommandFailed


def parse_options(given: Iterable[str]) -> dict[str, Any]:
    """`scale=4` is a number, `enhanceFace=true` a truth value, `prompt=a cat` a text: JSON where it is JSON."""
    options: dict[str, Any] = {}
    for one in given:
        name, sign, text = one.partition("=")
        if not sign or not name.strip():
            raise CommandFailed(f"--option {one!r}: write it as name=value", status=2)
        options[name.strip()] = parse_value(text)
    return options


def parse_value(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
