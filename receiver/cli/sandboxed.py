"""Settings with a sandbox in place of the providers: for its server, and for commands on the same directory."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network

from receiver.cli.sandbox_mark import SandboxMark
from receiver.settings import Settings, load
from submitter.provider_settings import ProviderSettings
from submitter.providers import PROVIDERS
from submitter.sandbox import Sandbox

_HERE = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def in_sandbox(settings: Settings, sandbox: str, origin: str) -> tuple[Settings, dict[str, ProviderSettings]]:
    """Return *settings* with the stand-ins at *sandbox* as the providers, reachable on this machine's addresses."""
    stand_ins = Sandbox().environment(sandbox)
    providers: dict[str, dict[str, str]] = {}
    for name, provider in PROVIDERS.items():
        names = {field: f"{name.upper()}_{field.upper()}" for field in provider.Settings.model_fields}
        providers[name] = {field: stand_ins[variable] for field, variable in names.items() if variable in stand_ins}
    _, each = load(providers=providers)
    return _open_here(settings, public_url=settings.public_url or origin), each


def as_served(
    settings: Settings, each: Mapping[str, ProviderSettings]
) -> tuple[Settings, Mapping[str, ProviderSettings]]:
    """
    Return *settings* and *each* as the server of this data directory has them: with its sandbox, if one runs there.

    If none runs but one will (the mark exists, and no provider has a key), its networks are already open.
    """
    mark = SandboxMark(settings.data_dir)
    running = mark.read()
    if running is not None:
        return in_sandbox(settings, running["sandbox"], running["receiver"])
    if mark.there and not any(settings.configured for settings in each.values()):
        return _open_here(settings), each
    return settings, each


def _open_here(settings: Settings, **more: str) -> Settings:
    return settings.model_copy(update={"allow_networks": (*settings.allow_networks, *_HERE), **more})
