"""What a batch consists of: a directory, a glob, or the rows of a CSV; each item under a name of its own."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submitter.commands.connection import CommandFailed
from submitter.commands.options import parse_value
from submitter.commands.results import stem_of
from submitter.image_files import magic_type

_COLUMNS = ("image", "name")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a batch: a file or an address, what results are called, and its own options."""

    image: Path | str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def key(self, batch: str, provider: str, again: int) -> str:
        """
        The Idempotency-Key of this item: the same from run to run, as long as its bytes and options are the same.

        Reads the file.
        """
        if isinstance(self.image, Path):
            with self.image.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            content = self.image
        what = json.dumps([provider, self.name, content, self.options, again], sort_keys=True)
        return f"batch-{batch}-{hashlib.sha256(what.encode()).hexdigest()[:40]}"


def items_of(source: str, options: Mapping[str, Any]) -> list[Item]:
    """The items of DIR, GLOB or CSV, in a stable order; `CommandFailed` if there are none."""
    path = Path(source)
    if path.is_dir():
        found = [Item(one, stem_of(one), options) for one in sorted(path.iterdir()) if _is_image(one)]
    elif path.suffix.lower() == ".csv":
        found = list(_rows(path, options))
    else:
        paths = (Path(one) for one in sorted(glob.glob(source, recursive=True)))
        found = [Item(one, stem_of(one), options) for one in paths if _is_image(one)]
    if not found:
        raise CommandFailed(f"no images in {source}; give a directory, a glob in quotes, or a CSV", status=2)
    return list(_named_apart(found))


def _rows(path: Path, options: Mapping[str, Any]) -> Iterator[Item]:
    """`image` (a path beside the CSV, or an address), `name` if wanted; every other column is an option."""
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
                if not given.startswith(("http://", "https://")):
                    image = path.parent / given
                    if not image.is_file():
                        raise CommandFailed(f"{path}, line {rows.line_num}: {given} is not a file", status=2)
                own = {name: parse_value(text) for name, text in row.items() if name not in _COLUMNS and name and text}
                name = (row.get("name") or "").strip()
                yield Item(image, stem_of(Path(name + ".x")) if name else stem_of(image), {**options, **own})
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise CommandFailed(f"{path} can't be read as CSV: {exc}", status=2) from exc


def _named_apart(found: list[Item]) -> Iterator[Item]:
    """`cat.jpg` and `cat.png` become `cat` and `cat_2`: results must not overwrite each other."""
    taken: set[str] = set()
    for item in found:
        name, number = item.name, 1
        while name.lower() in taken:
            number += 1
            name = f"{item.name}_{number}"
        taken.add(name.lower())
        yield replace(item, name=name)


def _is_image(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    with path.open("rb") as file:
        return magic_type(file.read(64)) is not None
