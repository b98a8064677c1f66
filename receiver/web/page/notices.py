"""
Notices: the result of an action, shown on the page that the action leads to.

An address carries a code and counts, never text: a link from a stranger can't put words on our pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from receiver.web.page.formatting import number, plural

_MOST_DIGITS = 6
_MOST_REASONS = 8
_NOTICES: Mapping[str, str | tuple[str, str, str]] = {
    "poll": "The provider is asked within seconds.",
    "cancel": "The job is canceled.",
    "resubmit": "This is the new job.",
    "sent": "The job is on its way.",
    "sent-many": ("job", "jobs", "on the way"),
    "replay": "The delivery goes out again.",
    "replay-many": ("delivery", "deliveries", "on the way again"),
    "compare": "The picture is on its way.",
    "bulk-cancel": ("job", "jobs", "canceled"),
    "bulk-resubmit": ("job", "jobs", "resubmitted"),
    "bulk-replay": ("delivery", "deliveries", "replayed"),
    "test": "An example event is on its way: its delivery shows the answer.",
    "enable": "The endpoint is enabled.",
    "disable": "The endpoint is disabled. Deliveries that it misses can be replayed later.",
    "remove": "The endpoint is removed.",
    "edit": "The endpoint is changed.",
    "pause": "The provider is paused: its jobs wait in the queue.",
    "resume": "The provider is resumed: jobs that waited are sent.",
}
"""Texts by code: a sentence, or the things counted (singular, plural) and their outcome."""
_REASONS: Mapping[str, str] = {
    "already_ended": "finished already",
    "already_sent": "sent already",
    "not_resubmittable": "not finished",
    "may_pay_twice": "maybe running and billed",
    "input_gone": "the picture is not kept any more",
    "public_url_required": "callbacks need RECEIVER_PUBLIC_URL",
    "unknown_provider": "no such provider",
    "provider_not_configured": "the provider has no key",
    "no_worker": "no worker has started yet",
}
"""Texts by the code of a problem; all other codes are shown as a refusal."""


def notice_query(
    code: str,
    *,
    count: int | None = None,
    refused: Mapping[str, int] | None = None,
    more: bool = False,
    beside: Mapping[str, str] | None = None,
) -> str:
    """
    Return the query of a page that shows the notice *code*, with the other parameters *beside*.

    *refused* counts the things left out, by the code of the problem; *more*: there is more to do.
    """
    query = [*(beside or {}).items(), ("done", code)]
    if count is not None:
        query.append(("count", str(count)))
    query += [("refused", f"{reason}:{times}") for reason, times in (refused or {}).items()]
    if more:
        query.append(("more", "1"))
    return urlencode(query)


def notice_of(query: QueryParams) -> str:
    """Return the notice that *query* asks for; empty if there is no such notice."""
    words = _NOTICES.get(query.get("done", ""))
    if words is None:
        return ""
    if isinstance(words, str):
        parts = [words.removesuffix(".")]
    else:
        singular, several, became = words
        parts = [f"{plural(_count(query.get('count', '')), singular, several)} {became}"]
    for item in query.getlist("refused")[:_MOST_REASONS]:
        code, _, count = item.partition(":")
        parts.append(f"{number(_count(count))} left out: {_REASONS.get(code, 'refused')}")
    if query.get("more"):
        parts.append("there are more: repeat it for the next ones")
    return f"{'; '.join(parts)}."


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0
