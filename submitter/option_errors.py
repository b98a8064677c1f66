"""Errors of provider options in plain words: the accepted values, not the validator's terms."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

_TYPES = {
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "missing": "is required",
}
_BOUNDS = {
    "less_than_equal": ("le", "must be at most {}"),
    "less_than": ("lt", "must be less than {}"),
    "greater_than_equal": ("ge", "must be at least {}"),
    "greater_than": ("gt", "must be more than {}"),
    "multiple_of": ("multiple_of", "must be a multiple of {}"),
    "string_too_long": ("max_length", "may have at most {} characters"),
    "string_too_short": ("min_length", "must have at least {} characters"),
    "too_long": ("max_length", "may have at most {} items"),
    "too_short": ("min_length", "must have at least {} items"),
}


def explain_option(error: Mapping[str, Any], known: Sequence[str]) -> str:
    """
    *error* is one of pydantic's `ValidationError.errors()`; *known* are the names of all options.

    >>> explain_option({"type": "literal_error", "loc": ("scale",), "ctx": {"expected": "2 or 4"}}, ())
    'must be 2 or 4'
    """
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "extra_forbidden":
        name = str(error["loc"][-1])
        near = difflib.get_close_matches(name, known, n=1)
        instead = f"is {near[0]} meant?" if near else f"use one of {', '.join(known)}"
        return f"is not an option of this provider; {instead}"
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _BOUNDS:
        name, text = _BOUNDS[kind]
        return text.format(context.get(name))
    return str(error["msg"]).removeprefix("Value error, ")
