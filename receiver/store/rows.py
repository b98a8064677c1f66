"""Jobs as rows: the parts shared by the modules that read them."""

from __future__ import annotations

from collections.abc import Iterable

from receiver.domain.jobs import Job
from receiver.store.codecs import Codec
from receiver.store.statements import FetchWide, Work

JOBS = Codec(Job)


def jobs_by_id(ids: Iterable[str]) -> Work[dict[str, Job]]:
    """Return the jobs with these *ids* that exist, by id."""
    rows = yield FetchWide(JOBS.columns, "FROM jobs WHERE id IN (??)", (sorted(ids),))
    place = JOBS.place("id")
    return {row[place]: JOBS.from_row(row) for row in rows}
