"""
The calls about jobs: submit, wait, save, and an operator's actions. No I/O.

Waiting listens to the event stream and requests the job after every piece of it, at least every 20 s, so neither a
disconnect nor a proxy that buffers the stream makes it miss the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from submitter import file_names
from submitter.errors import Conflict, Invalid, JobFailed, NoReceiver, ReceiverError
from submitter.file_names import is_url
from submitter.sdk.events import open_events, whole
from submitter.sdk.link import LATER, Link, joined, moment
from submitter.sdk.result_files import free_paths
from submitter.sdk.steps import Close, Sleep, Steps, Stream, next_piece, open_stream, work
from submitter.sdk.values import Evidence, Job, JobImage
from submitter.system_errors import about
from submitter.vocabulary import State

Source = str | bytes | os.PathLike[str]
"""An image: a file's path, its bytes, or the http(s) URL of one."""

_NAMELESS = "upload"
"""The file name of bytes: a part without a name would be no file."""
_FIRST_LISTEN_SECONDS = 3.0
_LONGEST_LISTEN_SECONDS = 20.0  # longer than the receiver's heartbeat


def id_of(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


def job_path(job: Job | str, *more: str | int) -> str:
    return "/".join(["/v1/jobs", quote(id_of(job), safe=""), *map(str, more)])


def submit(
    link: Link,
    provider: str,
    image: Source,
    *,
    options: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
    notify_url: str | None,
    idempotency_key: str | None,
    timeout: float | None,
) -> Steps[Job]:
    """Submit an image. All tries carry one Idempotency-Key, so that a lost answer does not make a second job."""
    document: dict[str, Any] = {"provider": provider, "options": dict(options or {})}
    if metadata is not None:
        document["metadata"] = dict(metadata)
    if notify_url is not None:
        document["notify_url"] = notify_url
    headers = {"idempotency-key": _key(idempotency_key)}
    file: BinaryIO | None = None
    if isinstance(image, str) and is_url(image):
        content: dict[str, Any] = {"json": {**document, "image": {"url": image}}}
    elif isinstance(image, bytes):
        content = {"data": {"job": json.dumps(document)}, "files": {"image": (_NAMELESS, image)}}
    else:
        path = Path(image)
        file = yield from work(lambda: path.open("rb"))
        content = {"data": {"job": json.dumps(document)}, "files": {"image": (_utf8(path.name), file)}}

    def make(patience: float) -> httpx.Request:
        return link.request("POST", "/v1/jobs", patience=patience, headers=headers, **content)

    try:
        answer = yield from link.retried(make, timeout=timeout)
    finally:
        if file is not None:
            file.close()
    return link.read(Job, answer)


def _utf8(name: str) -> str:
    """Return *name* with what is not UTF-8 in it as `�`: file systems allow any bytes, requests do not."""
    return os.fsencode(name).decode("utf-8", "replace")


def job(link: Link, job: Job | str, *, timeout: float | None = None) -> Steps[Job]:
    return link.read(Job, (yield from link.call("GET", job_path(job), timeout=timeout)))


def jobs(
    link: Link,
    *,
    state: str | Sequence[str],
    provider: str | Sequence[str],
    since: datetime | str | None,
    until: datetime | str | None,
    q: str | None,
    timeout: float | None,
) -> Steps[None]:
    params = {
        "state": joined(state),
        "provider": joined(provider),
        "since": moment(since),
        "until": moment(until),
        "q": q,
    }
    return (yield from link.pages(Job, "/v1/jobs", params, timeout=timeout))


def wait(link: Link, job_: Job | str, *, timeout: float | None) -> Steps[Job]:
    """Return the job once it has ended or is `unconfirmed`. Raises `TimeoutError` after *timeout* seconds."""
    until = None if timeout is None else link.clock() + timeout
    listen_seconds = _FIRST_LISTEN_SECONDS
    found = yield from _found_in_time(link, job_, until)
    while not found.ended:
        began = link.clock()
        stream = yield from _listening(link, found.id, _left(link, until, listen_seconds))
        found = yield from _found_in_time(link, job_, until)
        while stream is not None and not found.ended and (yield from _heard(stream)):
            found = yield from _found_in_time(link, job_, until)
        if stream is not None:
            yield Close(stream)
        elif not found.ended:
            yield Sleep(_left(link, until, max(listen_seconds / 4 - (link.clock() - began), 0.1)))
        listen_seconds = min(listen_seconds * 1.5, _LONGEST_LISTEN_SECONDS)
    return found


def save(
    link: Link, job_: Job | str, directory: str | os.PathLike[str], *, stem: str | None, timeout: float | None
) -> Steps[list[Path]]:
    """
    Write a job's images into *directory* once the receiver has kept them, each whole or not at all; return the paths.

    Raises `JobFailed` as soon as it is known that there is nothing to save, `TimeoutError` after *timeout* seconds.
    """
    until = None if timeout is None else link.clock() + timeout
    found = yield from wait(link, job_, timeout=timeout)
    pause = 0.1
    while True:
        require_images(found)
        if all(image.kept for image in found.images):
            break
        yield Sleep(_left(link, until, pause))
        pause = min(pause * 1.5, 3.0)
        try:
            found = yield from _found_in_time(link, job_, until)
        except TimeoutError as exc:
            raise TimeoutError(f"the images of {found.id} were not kept in time") from exc
    target = Path(directory)
    yield from work(lambda: target.mkdir(parents=True, exist_ok=True))
    paths: list[Path] = yield from work(
        lambda: free_paths(target, stem or _stem_of_input(found) or found.id, found.images)
    )
    for n, path in enumerate(paths):
        if not (yield from work(path.exists)):
            yield from _download(link, found, n, path, until)
    return paths


def upscale(
    link: Link,
    provider: str,
    image: Source,
    *,
    options: Mapping[str, Any] | None,
    out: str | os.PathLike[str],
    timeout: float | None,
) -> Steps[list[Path]]:
    """Submit, wait and save; return the paths of the images, named after the input."""
    until = None if timeout is None else link.clock() + timeout
    sent = yield from submit(
        link,
        provider,
        image,
        options=options,
        metadata=None,
        notify_url=None,
        idempotency_key=None,
        timeout=None,
    )
    done = yield from wait(link, sent, timeout=None if until is None else max(until - link.clock(), 0.0))
    left = None if until is None else max(until - link.clock(), 1.0)
    return (yield from save(link, done, out, stem=stem_of(image), timeout=left))


def image(link: Link, job_: Job | str, n: int, *, timeout: float | None) -> Steps[bytes]:
    answer = yield from link.call("GET", job_path(job_, "images", n), timeout=timeout)
    return answer.content


def cancel(link: Link, job_: Job | str, *, abandon: bool, timeout: float | None) -> Steps[Job]:
    """Cancel a job. A try whose answer was lost may have canceled it: then the next one finds it canceled."""
    tries = 0

    def make(patience: float) -> httpx.Request:
        nonlocal tries
        tries += 1
        return link.request("POST", job_path(job_, "cancel"), patience=patience, json={"abandon": abandon})

    try:
        answer = yield from link.retried(make, timeout=timeout)
    except Conflict:
        if tries > 1:
            found = yield from job(link, job_, timeout=timeout)
            if found.state is State.CANCELED:
                return found
        raise
    return link.read(Job, answer)


def poll(link: Link, job_: Job | str, *, wait: float, timeout: float | None) -> Steps[Job]:
    """Make a poll due, and return the job after it. Raises `TimeoutError` if it does not happen within *wait*."""
    asked = link.read(Job, (yield from link.call("POST", job_path(job_, "poll"), timeout=timeout, json={})))
    if wait <= 0 or "polled_at" not in asked.model_fields_set:  # an older receiver does not tell
        return asked
    until = link.clock() + wait
    found, pause = asked, 0.1
    while found.polled_at == asked.polled_at and found.due_at is not None:
        if link.clock() >= until:
            raise TimeoutError(f"{asked.id} was not polled within {wait:g} s; it stays due")
        yield Sleep(_left(link, until, pause))
        pause = min(pause * 1.5, 1.0)
        found = yield from job(link, asked, timeout=timeout)
    return found


def resubmit(
    link: Link, job_: Job | str, *, may_pay_twice: bool, idempotency_key: str | None, timeout: float | None
) -> Steps[Job]:
    answer = yield from link.call(
        "POST",
        job_path(job_, "resubmit"),
        timeout=timeout,
        headers={"idempotency-key": _key(idempotency_key)},
        json={"may_pay_twice": may_pay_twice},
    )
    return link.read(Job, answer)


def evidence(link: Link, job_: Job | str, *, timeout: float | None) -> Steps[None]:
    return (yield from link.pages(Evidence, job_path(job_, "evidence"), {}, timeout=timeout))


def require_images(found: Job) -> None:
    """Raise `JobFailed` if *found* has no images that can be saved, now or later."""
    if not found.succeeded and not found.images:
        reason = f": {found.error.message} ({found.error.code})" if found.error else ""
        code = found.error.code if found.error else found.state.value
        raise JobFailed(f"{found.id} is {found.state.value}{reason}", code=code, job=found)
    for n, image in enumerate(found.images):
        if image.state == "lost" and not image.kept:
            reason = f": {image.lost_reason}" if image.lost_reason else ""
            raise JobFailed(
                f"image {n} of {found.id} is lost{reason}",
                code="image_lost",
                job=found,
                remedy="poll() asks the provider for fresh links",
            )
        if image.state == "removed":
            raise JobFailed(
                f"image {n} of {found.id} was removed after RECEIVER_KEEP_IMAGES_DAYS", code="image_removed", job=found
            )


def _stem_of_input(found: Job) -> str | None:
    name = found.input.file_name if found.input else None
    return file_names.stem_of(Path(name)) if name and name != _NAMELESS else None


def stem_of(image: Source) -> str | None:
    """Return the stem of result names for *image*; None for bytes, which have no name."""
    return None if isinstance(image, bytes) else file_names.stem_of(image)


# --- Parts ----------------------------------------------------------------------------------------------------------


def _found_in_time(link: Link, job_: Job | str, until: float | None) -> Steps[Job]:
    """Return the current job; `TimeoutError` if *until* has passed, or passes while no receiver answers."""
    if until is None:
        return (yield from job(link, job_))
    left = until - link.clock()
    if left <= 0:
        raise TimeoutError(f"{id_of(job_)} has not ended in time")
    try:
        return (yield from job(link, job_, timeout=min(left, link.timeout)))
    except NoReceiver as exc:
        if left > link.timeout or exc.code == "not_a_receiver":
            raise
        raise TimeoutError(f"{id_of(job_)} has not ended in time: {exc}") from exc


def _listening(link: Link, job_id: str, patience: float) -> Steps[Stream | None]:
    """Return a stream of the job's events that has begun to flow; None if that fails now."""
    stream: Stream | None = None
    try:
        stream = yield from open_events(link, {"job": job_id}, None, silence_seconds=patience)
        if (yield from next_piece(stream)) is not None:
            return stream
    except (httpx.RequestError, ReceiverError):
        pass  # requesting the job reports the error
    if stream is not None:
        yield Close(stream)
    return None


def _heard(stream: Stream) -> Steps[bool]:
    """Wait for a piece of the stream. Returns False if it ended, was cut off, or was silent for too long."""
    try:
        return (yield from next_piece(stream)) is not None
    except httpx.RequestError:
        return False


def _left(link: Link, until: float | None, seconds: float) -> float:
    return seconds if until is None else max(min(seconds, until - link.clock()), 0.0)


def _download(link: Link, found: Job, n: int, path: Path, until: float | None) -> Steps[None]:
    """Download the image, whole or not at all; a download that was cut off is restarted."""
    deadline, tries = (link.deadline(None) if until is None else until), 0
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        while True:
            tries += 1
            try:
                stream = yield from open_stream(link.request("GET", job_path(found, "images", n)))
                if not stream.response.is_success:
                    status = stream.response.status_code
                    answer = yield from whole(stream)
                    if status not in LATER or link.clock() >= deadline:
                        link.checked(answer)
                    raise httpx.RemoteProtocolError(f"the receiver answered {status}")
                yield from _written(stream, part, path)
                yield Close(stream)
                yield from work(lambda: _complete(part, path, found.images[n]))
                return
            except httpx.RequestError as exc:
                yield from link.pause(deadline, tries, cause=exc)
    finally:
        part.unlink(missing_ok=True)


def _written(stream: Stream, part: Path, path: Path) -> Steps[None]:
    """Write what comes to *part*; an error names *path*."""
    file = yield from work(lambda: part.open("wb", buffering=0))
    try:
        while (piece := (yield from next_piece(stream))) is not None:
            yield from work(lambda piece=piece: _write(file, piece, path))  # type: ignore[misc]
        yield from work(lambda: _sync(file, path))
    finally:
        file.close()


def _write(file: FileIO, piece: bytes, path: Path) -> None:
    with about(path):
        while piece:  # a disk that is nearly full takes a part of it
            piece = piece[file.write(piece) :]


def _sync(file: FileIO, path: Path) -> None:
    with about(path):
        os.fsync(file.fileno())


def _complete(part: Path, path: Path, image: JobImage) -> None:
    """Move a download to its place. Raises `httpx.RemoteProtocolError` if it is not what the receiver kept."""
    if image.sha256 is not None:
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != image.sha256:
                raise httpx.RemoteProtocolError("the image arrived damaged")
    part.replace(path)


def _key(given: str | None) -> str:
    if given is None:
        return secrets.token_urlsafe(24)
    if not (1 <= len(given) <= 255 and given.isascii() and given.isprintable()):
        raise Invalid(
            "an idempotency key must be 1 to 255 printable ASCII characters",
            code="invalid_idempotency_key",
            field="Idempotency-Key",
            remedy="use a UUID, for example",
        )
    return given
