"""The providers, by name. A sixth is one file here and one line below."""

from __future__ import annotations

from typing import Any

from submitter.provider import Provider
from submitter.providers.apixo import Apixo
from submitter.providers.freepik import Freepik
from submitter.providers.novita import Novita
from submitter.providers.pixelcut import Pixelcut
from submitter.providers.upscayl import Upscayl

__all__ = ["PROVIDERS", "Apixo", "Freepik", "Novita", "Pixelcut", "Upscayl", "build"]

PROVIDERS: dict[str, type[Provider]] = {
    provider.name: provider for provider in (Freepik, Apixo, Novita, Upscayl, Pixelcut)
}


def build(name: str, *, api_key: str, base_url: str | None = None, **specific: Any) -> Provider:
    """
    Build the provider called *name*; *specific* are its own settings (see its constructor).

    Raises `ValueError` for a setting that can't work, without quoting secrets, so that it shows at start and not at the
    first paid call.
    """
    if name not in PROVIDERS:
        raise ValueError(f"there is no provider {name!r}; use one of {', '.join(PROVIDERS)}")
    return PROVIDERS[name](api_key=api_key, base_url=base_url, **specific)
