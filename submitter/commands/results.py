"""Saving what came out: a place for it, its name, and what to do where it can't be saved."""

from __future__ import annotations

import asyncio
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from submitter import file_names
from submitter.errors import JobFailed, SubmitterError
from submitter.printing import CommandFailed, say
from submitter.sdk.values import Job
from submitter.system_errors import described


def stem_of(image: Path | str) -> str:
    """Return the stem of result names for *image* (a path or a URL), short enough for every file system."""
    return file_names.stem_of(image) or "image"


def make_ready(out: Path) -> None:
    """
    Create the directory *out* and check that files can be written there; raises `CommandFailed`.

    Call it before anything is sent: a result that can't be saved is paid for anyway.
    """
    with _refused(f"--out {out}"):
        if out.exists() and not out.is_dir():
            raise CommandFailed(f"--out {out} is not a directory; name an existing or a new one", status=2)
        out.mkdir(parents=True, exist_ok=True)
    require_writable(out, f"--out {out}")


def require_writable(directory: Path, option: str) -> None:
    """Check that a file can be made in *directory*, which *option* named; raises `CommandFailed`."""
    with _refused(option), tempfile.TemporaryFile(dir=directory):
        pass


@contextmanager
def _refused(option: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        why = exc.strerror or exc
        raise CommandFailed(
            f"{option} can't be written to ({why}); name a writable directory or a new one", status=2
        ) from exc


@contextmanager
def naming(job: Job | str, out: Path | None) -> Iterator[None]:
    """Name the job in any error of the block, and say how to go on: it was sent, and may be paid for."""
    job_id = job if isinstance(job, str) else job.id
    again = f"`submitter wait {job_id}{'' if out is None else f' --out {shlex.quote(str(out))}'}`"
    try:
        yield
    except TimeoutError as exc:
        raise CommandFailed(
            f"{job_id} succeeded, but the receiver has not kept its images in time; fetch them with {again}"
        ) from exc
    except JobFailed as exc:
        lost = exc.code == "image_lost"
        remedy = f"; `submitter poll {job_id}` asks the provider for fresh links" if lost else ""
        message = str(exc).removesuffix(f"; {exc.remedy}")
        raise CommandFailed(f"{message}{remedy}", code=exc.code) from exc
    except (SubmitterError, OSError) as exc:
        raise CommandFailed(f"{job_id} was sent, but: {described(exc)}; go on with {again}") from exc
    except asyncio.CancelledError:
        say(f"{job_id} was sent; go on with {again}", err=True)
        raise
