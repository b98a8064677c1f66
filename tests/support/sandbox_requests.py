"""The documented request of each provider, for the sandbox's own tests."""

from __future__ import annotations

import base64
from typing import Any

import httpx

from submitter.sandbox import API_KEYS, Sandbox, test_picture

PICTURE = test_picture(96, 72)
PICTURE_BASE64 = base64.b64encode(PICTURE).decode()

FREEPIK_KEY = {"x-freepik-api-key": API_KEYS["freepik"]}
APIXO_KEY = {"authorization": f"Bearer {API_KEYS['apixo']}"}
NOVITA_KEY = {"authorization": f"Bearer {API_KEYS['novita']}"}
UPSCAYL_KEY = {"x-api-key": API_KEYS["upscayl"]}
PIXELCUT_KEY = {"x-api-key": API_KEYS["pixelcut"]}

UPSCAYL_FORM = {"enhanceFace": "false", "model": "upscayl-standard-4x", "scale": "2", "saveImageAs": "png"}


class Caller:
    """Speaks to a sandbox as the documentation says, with whatever a test changes."""

    def __init__(self, http: httpx.AsyncClient, origin: str, image_url: str = "http://127.0.0.1:1/none.jpg") -> None:
        self.http = http
        self.origin = origin
        self.base = Sandbox.base_urls(origin)
        self.image_url = image_url

    async def freepik(self, callback_url: str | None = None, **changes: Any) -> httpx.Response:
        body = _changed({"image": PICTURE_BASE64, "webhook_url": callback_url}, changes)
        return await self.http.post(f"{self.base['freepik']}/v1/ai/image-upscaler", json=body, headers=FREEPIK_KEY)

    async def freepik_status(self, task_id: str) -> httpx.Response:
        url = f"{self.base['freepik']}/v1/ai/image-upscaler/{task_id}"
        return await self.http.get(url, headers=FREEPIK_KEY)

    async def apixo(self, callback_url: str | None = None, *, top: Any = None, **changes: Any) -> httpx.Response:
        given = {"mode": "image-to-image", "image_urls": [self.image_url], "resolution": "2k", "output_format": "jpg"}
        body: dict[str, Any] = {"request_type": "async", "input": _changed(given, changes)}
        if callback_url:
            body |= {"request_type": "callback", "callback_url": callback_url}
        url = f"{self.base['apixo']}/generateTask/image-upscaler"
        return await self.http.post(url, json=_changed(body, top or {}), headers=APIXO_KEY)

    async def apixo_status(self, task_id: str, model: str = "image-upscaler") -> httpx.Response:
        url = f"{self.base['apixo']}/statusTask/{model}"
        return await self.http.get(url, params={"taskId": task_id}, headers=APIXO_KEY)

    async def novita(self, callback_url: str | None = None, *, extra: Any = None, **changes: Any) -> httpx.Response:
        request = {"model_name": "4x-UltraSharp", "scale_factor": 2, "image_base64": PICTURE_BASE64}
        more = {"webhook": {"url": callback_url} if callback_url else None}
        body = {"extra": _changed(more, extra or {}), "request": _changed(request, changes)}
        return await self.http.post(f"{self.base['novita']}/v3/async/upscale", json=body, headers=NOVITA_KEY)

    async def novita_status(self, task_id: str) -> httpx.Response:
        url = f"{self.base['novita']}/v3/async/task-result"
        return await self.http.get(url, params={"task_id": task_id}, headers=NOVITA_KEY)

    async def upscayl(self, *, file: bytes | None = PICTURE, **changes: Any) -> httpx.Response:
        files = {"file": ("a.jpg", file, "image/jpeg")} if file is not None else {"empty": (None, b"")}
        url = f"{self.base['upscayl']}/start-task"
        return await self.http.post(url, data=_changed(UPSCAYL_FORM, changes), files=files, headers=UPSCAYL_KEY)

    async def upscayl_status(self, task_id: str) -> httpx.Response:
        url = f"{self.base['upscayl']}/get-task-status"
        return await self.http.post(url, json={"data": {"taskId": task_id}}, headers=UPSCAYL_KEY)

    async def pixelcut(
        self, *, image: bytes = PICTURE, scale: str = "2", accept: str = "application/json"
    ) -> httpx.Response:
        url = f"{self.base['pixelcut']}/v1/upscale"
        files = {"image": ("a.jpg", image, "image/jpeg")}
        headers = PIXELCUT_KEY | {"accept": accept}
        return await self.http.post(url, data={"scale": scale}, files=files, headers=headers)

    async def submit(self, provider: str, callback_url: str | None = None) -> httpx.Response:
        """The documented request of *provider*, with a callback where it has them."""
        if provider in ("upscayl", "pixelcut"):
            answer: httpx.Response = await getattr(self, provider)()
        else:
            answer = await getattr(self, provider)(callback_url)
        return answer


def _changed(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """*body* with *changes*; None takes a field away."""
    return {name: value for name, value in (body | changes).items() if value is not None}
