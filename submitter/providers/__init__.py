"""The providers, by name. A sixth is one file here and one line below."""

from __future__ import annotations

import re
from typing import Any

import httpx

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
    The provider called *name*, ready to use; *specific* are its own settings (see its constructor).

    Raises `ValueError` for a setting that can't work, without quoting secrets, so that it shows at start and not at the
    first paid call.
    """
    if name not in PROVIDERS:
        raise ValueError(f"there is no provider {name!r}; there are {', '.join(PROVIDERS)}")
    api_key = api_key.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise ValueError(f"the API key of {name} is empty, or has spaces or other characters that no key has")
    header = specific.get("api_key_header", "x-api-key")
    if not re.fullmatch(r"[A-Za-z0-9-]+", header):
        raise ValueError(f"the API key header of {name} is not the name of a header")
    provider = PROVIDERS[name](api_key=api_key, base_url=base_url, **specific)
    try:
        url = httpx.URL(provider.base_url)
    except httpx.InvalidURL as exc:
        raise ValueError(f"the base URL of {name} is not a URL") from exc
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(f"the base URL of {name} must be http(s)://host[/path]")
    return provider
