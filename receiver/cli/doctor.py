"""`receiver doctor`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.checks import examine, examine_from_outside
from receiver.cli.clock_skew import Clocks
from receiver.cli.findings import Finding, Grade, fail, healthy, ok, to_json, warn
from receiver.cli.sandbox_mark import SandboxMark
from receiver.cli.sandboxed import as_served
from receiver.cli.server_checks import ask_server
from receiver.settings import Settings, SettingsInvalid, given, load
from submitter.client import Submitter
from submitter.connecting import checked_url, find_receiver, is_local
from submitter.environment import LOCAL_URL, Environment
from submitter.errors import ProviderError, TaskRefused
from submitter.images import inspect
from submitter.printing import failed, say
from submitter.provider_settings import ProviderSettings
from submitter.providers import PROVIDERS
from submitter.sandbox import test_picture

_COLOURS = {Grade.OK: "green", Grade.WARN: "yellow", Grade.FAIL: "red"}


def doctor(
    receiver: Annotated[
        str | None,
        typer.Option(
            help="Where the receiver answers. Default: the sandboxed one that runs here, a SUBMITTER_RECEIVER_URL of "
            "this machine, or port 8000. Of one that runs elsewhere, only its own answers are judged."
        ),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="A receiver stored by `submitter login`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    spend: Annotated[
        bool, typer.Option("--spend", help="Also send one small picture to each provider: it costs.")
    ] = False,
) -> None:
    """
    Find problems, and say what to do about them. Exit status 1 if something must be done.

    The running receiver is asked for its keys, pauses, lost callbacks and backlog, with the token that `submitter`
    finds; where none answers, this environment alone is judged.
    """
    url = checked_url(receiver) if receiver else find_receiver(profile=profile).url if profile else None
    elsewhere = url is not None and not is_local(url)
    if elsewhere and spend:
        raise failed("--spend takes the keys of this environment, not those of a receiver elsewhere", status=2)
    raise typer.Exit(asyncio.run(_doctor(url, profile, elsewhere=elsewhere, as_json=as_json, spend=spend)))


async def _doctor(url: str | None, profile: str | None, *, elsewhere: bool, as_json: bool, spend: bool) -> int:
    findings: list[Finding] = []

    async def add(found: AsyncIterator[Finding] | Iterable[Finding]) -> None:
        async for finding in found if isinstance(found, AsyncIterator) else _each(found):
            findings.append(finding)
            if not as_json:
                _print(finding)

    if url is not None and elsewhere:
        clocks = Clocks()
        await add((await ask_server(url, profile=profile, named=True, clocks=clocks)).findings)
        await add(examine_from_outside(url, clocks))
    else:
        try:
            settings, each = as_served(*load())
        except SettingsInvalid as exc:
            await add(fail("settings", wrong, "correct it; nothing else was examined") for wrong in exc.problems)
        else:
            server = await ask_server(url or _here(settings), profile=profile, named=url is not None)
            await add(server.findings)
            await add(examine(settings, each, given(), serving=server.providers))
            if spend:
                await add(await _spent(each))
    if as_json:
        typer.echo(to_json(findings))
    return 0 if healthy(findings) else 1


async def _each(findings: Iterable[Finding]) -> AsyncIterator[Finding]:
    for finding in findings:
        yield finding


def _here(settings: Settings) -> str:
    """Return the URL at which a receiver of this machine probably answers."""
    running = SandboxMark(settings.data_dir).read()
    named = Environment().receiver_url
    if running is not None:
        return running["receiver"]
    return named if named is not None and is_local(checked_url(named)) else LOCAL_URL


async def _spent(each: Mapping[str, ProviderSettings]) -> list[Finding]:
    """Send a real task to each provider that has a key and accepts files."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "picture.jpg"
        path.write_bytes(test_picture(160, 120))
        picture = inspect(path)
        for name, its in each.items():
            if not its.configured:
                continue
            check, provider = f"{name} task", PROVIDERS[name].from_settings(its)
            if provider.wants_url:
                found.append(
                    warn(check, "not sent: it takes the URL of an image", "send it a job through the receiver")
                )
                continue
            try:
                async with Submitter(provider, tries=1) as submitter:
                    report = await submitter.submit(provider.task(picture, {}))
            except (ProviderError, TaskRefused) as exc:
                found.append(
                    fail(check, f"not accepted: {exc}", "see what its dashboard says of key, credit and limits")
                )
            else:
                found.append(ok(check, f"accepted: {report.state}"))
    return found


def _print(finding: Finding) -> None:
    typer.secho(f"{finding.grade.value:<5}", fg=_COLOURS[finding.grade], bold=True, nl=False)
    say(f" {finding.check}: {finding.found}")
    if finding.remedy:
        say(f"      → {finding.remedy}", fg=_COLOURS[finding.grade])
