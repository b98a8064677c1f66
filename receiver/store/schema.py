"""
The revisions of the schema that this version of the code knows.

They are read from the names of the migrations (`0001_first.py` makes revision 0001), so that a process whose database
lacks none needn't import what runs them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"


class UnknownSchema(Exception):
    """The database was migrated by a newer version of the code."""


def newest_schema() -> str:
    """Return the revision that this version of the code needs."""
    return max(_known_schemas())


def lacks_migrations(found: str | None) -> bool:
    """Return whether a database at revision *found* (None: an empty one) must be migrated. Raises `UnknownSchema`."""
    if found is not None and found not in _known_schemas():
        raise UnknownSchema(found)
    return found != newest_schema()


@cache
def _known_schemas() -> frozenset[str]:
    names = (path.stem for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    return frozenset(name.partition("_")[0] for name in names)
