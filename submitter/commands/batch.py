"""`submitter batch`: many images, resumable, none of them sent twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from submitter.commands.completion import ProviderName
from submitter.commands.connection import CommandFailed, Connection, as_text, run
from submitter.commands.journal import Journal
from submitter.commands.names import check_provider
from submitter.commands.options import parse_options, require_files
from submitter.commands.results import make_ready
from submitter.commands.sources import Item, items_of
from submitter.commands.summary import Ended, Summary
from submitter.commands.waits import Waits
from submitter.errors import Overloaded, RequestRefused, SubmitterError, Unauthorized
from submitter.printing import rich_console, say
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.values import Job
from submitter.system_errors import described
from submitter.vocabulary import State

_JOURNAL = ".submitter-batch.jsonl"
_UPLOADS = 4
_POLLS = 8
_WIDE_COLUMNS = 100
"""The least width of a terminal for a long bar next to the counts."""
_ROOMY_COLUMNS = 60
"""The least width for a bar at all; with less, the counts are what is left."""
_AGAIN = "the same command goes on where this one ended, and sends nothing twice"


def batch(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A directory, a quoted glob, or a CSV with a column `image`.")],
    provider: ProviderName,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="A provider option as name=value; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results and the journal of the batch are kept.")] = Path("upscaled"),
    again: Annotated[
        bool, typer.Option("--again", help="Retry the images that failed before. It may cost again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """
    Send many images and save their results. After an interruption, the same command goes on where it was.

    No image is sent twice. Further columns of a CSV are options of their rows; `name` is what the result is called.
    Files that are not images are listed and not sent. Exit status 1: some failed, or were not sent.
    """
    connection: Connection = context.obj
    check_provider(provider)
    items, passed_over = items_of(source, provider, parse_options(provider, option or ()))
    make_ready(out)
    with Journal(out / _JOURNAL) as journal:
        results = {out / name for entry in journal.entries.values() for name in entry.saved}
        items = [item for item in items if item.image not in results]  # OUT may be the very directory
        for passed in passed_over:
            connection.note(f"not sent: {passed.path}: {passed.reason}")
        ended, seconds = run(_batch(connection, items, provider, out, journal, again=again))
    summary = Summary(provider, ended, seconds, passed_over)
    if as_json:
        typer.echo(as_text(summary.to_json()))
    else:
        summary.show()
    if summary.failed or summary.passed_over:
        raise typer.Exit(1)


async def _batch(
    connection: Connection, items: list[Item], provider: str, out: Path, journal: Journal, *, again: bool
) -> tuple[list[Ended], float]:
    """Return the results of all items, in order, and the duration in seconds."""
    began = time.monotonic()
    screen = rich_console(err=True, quiet=connection.verbosity.quiet)
    roomy = screen.width >= _ROOMY_COLUMNS
    bar = Progress(
        *([TextColumn("{task.description}")] if roomy else []),
        *([BarColumn(bar_width=40 if screen.width >= _WIDE_COLUMNS else 10)] if roomy else []),
        MofNCompleteColumn(),
        TextColumn("{task.fields[states]}", table_column=Column(overflow="fold")),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if roomy else []),
        console=screen,
        disable=connection.verbosity.quiet,
    )
    async with connection.open() as client:
        if any(isinstance(item.image, Path) and journal.entry(item.name).job is None for item in items):
            require_files([info for info in await client.providers() if info.name == provider])
        with bar:
            work = Batch(client, items, provider, out, journal, bar, again=again)
            try:
                ended = await work.run(Waits(client, provider, connection.note))
            except asyncio.CancelledError:
                say(work.interrupted(), err=True)
                raise
    return ended, time.monotonic() - began


class Batch:
    """A run: sends images that were not sent, waits for the others, and saves results."""

    def __init__(
        self,
        client: AsyncClient,
        items: list[Item],
        provider: str,
        out: Path,
        journal: Journal,
        bar: Progress,
        *,
        again: bool,
    ) -> None:
        self._client = client
        self._items = items
        self._provider = provider
        self._out = out
        self._journal = journal
        self._bar = bar
        self._again = again
        self._task = bar.add_task(provider, total=len(items), states="")
        self._states: dict[str, str] = {}
        self._unsent = len(items)
        self._open: dict[str, Item] = {}
        self._ended: dict[str, Ended] = {}
        self._saving: set[asyncio.Task[None]] = set()
        self._uploads = asyncio.Semaphore(_UPLOADS)

    async def run(self, waits: Waits) -> list[Ended]:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_all())
                group.create_task(self._watch(waits))
        except* (CommandFailed, SubmitterError, OSError) as failed:
            raise _first(failed) from None
        return [self._ended[item.name] for item in self._items]

    def interrupted(self) -> str:
        """Describe the state after an interrupt, and how to go on."""
        return (
            f"{len(self._ended)} of {len(self._items)} are done, {len(self._open)} jobs go on at the receiver, "
            f"{self._unsent} images are not sent yet; {_AGAIN}"
        )

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for item in self._items:
                await self._uploads.acquire()
                group.create_task(self._send(item))

    async def _send(self, item: Item) -> None:
        """Send *item*, unless it was sent before."""
        try:
            job = await self._sent(item)
        except (CommandFailed, RequestRefused) as exc:
            if isinstance(exc, Unauthorized | Overloaded):
                raise
            self._end(item, Ended(item, state="refused", reason=str(exc)))
        else:
            self._open[job] = item
        finally:
            self._unsent -= 1
            self._uploads.release()

    async def _sent(self, item: Item) -> str:
        journal, name = self._journal, item.name
        entry = journal.entry(name)
        if self._again and entry.state in ("failed", "expired", "canceled", "unsaved"):
            entry.again += 1
        key = await asyncio.to_thread(item.key, journal.batch, self._provider, entry.again)
        if entry.key == key and entry.job is not None:
            return entry.job
        await asyncio.to_thread(journal.intends, name, key)
        job = await self._client.submit(self._provider, item.image, options=item.options, idempotency_key=key)
        journal.sent(name, job.id)
        return job.id

    async def _watch(self, waits: Waits) -> None:
        """Query all open jobs in turn until none is left; if only unconfirmed ones remain, leave them."""
        polls = asyncio.Semaphore(_POLLS)

        async def poll(job_id: str) -> Job:
            async with polls:
                return await self._client.job(job_id)

        pause = 0.2
        while self._unsent or self._open or self._saving:
            jobs = await asyncio.gather(*(poll(job_id) for job_id in list(self._open)))
            for job in jobs:
                self._note(job)
            waiting = self._unsent or self._saving or any(job.state is not State.UNCONFIRMED for job in jobs)
            if jobs and not waiting:
                for job in jobs:
                    item = self._open.pop(job.id)
                    self._end(item, Ended.of(item, job))
                continue
            self._show()
            await waits.explain(*jobs)
            pause = min(max(pause * 1.2, len(self._open) / 40), 5.0)
            await asyncio.sleep(pause)
        self._show()

    def _note(self, job: Job) -> None:
        self._states[job.id] = job.state.value
        if job.state.terminal:
            item = self._open.pop(job.id)
            task = asyncio.create_task(self._finish(item, job))
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)

    async def _finish(self, item: Item, job: Job) -> None:
        try:
            saved = await self._saved(item, job) if job.succeeded else ()
            self._journal.ended(item.name, job.state.value, saved)
        except (SubmitterError, OSError) as exc:
            state = "unsaved" if job.succeeded else job.state.value
            reason = f"{job.id}: {described(exc) or 'not kept in time'}; {_AGAIN}"
            self._end(item, Ended(item, job=job, state=state, reason=reason))
        else:
            self._end(item, Ended.of(item, job, saved=tuple(str(self._out / name) for name in saved)))

    async def _saved(self, item: Item, job: Job) -> tuple[str, ...]:
        """Return the names of its results in *out*, downloaded unless an earlier run did so."""
        saved = self._journal.entry(item.name).saved
        if saved and all([await asyncio.to_thread((self._out / name).is_file) for name in saved]):
            return saved
        return tuple(path.name for path in await self._client.save(job, self._out, stem=item.name))

    def _end(self, item: Item, ended: Ended) -> None:
        self._ended[item.name] = ended
        self._show()

    def _show(self) -> None:
        done = Counter(ended.state for ended in self._ended.values())
        under_way = Counter(self._states[job_id] for job_id in self._open if job_id in self._states)
        words = [f"{count} {state}" for state, count in (done + under_way).items()]
        self._bar.update(self._task, completed=len(self._ended), states=", ".join(words))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
