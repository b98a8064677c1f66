"""Answers that no client can read: a reset connection, a gateway's page, JSON cut short."""

from __future__ import annotations

import json

from starlette.background import BackgroundTask
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

CUT_EXTENSION = "sandbox.cut"
"""ASGI extension of our server: call it to reset the connection."""

_BAD_GATEWAY = """<html>
<head><title>502 Bad Gateway</title></head>
<body><center><h1>502 Bad Gateway</h1></center><hr><center>nginx</center></body>
</html>
"""


class Cut(Response):
    """Resets the connection instead of answering."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cut = scope.get("extensions", {}).get(CUT_EXTENSION)
        if cut is None:
            raise ConnectionResetError("the sandbox cut this connection")
        cut()
        while (await receive())["type"] != "http.disconnect":
            pass


def bad_gateway() -> Response:
    """Return the answer of a proxy in front of the provider: 502 and a page."""
    return HTMLResponse(_BAD_GATEWAY, 502, headers={"server": "nginx"})


def unreadable(background: BackgroundTask | None = None) -> Response:
    """Return a 200 whose JSON is cut short."""
    cut_short = json.dumps({"data": {"status": "ok"}})[:-4].encode()
    return Response(cut_short, 200, media_type="application/json", background=background)
