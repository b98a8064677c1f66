"""
Log lines for people at a terminal: the time, a mark, a few words.

    22:03:42  --> callback freepik COMPLETED job_…
    22:03:42      job succeeded freepik job_…, settled by callback
    22:03:42  <-- delivered job.succeeded job_… to ep_…, 204
    22:03:44   !  delivery unsuccessful: job_…, status 500, error …
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from structlog import DropEvent
from structlog.typing import EventDict, WrappedLogger

from submitter.environment import forced_color, plain_output
from submitter.printing import harmless
from submitter.words import size_text

_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_DIM, _END = "\x1b[2m", "\x1b[0m"
_LEFT_OUT = ("event", "level", "timestamp", "request_id", "logger")


class TerminalRenderer:
    """The last processor of structlog's chain. Colours unless the environment asks for plain output."""

    def __init__(self, *, on_terminal: bool) -> None:
        self._colours = (on_terminal or forced_color()) and not plain_output()

    def __call__(self, logger: WrappedLogger, method: str, line: EventDict) -> str:
        mark, words = _worded(line)
        text = harmless(f"{mark:>3}  {words}")
        at, colour = _time_of(line), _COLOURS.get(str(line.get("level")))
        if not self._colours:
            return f"{at}  {text}"
        return f"{_DIM}{at}{_END}  {colour}{text}{_END}" if colour else f"{_DIM}{at}{_END}  {text}"


def _worded(line: Mapping[str, Any]) -> tuple[str, str]:
    event = str(line.get("event"))
    if (words := _WORDS.get(event)) is not None:
        return words(line)
    mark = "!" if line.get("level") in _COLOURS else ""
    fields = dict(line)
    heading = event if " " in event else event.replace("_", " ")
    if event.startswith("job_"):  # a change of state: the job is the subject of the line
        heading += "".join(f" {fields.pop(name)}" for name in ("provider", "job") if fields.get(name))
        fields.pop("state", None)
    shown = [
        str(value) if name in ("job", "provider") else f"{name.replace('_', ' ')} {value}"
        for name, value in fields.items()
        if name not in _LEFT_OUT and value is not None
    ]
    separator = ", " if event.startswith("job_") else ": "
    return mark, heading + (separator + ", ".join(shown) if shown else "")


def _callback(line: Mapping[str, Any]) -> tuple[str, str]:
    verdict = line.get("verdict")
    if verdict == "recorded":  # `callback_read` follows, and says what it is about
        raise DropEvent
    return "-->", f"{_about_callback(line, 'provider', 'job')}: {verdict}"


def _callback_read(line: Mapping[str, Any]) -> tuple[str, str]:
    return "-->", _about_callback(line, "provider", "status", "job")


def _callback_refused(line: Mapping[str, Any]) -> tuple[str, str]:
    why = line.get("detail") or line.get("reason")
    return "-->", f"{_about_callback(line, 'provider', 'job')} refused" + (f": {why}" if why else "")


def _about_callback(line: Mapping[str, Any], *names: str) -> str:
    return " ".join(["callback", *(str(line[name]) for name in names if line.get(name) is not None)])


def _image_kept(line: Mapping[str, Any]) -> tuple[str, str]:
    width, height, count = line.get("width"), line.get("height"), line.get("bytes")
    measures = [
        *([f"{width}×{height}"] if width and height else ()),
        *([size_text(count)] if count is not None else ()),
    ]
    return "", f"image {line.get('n')} kept {line.get('job')}" + (f", {', '.join(measures)}" if measures else "")


def _delivered(line: Mapping[str, Any]) -> tuple[str, str]:
    about = f" {line['job']}" if line.get("job") else ""
    return "<--", f"delivered {line.get('type')}{about} to {line.get('endpoint') or 'notify_url'}, {line.get('status')}"


def _undelivered(line: Mapping[str, Any]) -> tuple[str, str]:
    about = f" {line['job']}" if line.get("job") else ""
    why = line.get("error") or f"answered {line.get('status')}"
    then = "given up" if line.get("given_up") else "to be tried again"
    place = line.get("endpoint") or "notify_url"
    return "<--", f"not delivered {line.get('type')}{about} to {place}: {why}; {then}"


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, str]]] = {
    "callback": _callback,
    "callback_read": _callback_read,
    "callback_refused": _callback_refused,
    "image_kept": _image_kept,
    "delivery_successful": _delivered,
    "delivery_unsuccessful": _undelivered,
}


def _time_of(line: Mapping[str, Any]) -> str:
    """Return the local time of day."""
    try:
        return f"{datetime.fromisoformat(str(line.get('timestamp'))).astimezone():%H:%M:%S}"
    except ValueError:
        return 8 * " "
