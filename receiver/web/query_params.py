"""Query parameters of lists: filters from a known set, ids, and the length and place of a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from starlette.requests import Request

from receiver.domain.ids import is_id
from receiver.web.problems import Problem
from receiver.web.schemas import moment_of

_REPEATABLE = frozenset({"state", "provider", "type", "event_type"})
"""Filters with several values. Of any other parameter, only one value could be obeyed."""


def known_only(request: Request, *known: str, aliases: Sequence[str] = ()) -> None:
    """
    Refuse a parameter that is not among *known*, or that is given twice.

    A misspelt filter would let everything through.
    """
    for name in request.query_params:
        if name not in known and name not in aliases:
            raise Problem(
                422,
                "unknown_parameter",
                f"there is no parameter {name[:60]!r}",
                field=name[:60],
                remedy=f"the parameters are {', '.join(known)}" if known else "leave it out: there are no parameters",
            )
        if name not in _REPEATABLE and len(request.query_params.getlist(name)) > 1:
            raise Problem(
                422, "repeated_parameter", f"{name} is given more than once", field=name, remedy=f"send one {name}"
            )


def limit_of(request: Request, *, most: int = 200) -> int:
    """Read `?limit=`, 1 to *most*, 50 if not given."""
    given = request.query_params.get("limit", "50")
    if not (given.isascii() and given.isdigit() and len(given) < 6 and 1 <= int(given) <= most):
        raise Problem(
            422, "invalid_limit", f"limit must be 1 to {most}", field="limit", remedy="change limit, or leave it out"
        )
    return int(given)


def cursor_of(request: Request, name: str = "cursor") -> int:
    """Read a numeric cursor, 0 if not given."""
    given = request.query_params.get(name) or "0"
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise _invalid_cursor(name)
    return int(given)


def text_of(request: Request, name: str) -> str | None:
    """Read the single value of a filter."""
    value = request.query_params.get(name)
    if value and not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        raise Problem(
            422,
            "invalid_filter",
            f"{name} is not an id",
            field=name,
            remedy="send an id as the lists show it, or leave the filter out",
        )
    return value or None


def chosen_of(request: Request, name: str, known: Sequence[str]) -> list[str]:
    """Read the values of a filter, repeated or separated by commas; each must be *known*."""
    chosen = [value.strip() for value in ",".join(request.query_params.getlist(name)).split(",") if value.strip()]
    for value in chosen:
        if value not in known:
            raise Problem(
                422,
                "invalid_filter",
                f"there is no {name} {value[:48]!r}",
                field=name,
                remedy=f"use {', '.join(known)}",
            )
    return chosen


def moment_param(request: Request, name: str) -> datetime | None:
    """Read the time of a filter: RFC 3339, or a date, which is UTC."""
    given = request.query_params.get(name, "").strip()
    if not given:
        return None
    try:
        moment, space, zone = given.rpartition(" ")
        # In a query that was not encoded, the plus of a zone is a space.
        return moment_of(f"{moment}+{zone}" if space and "T" in moment else given)
    except ValueError as exc:
        raise Problem(
            422,
            "invalid_filter",
            f"{name} is not a time",
            field=name,
            remedy="write it as RFC 3339, for example 2026-01-31T12:00:00Z",
        ) from exc


def words_of(request: Request, name: str, *, longest: int = 200) -> str:
    """Read the free text of a filter, without the white space around it."""
    given = request.query_params.get(name, "").strip()
    if len(given) > longest or "\0" in given:
        raise Problem(
            422,
            "invalid_filter",
            f"{name} has more than {longest} characters, or one that no text has",
            field=name,
            remedy="send a shorter text, or leave the filter out",
        )
    return given


def place_of(request: Request, prefix: str) -> str | None:
    """Read `?cursor=` of a list whose pages begin after an id with *prefix*; None: the first page."""
    given = request.query_params.get("cursor") or None
    if given is not None and not is_id(prefix, given):
        raise _invalid_cursor("cursor")
    return given


def _invalid_cursor(name: str) -> Problem:
    return Problem(
        422,
        "invalid_cursor",
        f"{name} must be a value of `next`",
        field=name,
        remedy="send the value of `next`, or leave it out",
    )
