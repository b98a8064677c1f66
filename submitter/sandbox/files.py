"""Result links: unguessable, and dead once their documented lifetime has passed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

Admits = Callable[["File", Mapping[str, str], float], bool]
"""Returns whether a link with a query opens the file at a given time (Unix seconds)."""


def before_expiry(file: File, query: Mapping[str, str], now: float) -> bool:
    return now < file.expires_at


@dataclass(eq=False, slots=True)
class File:
    """A result. `path` is below the origin and has no query: a stand-in that signs its links adds its own."""

    data: bytes = field(repr=False)
    content_type: str
    width: int
    height: int
    name: str
    created_at: float
    expires_at: float
    gone_status: int
    admits: Admits
    dead: bool = False
    downloads: int = 0
    id: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def path(self) -> str:
        return f"/files/{self.id}/{self.name}"


class Files:
    """All kept results, and the count of downloads of forged ones."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}
        self.forged_fetches = 0

    def keep(self, file: File) -> File:
        self._files[file.id] = file
        return file

    def clear(self) -> None:
        self._files.clear()
        self.forged_fetches = 0

    async def download(self, request: Request) -> Response:
        file = self._files.get(request.path_params["id"])
        if file is None or file.name != request.path_params["name"]:
            return PlainTextResponse("no such file", 404)
        if file.dead or not file.admits(file, request.query_params, time.time()):
            return PlainTextResponse("this link has expired", file.gone_status)
        file.downloads += 1
        return Response(file.data, media_type=file.content_type)

    async def forged(self, request: Request) -> Response:
        """Answer the link of a forged callback, which no client should ever fetch."""
        self.forged_fetches += 1
        return PlainTextResponse("you believed a forged callback", 200)
