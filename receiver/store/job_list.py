"""
Pages of jobs, newest first, by filters.

Every filter is a range of an index, however many jobs there are, and so is a whole id, ours or a provider's. Other text
has no index: a page searches a limited number of jobs that pass the other filters, and its cursor is the last of them;
so a page may be short, or empty, and still have a next one. The first page searches few jobs, so that it takes hardly
longer than with a thousand jobs in all; the following pages search many. Jobs of
some states or providers lie apart from each other, so they cost more each, and it looks at fewer of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from receiver.domain.ids import is_id, lowest_id
from receiver.domain.jobs import Job, KeptImage
from receiver.store.images import images_of
from receiver.store.rows import JOBS
from receiver.store.statements import Fetch, Work, first
from submitter.parsing import NO_RESULT
from submitter.providers import PROVIDERS
from submitter.vocabulary import State

_TEXT_BUDGET = 1_000
_SCATTERED_TEXT_BUDGET = 200
_LATER_TEXT_BUDGET = 30_000
BEHIND_ALL = "job_" + 26 * "z"
"""An upper bound of every id."""
_LOST = (
    "SELECT DISTINCT job_id AS id FROM images INDEXED BY images_lost_by_job WHERE state = 'lost'"
    " AND job_id >= ? AND job_id < ?{} ORDER BY job_id DESC LIMIT ?",
    "SELECT id FROM jobs INDEXED BY jobs_no_result"
    f" WHERE state = 'failed' AND error_code = '{NO_RESULT}' AND id >= ? AND id < ?{{}} ORDER BY id DESC LIMIT ?",
)
"""Jobs with an image that was given up, and jobs without one; the braces are for what else must hold of them."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """
    A filter for jobs; empty and None match all.

    Jobs made from `since` on and before `until`. `text` is searched for in ids, the file's name and metadata, ignoring
    case.
    """

    states: Sequence[str] = ()
    providers: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    text: str = ""
    lost: bool = False
    """Only jobs that were done and paid for, but whose results did not all arrive."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs with their images, and the cursor of the next page."""

    jobs: list[tuple[Job, list[KeptImage]]]
    next: str | None


def job_page(wanted: JobFilter, *, before: str | None, limit: int) -> Work[JobPage]:
    """Return up to *limit* jobs that were made before the job with the id *before*."""
    ids, following = yield from _ids(wanted, before, limit)
    rows = (yield Fetch(_ROWS, (ids,))) if ids else []
    return JobPage((yield from with_images([JOBS.from_row(row) for row in rows])), following)


def with_images(jobs: Sequence[Job]) -> Work[list[tuple[Job, list[KeptImage]]]]:
    """Return each of *jobs* with its images."""
    pictures: dict[str, list[KeptImage]] = {job.id: [] for job in jobs}
    for image in (yield from images_of(list(pictures))):
        pictures[image.job_id].append(image)
    return [(job, pictures[job.id]) for job in jobs]


def _ids(wanted: JobFilter, before: str | None, limit: int) -> Work[tuple[list[str], str | None]]:
    """The ids of a page, and the next cursor."""
    if is_id("job", wanted.text):
        query, values = _candidates(wanted, before, 1, only=wanted.text)
        return [row[0] for row in (yield Fetch(query, values))], None
    if not wanted.text:
        query, values = _candidates(wanted, before, limit + 1)
        found = [row[0] for row in (yield Fetch(query, values))]
        return found[:limit], found[limit - 1] if len(found) > limit else None
    if before is None and (row := (yield from first(_BY_REMOTE_ID, list(PROVIDERS), wanted.text))) is not None:
        query, values = _candidates(wanted, before, 1, only=row[0])
        if found := [row[0] for row in (yield Fetch(query, values))]:
            return found, None
    first_budget = _SCATTERED_TEXT_BUDGET if wanted.states or wanted.providers else _TEXT_BUDGET
    budget = _LATER_TEXT_BUDGET if before else first_budget
    query, values = _candidates(wanted, before, budget)
    condition, patterns = _contains(wanted.text)
    # A subquery of each row, so that both engines look up the candidates by their key, and stop at the limit.
    matches = f"(SELECT {condition} FROM jobs WHERE jobs.id = candidates.id)"
    matching = f"SELECT id FROM ({query}) AS candidates WHERE {matches} ORDER BY id DESC LIMIT ?"
    found = [row[0] for row in (yield Fetch(matching, (*values, *patterns, limit + 1)))]
    if len(found) > limit:
        return found[:limit], found[limit - 1]
    count, last = yield from first(f"SELECT count(*), min(id) FROM ({query}) AS candidates", *values)
    return found, last if count == budget else None


def _candidates(
    wanted: JobFilter, before: str | None, limit: int, *, only: str | None = None
) -> tuple[str, tuple[Any, ...]]:
    """
    A query for the ids of the newest *limit* jobs, and its values.

    Without states and providers the ids themselves are the index; else each combination is a range of `jobs_listed`.
    """
    lowest = "" if wanted.since is None else lowest_id("job", wanted.since)
    ends = [before or BEHIND_ALL, BEHIND_ALL if wanted.until is None else lowest_id("job", wanted.until)]
    within, values = "id >= ? AND id < ?", list[Any]((lowest, min(ends)))
    if only is not None:
        within, values = f"{within} AND id = ?", [*values, only]
    if wanted.lost:
        return _lost(wanted, values, limit)
    if not wanted.states and not wanted.providers:
        return f"SELECT id FROM jobs WHERE {within} ORDER BY id DESC LIMIT ?", (*values, limit)
    part = f"SELECT id FROM jobs WHERE state = ? AND provider = ? AND {within} ORDER BY id DESC LIMIT ?"
    parts, all_values = [], list[Any]()
    for state in wanted.states or tuple(State):
        for provider in wanted.providers or tuple(PROVIDERS):
            parts.append(f"SELECT id FROM ({part}) AS part")
            all_values += [str(state), provider, *values, limit]
    union = " UNION ALL ".join(parts)
    return f"SELECT id FROM ({union}) AS parts ORDER BY id DESC LIMIT ?", (*all_values, limit)


def _lost(wanted: JobFilter, within: Sequence[Any], limit: int) -> tuple[str, tuple[Any, ...]]:
    """As `_candidates`; *within* is the lowest id, the id behind the highest, and the only one if one is asked for."""
    given = (("state", list(wanted.states)), ("provider", list(wanted.providers)))
    chosen = [(name, values) for name, values in given if values]
    also = "".join(f" AND jobs.{name} IN (??)" for name, _ in chosen)
    of_images, of_jobs = _LOST
    only = " AND {} = ?" if len(within) > 2 else ""
    there = f" AND EXISTS (SELECT 1 FROM jobs WHERE jobs.id = images.job_id{also})" if also else ""
    parts = (of_images.format(only.format("job_id") + there), of_jobs.format(only.format("id") + also))
    union = " UNION ".join(f"SELECT id FROM ({part}) AS part" for part in parts)
    each = (*within, *(values for _, values in chosen), limit)
    return f"SELECT id FROM ({union}) AS parts ORDER BY id DESC LIMIT ?", (*each, *each, limit)


def _contains(text: str) -> tuple[str, list[str]]:
    """Return a condition that a column holds *text*, and its values. SQLite lowers ASCII only: other text as it is."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    patterns = [f"%{escaped.lower()}%"] + ([] if text.isascii() else [f"%{escaped}%"])
    parts = [f"lower({column}) LIKE ? ESCAPE '\\'" for column in _SEARCHED]
    if not text.isascii():
        parts += [f"{column} LIKE ? ESCAPE '\\'" for column in _SEARCHED]
    return f"({' OR '.join(parts)})", [pattern for pattern in patterns for _ in _SEARCHED]


_SEARCHED = ("id", "remote_id", "input_file_name", "metadata")
_BY_REMOTE_ID = "SELECT id FROM jobs WHERE provider IN (??) AND remote_id = ?"
_ROWS = f"SELECT {JOBS.sql} FROM jobs WHERE id IN (??) ORDER BY id DESC"
