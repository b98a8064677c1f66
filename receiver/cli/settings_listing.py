"""
The list of all settings: name, default and meaning; the value in force, masked, and where it came from.

`receiver config` prints it, and so does the README's table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from receiver.settings import Settings
from submitter.provider_settings import ProviderSettings
from submitter.providers import PROVIDERS

MASK = "********"
_GENERATED = {"RECEIVER_SECRET_KEYS", "RECEIVER_API_TOKENS", "RECEIVER_NOTIFY_SECRETS"}
_DEFAULTS = {
    "RECEIVER_DATA_DIR": "./data",
    "RECEIVER_DATABASE_URL": "SQLite in the data directory",
    "RECEIVER_SECRET_KEYS": "generated",
    "RECEIVER_API_TOKENS": "generated",
    "RECEIVER_NOTIFY_SECRETS": "generated",
    "RECEIVER_POLL_INTERVAL": "each provider's own",
    "RECEIVER_MAX_CALLBACK_BYTES": "1048576",
    "<NAME>_RATE": "the documented limits",
    "<NAME>_CONCURRENCY": "each provider's own",
    "<NAME>_BASE_URL": "the documented address",
}


@dataclass(frozen=True, slots=True)
class Known:
    """A setting as it is documented."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class InForce:
    """A setting as it is now. `origin` is `environment`, `.env`, `default` or `generated`."""

    name: str
    value: str
    origin: str
    meaning: str


def known() -> list[Known]:
    """Return all settings; a setting of several providers is listed once, as `<NAME>_…`."""
    found = [_known(f"RECEIVER_{name.upper()}", info) for name, info in Settings.model_fields.items()]
    for field in _provider_fields():
        owners = _owners(field)
        info = PROVIDERS[owners[0]].Settings.model_fields[field]
        prefix = owners[0].upper() if len(owners) == 1 else "<NAME>"
        setting = _known(f"{prefix}_{field.upper()}", info)
        if 1 < len(owners) < len(PROVIDERS):
            *most, last = (owner.upper() for owner in owners)
            setting = replace(setting, meaning=f"{setting.meaning} {', '.join(most)} and {last} only.")
        found.append(setting)
    return found


def in_force(settings: Settings, each: Mapping[str, ProviderSettings], given: Mapping[str, str]) -> list[InForce]:
    """Return all settings with their values, secrets masked; *given* says which were set, and where."""
    found = [_in_force(f"RECEIVER_{name.upper()}", getattr(settings, name), info, given) for name, info in _fields()]
    for provider, its in each.items():
        for name, info in PROVIDERS[provider].Settings.model_fields.items():
            setting = _in_force(f"{provider.upper()}_{name.upper()}", getattr(its, name), info, given)
            if getattr(its, name) is None and (value := _without(provider, name)) is not None:
                setting = replace(setting, value=value)
            found.append(setting)
    return found


def misspelt(given: Iterable[str]) -> list[str]:
    """Return a warning for each name that looks like one of our settings but is not."""
    ours = {f"RECEIVER_{name.upper()}" for name in Settings.model_fields}
    theirs = {f"{owner.upper()}_{field.upper()}" for field in _provider_fields() for owner in _owners(field)}
    warnings = []
    for name in sorted(given):
        if name in ours | theirs:
            continue
        if name.startswith("RECEIVER_"):
            near = difflib.get_close_matches(name, ours, n=1, cutoff=0.75)
        elif own := _same_of_others(name):
            warnings.append(f"{name} is not a known setting; only {own} can be set")
            continue
        elif name.startswith(tuple(f"{provider.upper()}_" for provider in PROVIDERS)):
            near = difflib.get_close_matches(name, theirs, n=1, cutoff=0.8)
            if not near:
                continue  # other programs use names that begin with a provider's, too
        else:
            continue
        warnings.append(f"{name} is not a known setting" + (f"; is {near[0]} meant?" if near else ""))
    return warnings


def to_markdown() -> str:
    """Return the table of all settings."""
    rows = [f"| `{setting.name}` | {_cell(setting.default)} | {_cell(setting.meaning)} |" for setting in known()]
    return "\n".join(["| name | default | meaning |", "|---|---|---|", *rows])


def _fields() -> list[tuple[str, FieldInfo]]:
    return list(Settings.model_fields.items())


def _provider_fields() -> list[str]:
    """Return the fields of all providers' settings: common ones first, then in the order of the providers."""
    own = (field for provider in PROVIDERS.values() for field in provider.Settings.model_fields)
    return list(dict.fromkeys([*ProviderSettings.model_fields, *own]))


def _owners(field: str) -> list[str]:
    """Return the providers that have *field*."""
    return [name for name, provider in PROVIDERS.items() if field in provider.Settings.model_fields]


def _same_of_others(name: str) -> str:
    """Return the settings of other providers with the same field as *name*; empty if no provider has it."""
    provider, _, field = name.lower().partition("_")
    if provider not in PROVIDERS or not (owners := _owners(field)):
        return ""
    *most, last = (f"{owner.upper()}_{field.upper()}" for owner in owners)
    return f"{', '.join(most)} and {last}" if most else last


def _without(provider: str, field: str) -> str | None:
    """Return the value in force if *field* is not set, or None."""
    its = PROVIDERS[provider]
    values = {"base_url": its.default_base_url, "concurrency": str(its.concurrency)}
    return values.get(field) or _DEFAULTS.get(f"<NAME>_{field.upper()}")


def _known(name: str, info: FieldInfo) -> Known:
    default = _DEFAULTS.get(name) or _shown(info.get_default(call_default_factory=True))
    return Known(name, default, info.description or "")


def _in_force(name: str, value: Any, info: FieldInfo, given: Mapping[str, str]) -> InForce:
    is_default = value == info.get_default(call_default_factory=True)
    if name in _GENERATED and is_default:
        return InForce(name, MASK, "generated", info.description or "")
    origin = given.get(name, "default" if is_default else "command line")
    shown = _DEFAULTS.get(name) if value is None else None
    return InForce(name, shown or _shown(value), origin, info.description or "")


_PASSWORD = re.compile(r"(?<=://)[^/@]*(?=@)")
"""The user name and password in a URL."""


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple) and type(value) is tuple:
        return ",".join(_shown(part) for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format(value, "g")
    return _PASSWORD.sub(MASK, str(value))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
