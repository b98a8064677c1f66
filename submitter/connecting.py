"""
The receiver of a client whose caller named none: from the environment, then a profile, then this machine's own.

A token goes only to the receiver that it belongs to: `SUBMITTER_TOKEN` to the URL that the caller or
`SUBMITTER_RECEIVER_URL` names, a profile's to that profile's URL, a data directory's to this machine only.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field

import httpx

from submitter.environment import LOCAL_URL, Environment, LocalReceiver
from submitter.errors import NoReceiver, Unauthorized
from submitter.profiles import Profile, Profiles, read_profiles

_NO_TOKEN = (
    "set SUBMITTER_TOKEN to one of the receiver's RECEIVER_API_TOKENS, run `submitter login`, "
    "or run where the receiver's data directory is"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A receiver's base URL, its bearer token, and where the two were found, for people."""

    url: str
    token: str = field(repr=False)
    found_in: str


def find_receiver(url: str | None = None, token: str | None = None, *, profile: str | None = None) -> Address:
    """
    Complete *url* and *token*. *profile* names one of the stored profiles; what is passed in wins over it.

    Raises `NoReceiver` for a URL that can't be one or a profile that does not exist, `Unauthorized` where there is
    no token, `ProfilesUnusable` for a damaged file of profiles.
    """
    if url is not None and token is not None:
        return Address(checked_url(url), token, "arguments")
    if profile is not None:
        stored = _stored(read_profiles(), profile)
        return Address(checked_url(url or stored.url), token or _token_for(url, stored), f"profile {profile}")
    environment = Environment()
    if token is None and environment.token is not None:
        return Address(
            checked_url(url or environment.receiver_url or LOCAL_URL),
            environment.token.get_secret_value(),
            "SUBMITTER_TOKEN",
        )
    url = url or environment.receiver_url
    if token is not None:
        known = read_profiles().get() if url is None else None
        return Address(checked_url(url or (known.url if known else LOCAL_URL)), token, "arguments")
    profiles = read_profiles()
    found = profiles.get() if url is None else profiles.at(url)
    if found is not None:
        return Address(checked_url(found.url), found.token, "profile")
    url = checked_url(url or LOCAL_URL)
    own = _local_token() if is_local(url) else None
    if own is None:
        raise Unauthorized(f"there is no token for {url}", code="no_token", remedy=_NO_TOKEN)
    return Address(url, own, "data directory")


def checked_url(url: str) -> str:
    """Return *url* without a trailing slash; raises `NoReceiver` if no receiver can be there."""
    url = url.strip().rstrip("/")
    try:
        base = httpx.URL(url)
        host = base.host
    except (httpx.InvalidURL, ValueError) as exc:
        raise NoReceiver(f"{url!r} is not an http:// or https:// URL", code="invalid_url") from exc
    if base.scheme not in ("http", "https") or not host:
        raise NoReceiver(f"{url!r} is not an http:// or https:// URL", code="invalid_url")
    if base.port is not None and not 1 <= base.port <= 65535:
        raise NoReceiver(f"{url!r}: there is no port {base.port}; ports end at 65535", code="invalid_url")
    return url


def _stored(profiles: Profiles, name: str) -> Profile:
    found = profiles.get(name)
    if found is None:
        known = ", ".join(profiles.profiles) or "none"
        raise NoReceiver(
            f"there is no profile {name!r}",
            code="no_such_profile",
            remedy=f"the profiles are: {known}; `submitter login` adds one",
        )
    return found


def _token_for(url: str | None, stored: Profile) -> str:
    if url is not None and checked_url(url) != checked_url(stored.url):
        raise Unauthorized(
            f"the profile's token is not for {url}", code="no_token", remedy="pass the token of that receiver"
        )
    return stored.token


def _local_token() -> str | None:
    """Return the token of this machine's receiver: from its settings, else the one generated in its data directory."""
    local = LocalReceiver()
    if local.api_tokens is not None:
        tokens = [token.strip() for token in local.api_tokens.get_secret_value().split(",")]
        return next((token for token in tokens if token), None)
    try:
        made = json.loads((local.data_dir / "secrets.json").read_bytes())
    except (OSError, ValueError):
        return None
    token = made.get("api_token") if isinstance(made, dict) else None
    return token if isinstance(token, str) and token else None


def is_local(url: str) -> bool:
    host = httpx.URL(url).host
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
