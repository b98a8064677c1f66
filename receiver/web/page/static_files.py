"""The stylesheet, module and icon, from the package."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.web.page.gate import with_headers
from receiver.web.problems import NOT_FOUND

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_FOREVER = "public, max-age=31536000, immutable"


class StaticFiles:
    """Serves the files from memory. Their addresses carry a version, so that browsers may keep them."""

    def __init__(self) -> None:
        folder = files("receiver.web.page").joinpath("static")
        self._files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def routes(self) -> list[Route]:
        return [Route("/static/{name}", self.show, methods=["GET"])]

    async def show(self, request: Request) -> Response:
        name = request.path_params["name"]
        data = self._files.get(name)
        if data is None:
            raise NOT_FOUND
        kept = _FOREVER if request.query_params.get("v") else "no-cache"
        answer = Response(data, media_type=_TYPES.get(name.rpartition(".")[2], "application/octet-stream"))
        answer.headers["cache-control"] = kept
        return with_headers(answer)
