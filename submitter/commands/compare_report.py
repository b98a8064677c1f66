"""A comparison as a table, as JSON, and as an HTML page in one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from submitter.commands.compare_pictures import Appearance
from submitter.printing import Listing, age, harmless, state_text
from submitter.providers import PROVIDERS
from submitter.sdk.values import Job
from submitter.vocabulary import Picture
from submitter.whole_files import write_whole
from submitter.words import size_text

_NONE = "–"


@dataclass(frozen=True, slots=True)
class Result:
    """
    A provider's part of the comparison.

    `state` is the job's, or `refused` (there is no job), or `unsaved` (paid for, not fetched yet).
    """

    provider: str
    options: Mapping[str, Any]
    state: str
    job: Job | None = None
    reason: str | None = None
    saved: Sequence[Path] = ()
    appearance: Appearance = field(default_factory=Appearance)

    @property
    def good(self) -> bool:
        return self.state == "succeeded"

    @property
    def path(self) -> Path | None:
        return self.saved[0] if self.saved else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the picture."""
        image = self.job.images[0] if self.job and self.job.images else None
        return (image.width, image.height) if image and image.width and image.height else None

    @property
    def bytes(self) -> int | None:
        return self.job.images[0].bytes if self.job and self.job.images else None

    @property
    def seconds(self) -> float | None:
        """From the submit call to the end."""
        if self.job is None or self.job.sent_at is None or self.job.finished_at is None:
            return None
        return (self.job.finished_at - self.job.sent_at).total_seconds()

    def figures(self) -> dict[str, str]:
        """The figures that are compared, by name, for people."""
        job = self.job
        timed = job is not None and job.sent_at is not None and job.finished_at is not None
        return {
            "time": age(job.sent_at, job.finished_at) if timed and job and job.sent_at and job.finished_at else _NONE,
            "cost": str(job.cost) if job and job.cost else "unknown",
            "size": f"{self.size[0]}×{self.size[1]}" if self.size else _NONE,
            "file": _bytes_text(self.bytes),
            "sharpness": _NONE if self.appearance.sharpness is None else f"{self.appearance.sharpness:.2f}",
        }

    def to_json(self) -> dict[str, Any]:
        size, cost = self.size or (None, None), self.job.cost if self.job else None
        return {
            "provider": self.provider,
            "options": dict(self.options),
            "job": self.job and self.job.id,
            "state": self.state,
            "reason": self.reason,
            "seconds": self.seconds,
            "cost": {"amount": format(cost.amount, "f"), "unit": cost.unit} if cost else None,
            "width": size[0],
            "height": size[1],
            "bytes": self.bytes,
            "sharpness": None if self.appearance.sharpness is None else round(self.appearance.sharpness, 4),
            "saved": [str(path) for path in self.saved],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A picture, how it is shown, and each provider's result."""

    image: Path | str
    picture: Picture
    appearance: Appearance
    results: Sequence[Result]

    @property
    def name(self) -> str:
        """The file's name, or the address."""
        return self.image if isinstance(self.image, str) else self.image.name

    def to_json(self) -> dict[str, Any]:
        picture = self.picture
        return {
            "image": {"path": str(self.image), "width": picture.width, "height": picture.height, "bytes": picture.size},
            "results": [result.to_json() for result in self.results],
        }


def results_table(comparison: Comparison) -> Listing:
    table = Listing("provider", "state", "time", "cost", "size", "file", "sharpness", "job", "note")
    for result in comparison.results:
        job = result.job.id if result.job else _NONE
        figures = result.figures().values()
        table.add_row(result.provider, state_text(result.state), *figures, job, result.reason or "")
    return table


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the page to *path*, whole or not at all."""
    write_whole(path, report(comparison))


def report(comparison: Comparison) -> str:
    """
    The page. Names, errors and options are written by others: `Markup.format` escapes whatever is put in.

    Its policy allows its own style and script by their digests, pictures from `data:` and nothing else, so that no
    browser asks any host for anything.
    """
    here = files("submitter.commands")
    style = here.joinpath("compare_report.css").read_text("utf-8")
    script = here.joinpath("compare_report.js").read_text("utf-8")
    picture, name = comparison.picture, harmless(comparison.name)
    before = _IMAGE.format("before", name, comparison.appearance.uri) if comparison.appearance.uri else Markup("")
    return str(
        _PAGE.format(
            policy=f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
            name=name,
            given=f"{picture.width}×{picture.height}, {_bytes_text(picture.size)}",
            rows=Markup("").join(_row(result) for result in comparison.results),
            before=before,
            results=Markup("").join(_figure(result, comparison) for result in comparison.results),
            style=Markup(style),
            script=Markup(script),
        )
    )


def _row(result: Result) -> Markup:
    cells = Markup("").join(Markup("<td>{}</td>").format(text) for text in result.figures().values())
    return Markup('<tr><th scope="row"><a href="#{}">{}</a></th><td>{}</td>{}</tr>').format(
        result.provider, PROVIDERS[result.provider].title, result.state, cells
    )


def _figure(result: Result, comparison: Comparison) -> Markup:
    title, view = PROVIDERS[result.provider].title, result.appearance
    options = ", ".join(f"{name} {value}" for name, value in result.options.items()) or "its defaults"
    notes = [f"Options: {options}."]
    if result.job is not None:
        notes.append(f"Job {result.job.id}.")
    if view.reduced and view.uri:
        notes.append("A smaller copy is shown here.")
    if result.reason:
        shown = Markup('<p class="reason">{}</p>').format(harmless(result.reason))
    elif view.uri is None:
        shown = Markup('<p class="reason">This picture can’t be shown here; it is {}.</p>').format(
            harmless(str(result.path))
        )
    elif comparison.appearance.uri is None:
        shown = Markup('<div class="stage">{}</div>').format(_IMAGE.format("after", f"After: {title}", view.uri))
    else:
        image = _IMAGE.format("after", f"After: {title}", view.uri)
        shown = _SLIDER.format(provider=result.provider, title=title, image=image)
    return _FIGURE.format(provider=result.provider, title=title, notes=harmless(" ".join(notes)), shown=shown)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _bytes_text(count: int | None) -> str:
    return _NONE if count is None else size_text(count)


_IMAGE = Markup('<img class="{}" alt="{}" src="{}">')
_SLIDER = Markup("""\
<div class="stage" data-compare>{image}<span class="handle" aria-hidden="true"></span></div>
<div class="bar">
<label>Left <select data-left></select></label>
<input type="range" min="0" max="100" value="50" data-split aria-label="Slider: before and {title}">
</div>
""")
_FIGURE = Markup("""\
<section id="{provider}" aria-labelledby="title-{provider}" data-result="{title}">
<h2 id="title-{provider}">{title}</h2>
<p class="note">{notes}</p>
{shown}
</section>
""")
_PAGE = Markup("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name} compared</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{name}</h1>
<p class="note">{given}, through several providers.</p>
<div class="wide" tabindex="0" role="region" aria-label="Figures"><table>
<thead><tr><th scope="col">Provider</th><th scope="col">State</th><th scope="col">Time</th><th scope="col">Cost</th>\
<th scope="col">Size</th><th scope="col">File</th><th scope="col">Sharpness</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
<p class="note">Sharpness is the variance of the Laplacian of the luminance, blurred by a pixel, at the size of the \
smallest result, over that of the picture enlarged by plain interpolation (1.00). Noise and halos count as sharp \
too.</p>
{results}
<section aria-labelledby="title-before" data-result="Before">
<h2 id="title-before">Before</h2>
<div class="stage">{before}</div>
</section>
</main>
<script>{script}</script>
</body>
</html>
""")
