"""
Errors that a transaction may raise, split by what the caller can do about them.

    StoreError
    ├── Conflict              another transaction interfered: read again and try again
    │   └── Overtaken         a row is no longer in the version that was read
    ├── DatabaseUnavailable   the database cannot be reached or written now: answer 503 and try later
    └── DatabaseRefused       the database is not one that this version can use: do what the text says
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of everything that a transaction raises by itself."""


class Conflict(StoreError):
    """Another transaction interfered (a unique key, a deadlock, a serialization failure). Nothing was written."""


class Overtaken(Conflict):
    """The rows that the transaction was planned from have changed meanwhile. Nothing was written."""


class DatabaseUnavailable(StoreError):
    """
    The database cannot be reached, read or written at the moment.

    Where the connection was lost during a commit, whether it was written is unknown.
    """


class DatabaseRefused(StoreError):
    """This version, as it is installed, cannot use the database. The text is one line that says what to do."""
