"""`--option name=value`, checked against the provider's own options before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from submitter.errors import TaskRefused
from submitter.printing import CommandFailed
from submitter.providers import PROVIDERS
from submitter.sdk.values import ProviderInfo


def require_files(providers: Sequence[ProviderInfo]) -> None:
    """Raise `CommandFailed` for *providers* that files can't be sent to, since the receiver has no public URL."""
    by_url = [info.name for info in providers if not info.capabilities.takes_files]
    if by_url:
        raise CommandFailed(
            f"nothing was sent: {' and '.join(by_url)} can't take files from this receiver, which has no public URL",
            code="public_url_required",
            field="image",
            remedy="set RECEIVER_PUBLIC_URL where it runs, or give images by a public URL",
        )


def parse_options(provider: str, given: Sequence[str]) -> dict[str, Any]:
    """Return the checked options of *given* `name=value` texts; `CommandFailed` says what to change."""
    options: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise CommandFailed(f"--option {text!r}: write it as name=value", status=2)
        options[name.strip()] = parse_value(provider, name.strip(), value)
    check_options(provider, options)
    return options


def check_options(provider: str, options: Mapping[str, Any], *, where: str = "") -> None:
    """Raise `CommandFailed` (status 1, as for the receiver's refusal) for wrong *options*; *where* begins the text."""
    try:
        PROVIDERS[provider].checked(options)
    except TaskRefused as exc:
        raise CommandFailed(f"{where}{exc}", code=exc.code, field=exc.field) from exc


def parse_value(provider: str, name: str, text: str) -> Any:
    """Parse JSON (`4`, `true`), else return the text itself; also if the option takes text (`prompt=42`)."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    return text if _refused(provider, name, value) and not _refused(provider, name, text) else value


def _refused(provider: str, name: str, value: Any) -> bool:
    try:
        PROVIDERS[provider].Options.model_validate({name: value})
    except ValidationError as exc:
        return any(error["loc"][:1] == (name,) for error in exc.errors(include_url=False, include_input=False))
    return False


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
