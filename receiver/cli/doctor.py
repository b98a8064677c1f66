"""`receiver doctor`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.checks import Finding, Grade, examine, fail, healthy, ok, to_json, warn
from receiver.cli.sandboxed import as_served
from receiver.settings import SettingsInvalid, given, load
from submitter.client import Submitter
from submitter.errors import ProviderError, TaskRefused
from submitter.images import inspect
from submitter.printing import say
from submitter.provider_settings import ProviderSettings
from submitter.providers import PROVIDERS
from submitter.sandbox import test_picture

_COLOURS = {Grade.OK: "green", Grade.WARN: "yellow", Grade.FAIL: "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    spend: Annotated[
        bool, typer.Option("--spend", help="Also send one small picture to each provider: it costs.")
    ] = False,
) -> None:
    """Find what is wrong, and say what to do about it. Exit status 1 if something must be done."""
    raise typer.Exit(asyncio.run(_doctor(as_json=as_json, spend=spend)))


async def _doctor(*, as_json: bool, spend: bool) -> int:
    findings: list[Finding] = []

    def add(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            _print(finding)

    try:
        settings, each = as_served(*load())
    except SettingsInvalid as exc:
        for problem in exc.problems:
            add(fail("settings", problem, "correct it; nothing else was examined"))
    else:
        async for finding in examine(settings, each, given()):
            add(finding)
        if spend:
            for finding in await _spent(each):
                add(finding)
    if as_json:
        typer.echo(to_json(findings))
    return 0 if healthy(findings) else 1


async def _spent(each: Mapping[str, ProviderSettings]) -> list[Finding]:
    """One real task for each provider that has a key and takes files."""
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
