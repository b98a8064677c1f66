"""
Checks of an installation: problems, and what to do about them.

Each check is a function that returns findings; none changes anything, none costs money. The public URL is tried from
outside: through name, certificate and proxy, with a newly minted callback URL.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
from pydantic import SecretStr

from receiver.cli.clock_skew import Clocks
from receiver.cli.findings import Finding, Grade, fail, ok, warn
from receiver.cli.settings_listing import misspelt
from receiver.domain.tokens import Tokens
from receiver.net.guard import Guard, OutboundError
from receiver.parts import Credentials
from receiver.runtime.data_dir import DataUnusable
from receiver.runtime.data_dir import check as check_data_dir
from receiver.runtime.secrets import kept, secrets_path
from receiver.settings import Settings, SettingsInvalid, names_alone
from receiver.store.database import open_database
from receiver.store.errors import StoreError
from receiver.store.sqlite_file import enabled_endpoints, state_of
from submitter import tls
from submitter.bounded import BoundedTransport
from submitter.client import HttpSender, converse
from submitter.errors import AccountRefused, NotSent, ProviderBusy, ProviderError
from submitter.provider import Provider
from submitter.provider_settings import ProviderSettings
from submitter.providers import PROVIDERS
from submitter.sdk.values import ProviderInfo

_LEAST_DISK_BYTES = 1 << 30
_SHORT_SECRET = 24
_BY_URL = [name for name, provider in PROVIDERS.items() if provider.wants_url]
"""Providers that take images by URL only."""
_CERTIFICATE_DAYS = 14
_MOST_SKEW_SECONDS = 60


async def examine(
    settings: Settings,
    each: Mapping[str, ProviderSettings],
    given: Mapping[str, str],
    *,
    serving: Sequence[ProviderInfo] | None = None,
) -> AsyncIterator[Finding]:
    """Run all checks of this environment; yields their findings. *serving*: the running server's providers."""
    clocks = Clocks()
    for finding in settings_findings(given):
        yield finding
    for finding in secrets_findings(settings):
        yield finding
    for finding in await asyncio.to_thread(disk_findings, settings):
        yield finding
    if settings.on_postgresql:
        yield await postgresql_finding(settings)
    else:
        for finding in await asyncio.to_thread(database_findings, settings.database_path):
            yield finding
    async for finding in public_url_findings(settings, clocks, serving=serving is not None):
        yield finding
    async for finding in provider_findings(each, clocks, serving):
        yield finding
    yield clock_finding(clocks)
    async for finding in endpoint_findings(settings):
        yield finding


async def examine_from_outside(url: str, clocks: Clocks) -> AsyncIterator[Finding]:
    """Check a receiver at *url* that runs elsewhere, apart from its own answers."""
    if httpx.URL(url).scheme == "https":
        yield await _certificate(httpx.URL(url))
    yield clock_finding(clocks)


def clock_finding(clocks: Clocks) -> Finding:
    skew = clocks.worst()
    if skew is None:
        return warn("clock", "no answer had a date to compare with", "check the clock yourself: `timedatectl`")
    if abs(skew.seconds) <= _MOST_SKEW_SECONDS:
        return ok("clock", f"within {max(abs(skew.seconds), 1):.0f} s of {skew.host}")
    late = "behind" if skew.seconds > 0 else "ahead"
    return fail(
        "clock",
        f"this machine's clock is {abs(skew.seconds):.0f} s {late} of {skew.host}",
        "synchronise it (`timedatectl set-ntp true`): signatures older than 5 minutes are refused",
    )


def _unusable(check: str, exc: DataUnusable) -> Finding:
    return fail(check, f"{exc.path}: {exc.wrong}", exc.remedy)


def settings_findings(given: Mapping[str, str]) -> list[Finding]:
    found = [
        warn("settings", wrong, "correct or remove it: it has no effect")
        for wrong in (*names_alone(), *misspelt(given))
    ]
    return found or [ok("settings", "all are valid")]


def secrets_findings(settings: Settings) -> list[Finding]:
    """Check the secrets: their permissions, their lengths, and whether they outlive the data directory."""
    found: list[Finding] = []
    path = secrets_path(settings.data_dir)
    given: dict[str, Sequence[SecretStr]] = {
        "RECEIVER_SECRET_KEYS": settings.secret_keys,
        "RECEIVER_API_TOKENS": settings.api_tokens,
        "RECEIVER_NOTIFY_SECRETS": settings.notify_secrets,
    }
    for name, values in given.items():
        if any(len(secret.get_secret_value()) < _SHORT_SECRET for secret in values):
            remedy = 'use a long one: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
            found.append(warn("secrets", f"{name} has a value of fewer than {_SHORT_SECRET} characters", remedy))
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            found.append(fail("secrets", f"{path} can be read by others (mode {mode:04o})", f"chmod 600 {path}"))
        missing = [name for name, values in given.items() if not values]
        try:
            kept(settings.data_dir)
        except DataUnusable as exc:
            return [*found, _unusable("secrets", exc)]
        if missing:
            found.append(ok("secrets", f"{', '.join(missing)} generated, kept in {path}"))
    return found or [ok("secrets", "all set" if all(given.values()) else "generated at the first start")]


def disk_findings(settings: Settings) -> list[Finding]:
    """Check that the disk can be written, and has space."""
    try:
        for directory in (settings.data_dir, settings.database_path.parent):
            check_data_dir(directory)
    except DataUnusable as exc:
        return [_unusable("disk", exc)]
    directory = settings.data_dir
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < _LEAST_DISK_BYTES:
        remedy = "free some, or move RECEIVER_DATA_DIR to a larger disk; a full disk is answered with 503"
        return [fail("disk", f"{free / 1e6:.0f} MB free at {directory}", remedy)]
    return [ok("disk", f"{free / 1e9:.1f} GB free at {directory}")]


def database_findings(path: Path) -> list[Finding]:
    """Check that the file is intact, at the newest schema, in WAL mode, and writable. Opens it for reading only."""
    try:
        check_data_dir(path.parent)
    except DataUnusable as exc:
        return [fail("database", f"{path} can't be written", exc.remedy)]
    if not path.exists():
        return [ok("database", f"{path} is made at the first start")]
    restore = "stop the receiver and restore a backup (see deploy/)"
    state = state_of(path)
    if state.damage is not None:
        return [fail("database", f"{path} is damaged: {state.damage}", restore)]
    if not state.schema_is_current:
        return [fail("database", "its schema is not this version's", "run `receiver migrate`, or start the receiver")]
    if state.journal_mode != "wal":
        remedy = "keep it on a local disk and start the receiver"
        return [fail("database", f"journal mode is {state.journal_mode}, not wal", remedy)]
    if not os.access(path, os.W_OK):
        return [fail("database", f"{path} can't be written", "give it to the user that this runs as (chown)")]
    return [ok("database", f"{path} is intact, and its schema is current")]


async def postgresql_finding(settings: Settings) -> Finding:
    """Check that the database can be reached, is at the newest schema, and accepts writes."""
    try:
        database = await open_database(settings.database_address, listen_url=settings.database_listen_url)
        try:
            await database.check_writable()
        finally:
            await database.close()
    except StoreError as exc:
        return fail("database", str(exc), "correct RECEIVER_DATABASE_URL, start the server, or run `receiver migrate`")
    return ok("database", "PostgreSQL is reachable, at the newest schema and takes writes")


# --- Outside in -----------------------------------------------------------------------------------------------------


async def public_url_findings(settings: Settings, clocks: Clocks, *, serving: bool) -> AsyncIterator[Finding]:
    """Check the public URL. *serving*: a server runs, whose public URL may be set in its own environment only."""
    public_url = settings.public_url
    if public_url is None and serving:
        yield warn(
            "public URL",
            "not set in this environment, so that the running receiver's was not tried",
            "run this with the RECEIVER_PUBLIC_URL that the receiver runs with",
        )
        return
    if public_url is None:
        yield warn(
            "public URL",
            f"not set: providers get no callback URL, all jobs are polled, {' and '.join(_BY_URL)} can't take files",
            "set RECEIVER_PUBLIC_URL, or try `receiver tunnel`",
        )
        return
    url = httpx.URL(public_url)
    if url.scheme == "https":
        certificate = await _certificate(url)
        yield certificate
        if certificate.grade is Grade.FAIL:
            return
    else:
        yield warn("TLS", f"{url.host} is reached without TLS", "put a proxy with TLS in front (see deploy/)")
    if not settings.secret_keys and not secrets_path(settings.data_dir).exists():
        yield fail("public URL", "no receiver has run with this data directory yet", "start `receiver serve`")
        return
    try:
        tokens = Credentials.of(settings).tokens
    except (DataUnusable, SettingsInvalid):
        yield fail("public URL", "can't be tried without the secrets", "see the findings about them")
        return
    yield await reach(public_url, tokens, clocks)


async def reach(public_url: str, tokens: Tokens, clocks: Clocks | None = None, *, serving: bool = False) -> Finding:
    """GET a newly minted callback URL, which must reach us unchanged. *serving*: it must reach this very process."""
    check = "public URL"
    url = httpx.URL(f"{public_url}/callbacks/freepik/{tokens.callback('job_doctor', 'freepik')}")
    headers = {"accept-encoding": "identity", "user-agent": "receiver-doctor"}
    try:
        async with httpx.AsyncClient(transport=BoundedTransport(), timeout=15) as client:
            answer = await client.get(url, headers=headers)
    except httpx.TransportError as exc:
        why = type(exc).__name__ if not str(exc) else str(exc)
        check_them = "check the name, the port and the proxy in front"
        remedy = check_them if serving else f"start `receiver serve`, and {check_them}"
        return fail(check, f"a callback URL gets no answer: {why}", remedy)
    if clocks is not None:
        clocks.note(answer)
    if answer.is_redirect:
        to = answer.next_request.url if answer.next_request else url
        where = f"{to.scheme}://{to.netloc.decode('ascii')}"
        remedy = f"set RECEIVER_PUBLIC_URL to where it leads ({where}): a redirected POST loses its body"
        return fail(check, f"a callback URL is redirected ({answer.status_code}) to {where}", remedy)
    if answer.status_code == 404:
        remedy = (
            "let the proxy pass /callbacks/ here with its path, and give all processes the same RECEIVER_SECRET_KEYS"
        )
        return fail(check, "another server answers there: a callback URL gets 404", remedy)
    if answer.status_code in (401, 403):
        remedy = "let /callbacks/ pass without a login: the token in the path is the login"
        return fail(check, f"something in front refuses callbacks ({answer.status_code})", remedy)
    if answer.status_code != 200:
        return fail(check, f"a callback URL answers {answer.status_code}", "look at the proxy's and the receiver's log")
    if answer.content != b"ok\n":
        return fail(
            check,
            "what is in front rewrites answers, and probably bodies too, which breaks signatures",
            "turn off its content rewriting, compression and interstitial pages for /callbacks/",
        )
    return ok(check, f"{public_url} reaches this receiver")


async def _certificate(url: httpx.URL) -> Finding:
    check, port = "TLS", url.port or 443
    context = tls.context()
    try:
        async with asyncio.timeout(15):
            _, writer = await asyncio.open_connection(url.host, port, ssl=context, server_hostname=url.host)
    except ssl.SSLCertVerificationError as exc:
        remedy = "give the proxy a certificate of a public authority for this very name (Caddy does it by itself)"
        return fail(check, f"{url.host}: the certificate is not valid: {exc.verify_message}", remedy)
    except (OSError, TimeoutError) as exc:
        why = str(exc) or type(exc).__name__
        return fail(
            check, f"no TLS connection to {url.host}:{port}: {why}", "check the name, the port and the firewall"
        )
    certificate = writer.get_extra_info("peercert") or {}
    writer.close()
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    days = (ends - datetime.now(UTC)).days
    if days < _CERTIFICATE_DAYS:
        return warn(check, f"the certificate of {url.host} ends in {days} days", "renew it, and see why that failed")
    return ok(check, f"the certificate of {url.host} is good for {days} days")


# --- Providers and endpoints ----------------------------------------------------------------------------------------


async def provider_findings(
    each: Mapping[str, ProviderSettings], clocks: Clocks, serving: Sequence[ProviderInfo] | None
) -> AsyncIterator[Finding]:
    """Try the keys that are set here; those that only the running receiver has are judged by its own answers."""
    configured = {name: its for name, its in each.items() if its.configured}
    served = {info.name for info in serving or () if info.configured}
    if not configured and serving is None:
        yield fail("providers", "none has a key", "set FREEPIK_API_KEY or another provider's; or `serve --sandbox`")
    for name in sorted(served - configured.keys()):
        yield ok(f"{name} key", "set in the running receiver's environment")
    if serving is not None:
        for name in sorted(configured.keys() - served):
            remedy = f"start the receiver again with {name.upper()}_API_KEY in its environment"
            yield warn(f"{name} key", "set here, but the running receiver does not have it", remedy)
    async with HttpSender() as sender:
        for name, its in configured.items():
            provider = PROVIDERS[name].from_settings(its)
            for warning in provider.warnings():
                yield warn(f"{name} settings", warning.effect, warning.remedy)
            yield await _key(provider, sender, clocks)


async def _key(provider: Provider, sender: HttpSender, clocks: Clocks) -> Finding:
    """Check at no cost that the provider accepts the key."""
    check, name = f"{provider.name} key", provider.name.upper()

    async def send(request: httpx.Request) -> httpx.Response:
        response = await sender.send(request, timeout_seconds=20)
        clocks.note(response)
        return response

    try:
        await converse(provider.check_key(), send)
    except AccountRefused as exc:
        return fail(check, f"refused ({exc.code})", f"set {name}_API_KEY to a key that is active and has credit")
    except (NotSent, ProviderBusy) as exc:
        return fail(check, f"can't be checked now: {exc}", f"check {name}_BASE_URL and outbound access")
    except ProviderError as exc:
        if exc.code in ("timeout", "reset", "answer_cut") or exc.code.startswith("http_5"):
            return warn(check, f"can't tell: {exc}", "try again later")
    return ok(check, "accepted")


async def endpoint_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Check that the enabled endpoints accept connections, made as for deliveries; nothing is posted."""
    if not settings.database_path.exists():
        return
    guard = Guard(settings.allow_networks)
    for number, url in await asyncio.to_thread(enabled_endpoints, settings.database_path):
        check = f"endpoint {number}"
        try:
            target = guard.check_url(url)
            port, encrypted = target.port or (443 if target.scheme == "https" else 80), target.scheme == "https"
            addresses = await guard.resolve(target.host, port, encrypted=encrypted)
            async with asyncio.timeout(10):
                _, writer = await asyncio.open_connection(
                    str(addresses[0]),
                    port,
                    ssl=tls.context() if encrypted else None,
                    server_hostname=target.host if encrypted else None,
                )
            writer.close()
        except OutboundError as exc:
            yield fail(check, str(exc), "correct its URL; a private network must be listed in RECEIVER_ALLOW_NETWORKS")
        except ssl.SSLError as exc:
            yield fail(check, f"TLS failed: {exc.reason}", "renew its certificate")
        except (OSError, TimeoutError):
            yield fail(check, f"{target.host}:{port} takes no connection", "start it, or disable the endpoint")
        else:
            yield ok(check, f"{target.host} takes connections")
