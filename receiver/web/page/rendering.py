"""
Rendering of templates.

A page is one template. The parts that change while it is watched are blocks of it, and each block can be requested by
itself (`?fragment=name`): the page and its updates are made from the same lines. All links are relative to the page, so
that pages work under any prefix, no matter which proxy strips it.

Templates are compiled on a thread when the first page is requested, and rendered a millisecond at a time: callbacks
that arrive meanwhile are answered in between.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from receiver.web.page import formatting
from receiver.web.page.sessions import Session
from receiver.web.problems import NOT_FOUND

FRAGMENT = "fragment"
SLICE_SECONDS = 0.001


class Pages:
    """Renders templates for sessions."""

    def __init__(self) -> None:
        self._templates: Environment | None = None

    async def answer(
        self,
        request: Request,
        session: Session | None,
        template: str,
        context: Mapping[str, Any],
        *,
        status: int = 200,
    ) -> Response:
        """Render the page, or the single block of it that the request asks for."""
        if self._templates is None:
            self._templates = await asyncio.to_thread(compiled_templates)
        page = self._templates.get_template(template)
        values = {
            "base": base_of(request),
            "here": here_of(request),
            "session": session,
            "may_write": session is not None and session.may_write,
            "form_token": "" if session is None else session.form_token,
            **context,
        }
        name = request.query_params.get(FRAGMENT)
        if name is None or status != 200:
            return HTMLResponse(await in_slices(page.generate(values)), status)
        if not name.startswith("live_") or name not in page.blocks:
            raise NOT_FOUND
        return HTMLResponse(await in_slices(page.blocks[name](page.new_context(values))))


@functools.cache
def compiled_templates() -> Environment:
    """Return all templates; compiling them takes some hundred milliseconds, once in a process."""
    templates = Environment(
        loader=PackageLoader("receiver.web.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    templates.filters.update(formatting.FILTERS)
    templates.globals.update(formatting.GLOBALS, version=static_version())
    for name in templates.list_templates():
        templates.get_template(name)
    return templates


async def in_slices(pieces: Iterator[str]) -> str:
    """Join *pieces*, and let other work of the event loop run between them."""
    made, until = [], time.perf_counter() + SLICE_SECONDS
    for piece in pieces:
        made.append(piece)
        if time.perf_counter() > until:
            await asyncio.sleep(0)
            until = time.perf_counter() + SLICE_SECONDS
    return "".join(made)


def base_of(request: Request) -> str:
    """Return the relative path from this page to the root of all pages, ending in a slash."""
    return "../" * (here_of(request).count("/")) or "./"


def here_of(request: Request) -> str:
    """Return the page's own path below the prefix, without a leading slash."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "")).removeprefix("/")


def static_version() -> str:
    """Return a version that changes whenever a static file does, so that browsers may keep them for ever."""
    digest = hashlib.sha256()
    for path in sorted(files("receiver.web.page").joinpath("static").iterdir(), key=lambda path: path.name):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
