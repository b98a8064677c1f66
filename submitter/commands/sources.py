"""Sources of a batch: a directory, a glob, or the rows of a CSV; each item gets a unique name."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submitter.commands.options import check_options, parse_value
from submitter.commands.results import stem_of
from submitter.file_names import is_url
from submitter.image_files import magic_type
from submitter.printing import CommandFailed

_COLUMNS = ("image", "name")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a batch: a file or a URL, the name of its results, and its own options."""

    image: Path | str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def key(self, batch: str, provider: str, again: int) -> str:
        """
        Return the Idempotency-Key of this item: the same in every run, as long as its bytes and options are.

        Reads the file.
        """
        if isinstance(self.image, Path):
            with self.image.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            content = self.image
        what = json.dumps([provider, self.name, content, self.options, again], sort_keys=True)
        return f"batch-{batch}-{hashlib.sha256(what.encode()).hexdigest()[:40]}"


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file that is not sent, and why."""

    path: str
    reason: str


def items_of(source: str, provider: str, options: Mapping[str, Any]) -> tuple[list[Item], list[PassedOver]]:
    """Return the items of DIR, GLOB or CSV in a stable order, and other files; `CommandFailed` if there is no item."""
    path = Path(source)
    passed_over: list[PassedOver] = []
    if path.is_dir():
        found = list(_images(sorted(path.iterdir()), options, passed_over))
    elif path.suffix.lower() == ".csv":
        found = list(_rows(path, provider, options, passed_over))
    else:
        matches = (Path(match) for match in sorted(glob.glob(source, recursive=True)))
        found = list(_images(matches, options, passed_over))
    if not found:
        if not passed_over:
            raise CommandFailed(f"no images in {source}; give a directory, a glob in quotes, or a CSV", status=2)
        details = [f"{passed.path}: {passed.reason}" for passed in passed_over]
        raise CommandFailed(f"no images in {source}", status=2, details=details)
    for item in found:
        if item.options is not options:
            check_options(provider, item.options, where=f"{item.image}: ")
    return list(_named_apart(found)), passed_over


def _images(paths: Iterable[Path], options: Mapping[str, Any], passed_over: list[PassedOver]) -> Iterator[Item]:
    for path in paths:
        if path.name.startswith(".") or path.is_dir():
            continue
        reason = _no_image(path)
        if reason is None:
            yield Item(path, stem_of(path), options)
        else:
            passed_over.append(PassedOver(str(path), reason))


def _rows(path: Path, provider: str, options: Mapping[str, Any], passed_over: list[PassedOver]) -> Iterator[Item]:
    """Yield the items of a CSV: `image` (a path relative to it, or a URL), maybe `name`, and columns of options."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "image" not in (rows.fieldnames or ()):
                raise CommandFailed(f"{path} needs a column `image`", status=2)
            for row in rows:
                given = (row.get("image") or "").strip()
                if not given:
                    continue
                image: Path | str = given
                if not is_url(given):
                    image = path.parent / given
                    if not image.is_file():
                        raise CommandFailed(f"{path}, line {rows.line_num}: {given} is not a file", status=2)
                    if (reason := _no_image(image)) is not None:
                        passed_over.append(PassedOver(str(image), reason))
                        continue
                own = {
                    name: parse_value(provider, name, text)
                    for name, text in row.items()
                    if name not in _COLUMNS and name and text
                }
                name = (row.get("name") or "").strip()
                yield Item(image, stem_of(Path(name + ".x")) if name else stem_of(image), {**options, **own})
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise CommandFailed(f"{path} can't be read as CSV: {exc}", status=2) from exc


def _named_apart(found: list[Item]) -> Iterator[Item]:
    """Make names unique, so that results don't overwrite each other: `cat.jpg`, `cat.png` become `cat`, `cat_2`."""
    taken: set[str] = set()
    for item in found:
        name, number = item.name, 1
        while name.lower() in taken:
            number += 1
            name = f"{item.name}_{number}"
        taken.add(name.lower())
        yield replace(item, name=name)


def _no_image(path: Path) -> str | None:
    """Return why *path* is not sent; None if it claims to be an image, which the receiver then inspects."""
    if path.exists() and not path.is_file():
        return "it is not a file"  # and to open a pipe would wait for somebody who writes into it
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as exc:
        return f"it can't be read: {exc.strerror or exc}"
    if not head:
        return "the file is empty"
    if magic_type(head) is not None:
        return None
    heic = path.suffix.lower() in (".heic", ".heif")
    return "the file is not an image of a known type" + (" (HEIC: export it as JPEG)" if heic else "")
