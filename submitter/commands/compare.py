"""`submitter compare`: one picture through several providers, side by side."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from submitter import tls
from submitter.commands.compare_pictures import Appearance, appearances
from submitter.commands.compare_report import Comparison, Result, results_table, write_report
from submitter.commands.connection import SHORT_TIMEOUT_SECONDS, CommandFailed, Connection, as_text, reason, run
from submitter.commands.journal import Entry, Journal
from submitter.commands.names import check_provider
from submitter.commands.options import parse_options, require_files
from submitter.commands.results import make_ready, require_writable, stem_of
from submitter.commands.waits import Waits
from submitter.errors import NotFound, SubmitterError, TaskRefused
from submitter.file_names import is_url
from submitter.images import inspect
from submitter.printing import print_table, say
from submitter.provider import Provider
from submitter.providers import PROVIDERS, build
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.values import Job
from submitter.system_errors import described
from submitter.vocabulary import Picture

_JOURNAL = ".submitter-compare.jsonl"
_LARGEST_BYTES = 256 << 20
_GONE = "gone"
_SENT_AGAIN = ("failed", "expired", "canceled", _GONE)


def compare(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="The picture: a file, or the http(s) URL of one.")],
    providers: Annotated[str, typer.Option(help="Which APIs, with commas: freepik,novita. Each bills its own job.")],
    scale: Annotated[int | None, typer.Option(min=1, help="How many times larger, by every provider.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="An option of a provider as provider.name=value; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results, the report and the journal are kept.")] = Path("compared"),
    html: Annotated[Path | None, typer.Option(help="The report. Default: in OUT, named after the picture.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Retry the providers that failed before. It may cost again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """
    Send one picture to several providers, and compare time, cost, size and sharpness. Writes an HTML report.

    Nothing is sent unless every provider takes the picture and its options. The same command sends nothing twice: it
    goes on with the earlier jobs. Exit status 1: a provider failed; the others are still shown.

    Sharpness is the variance of the Laplacian of the luminance, blurred by a pixel, at the size of the smallest
    result, over that of the picture enlarged by plain interpolation (1.00). Noise and halos count as sharp too.
    """
    connection: Connection = context.obj
    names = _names(providers)
    source = image if is_url(image) else Path(image)
    with _on_disk(source, connection) as path:
        picture = _picture(source, path)
        options = _checked_options(names, picture, scale, _own_options(names, option or ()))
        make_ready(out)
        report = html or out / f"{stem_of(source)}-compared.html"
        if (report.exists() and not report.is_file()) or not report.parent.is_dir():
            raise CommandFailed(f"--html {report} is not a place for a file; name a file in a directory", status=2)
        if html is not None:
            require_writable(html.parent, f"--html {html}")
        with Journal(out / _JOURNAL) as journal:
            before, results = run(_compare(connection, source, picture, options, out, journal, again=again))
    comparison = Comparison(source, picture, before, results)
    write_report(comparison, report)
    if as_json:
        typer.echo(as_text({**comparison.to_json(), "report": str(report)}))
    else:
        print_table(results_table(comparison))
        say(f"report: {report}")
    if any(not result.good for result in results):
        raise typer.Exit(1)


async def _compare(
    connection: Connection,
    image: Path | str,
    picture: Picture,
    options: Mapping[str, Mapping[str, Any]],
    out: Path,
    journal: Journal,
    *,
    again: bool,
) -> tuple[Appearance, list[Result]]:
    async with connection.open() as client:
        await _require_usable(client, options, as_file=isinstance(image, Path))
        work = Comparing(client, connection, image, picture, out, journal, again=again)
        connection.note(work.plan(options))
        try:
            with connection.status(f"waiting for {', '.join(options)}"):
                results = await asyncio.gather(*(work.result(name, given) for name, given in options.items()))
        except asyncio.CancelledError:
            say(work.interrupted(), err=True)
            raise
    with connection.status("measuring the results"):
        paths, sizes = [result.path for result in results], [result.size for result in results]
        assert picture.path is not None
        before, *after = await appearances(picture.path, paths, sizes)
    return before, [replace(result, appearance=found) for result, found in zip(results, after, strict=True)]


class Comparing:
    """A run: what is sent, and what was sent before, by the journal in *out*."""

    def __init__(
        self,
        client: AsyncClient,
        connection: Connection,
        image: Path | str,
        picture: Picture,
        out: Path,
        journal: Journal,
        *,
        again: bool,
    ) -> None:
        self._client = client
        self._connection = connection
        self._image = image
        self._picture = picture
        self._out = out
        self._journal = journal
        self._again = again
        self._open: dict[str, str] = {}

    def plan(self, options: Mapping[str, Mapping[str, Any]]) -> str:
        """The jobs that will be sent, and those of an earlier run that are used again."""
        known = [name for name, given in options.items() if self._is_known(name, given)]
        each = [
            f"{name} ({_shown(given)}){', sent before' if name in known else ''}" for name, given in options.items()
        ]
        new = len(options) - len(known)
        name = self._image if isinstance(self._image, str) else self._image.name
        return (
            f"{name}, {self._picture.width}×{self._picture.height}, for {', '.join(each)}: "
            f"{new} new {'job' if new == 1 else 'jobs'}, each billed by its provider"
        )

    def interrupted(self) -> str:
        """A line about the jobs that go on after an interrupt."""
        jobs = "".join(f" {job_id} ({name})," for name, job_id in self._open.items())
        go_on = "1 job goes on" if len(self._open) == 1 else f"{len(self._open)} jobs go on"
        return (
            f"{go_on} at the receiver:{jobs} see `submitter list`; "
            "the same command goes on with them and sends nothing twice"
        )

    async def result(self, provider: str, options: Mapping[str, Any]) -> Result:
        """Wait for the result of *provider*. A failure is a result, too: the other providers go on."""
        job: Job | None = None
        try:
            job = await self._sent(provider, options)
            self._open[provider] = job.id
            async with Waits(self._client, provider, self._connection.note).explained(job):
                job = await self._client.wait(job)
            saved: list[Path] = []
            if job.succeeded:
                saved = await self._client.save(job, self._out, stem=f"{stem_of(self._image)}-{provider}")
                job = await self._client.job(job)
            self._journal.ended(self._name(provider, options), job.state.value, tuple(path.name for path in saved))
        except (SubmitterError, CommandFailed, OSError) as exc:
            state = "refused" if job is None else "unsaved" if job.succeeded else job.state.value
            return Result(provider, options, state, job, described(exc) or "its images were not kept in time")
        finally:
            if job is not None and job.ended:
                self._open.pop(provider, None)
        return Result(provider, options, job.state.value, job, None if job.succeeded else reason(job), tuple(saved))

    async def _sent(self, provider: str, options: Mapping[str, Any]) -> Job:
        """The job of an earlier run, or else a new one."""
        name = self._name(provider, options)
        entry = self._journal.entry(name)
        if self._sends_again(entry):
            entry.again += 1
        key = _key(provider, self._picture, options, entry.again)
        if entry.key == key and entry.job is not None:
            try:
                return await self._client.job(entry.job)
            except NotFound as exc:
                self._journal.ended(name, _GONE)
                raise CommandFailed(
                    f"{entry.job} of an earlier run is not known to this receiver; --again sends a new job"
                ) from exc
        await asyncio.to_thread(self._journal.intends, name, key)
        job = await self._client.submit(provider, self._image, options=options, idempotency_key=key)
        self._journal.sent(name, job.id)
        return job

    def _is_known(self, provider: str, options: Mapping[str, Any]) -> bool:
        entry = self._journal.entry(self._name(provider, options))
        return entry.job is not None and not self._sends_again(entry)

    def _sends_again(self, entry: Entry) -> bool:
        return self._again and entry.state in _SENT_AGAIN

    def _name(self, provider: str, options: Mapping[str, Any]) -> str:
        """The name of this provider's job in the journal."""
        return _key(provider, self._picture, options, 0)


def _key(provider: str, picture: Picture, options: Mapping[str, Any], again: int) -> str:
    """The Idempotency-Key: the same from run to run for the same bytes, provider and options."""
    what = json.dumps([provider, picture.sha256, options, again], sort_keys=True)
    return f"compare-{hashlib.sha256(what.encode()).hexdigest()[:40]}"


# --- Before anything is sent ----------------------------------------------------------------------------------------


def _names(providers: str) -> list[str]:
    names = list(dict.fromkeys(name for part in providers.split(",") if (name := part.strip())))
    if not names:
        raise CommandFailed(f"--providers names none; use some of {', '.join(PROVIDERS)}", status=2)
    for name in names:
        check_provider(name)
    return names


@contextmanager
def _on_disk(image: Path | str, connection: Connection) -> Iterator[Path]:
    """The path of *image* while the block runs; what a URL leads to is fetched, to be shown and measured."""
    if isinstance(image, Path):
        yield image
        return
    with tempfile.TemporaryDirectory(prefix="submitter-compare-") as directory:
        path = Path(directory) / "picture"
        with connection.status("fetching the picture"):
            try:
                _fetch(image, path)
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise CommandFailed(f"{image} can't be fetched from here: {exc or type(exc).__name__}") from exc
        yield path


def _fetch(url: str, path: Path) -> None:
    options: dict[str, Any] = {"verify": tls.context(), "trust_env": False, "timeout": 60.0, "follow_redirects": True}
    size = 0
    with httpx.stream("GET", url, **options) as answer, path.open("wb") as file:
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            size += len(piece)
            if size > _LARGEST_BYTES:
                raise CommandFailed(f"{url} leads to more than {_LARGEST_BYTES >> 20} MiB")
            file.write(piece)


def _picture(image: Path | str, path: Path) -> Picture:
    if not path.is_file():
        raise CommandFailed(f"{image} is not a file", status=2)
    try:
        return inspect(path)
    except TaskRefused as exc:
        raise CommandFailed(f"{image}: {exc}", code=exc.code, field=exc.field) from exc


def _own_options(names: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By provider, what `--option provider.name=value` says."""
    texts: dict[str, list[str]] = {name: [] for name in names}
    for text in given:
        provider, dot, rest = text.partition(".")
        if not dot or provider not in texts:
            raise CommandFailed(
                f"--option {text!r}: write it as provider.name=value, with one of {', '.join(names)}", status=2
            )
        texts[provider].append(rest)
    return {name: parse_options(name, own) for name, own in texts.items()}


def _checked_options(
    names: Sequence[str], picture: Picture, scale: int | None, own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Each provider's options; `CommandFailed` with all refusals if a provider does not take them or the picture."""
    options: dict[str, dict[str, Any]] = {}
    refusals = []
    for name in names:
        provider = build(name, api_key="none")
        try:
            options[name] = {**_scaled(provider, scale, own[name]), **own[name]}
            provider.check(replace(picture, url="https://picture.invalid/"), provider.checked(options[name]))
        except TaskRefused as exc:
            refusals.append(f"{name}: {exc}")
    if refusals:
        raise CommandFailed(
            f"nothing was sent: {len(refusals)} of {len(names)} providers refuse it", code="refused", details=refusals
        )
    return options


def _scaled(provider: Provider, scale: int | None, own: Mapping[str, Any]) -> dict[str, Any]:
    if scale is None:
        return {}
    try:
        return provider.options_for_scale(scale)
    except TaskRefused:
        if not own:
            raise
    return {}  # the size is up to its own options


async def _require_usable(client: AsyncClient, names: Mapping[str, Any], *, as_file: bool) -> None:
    found = {info.name: info for info in await client.providers(timeout=SHORT_TIMEOUT_SECONDS)}
    missing = [name for name in names if name not in found or not found[name].configured]
    if missing:
        raise CommandFailed(
            f"nothing was sent: the receiver has no key for {', '.join(missing)}",
            code="not_configured",
            remedy=f"set {', '.join(f'{name.upper()}_API_KEY' for name in missing)} where it runs, or leave them out",
        )
    if as_file:
        require_files([found[name] for name in names])


def _shown(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items()) or "its defaults"
