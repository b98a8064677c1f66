"""The main job, whole: a real receiver, a real sandbox, five providers."""

from pathlib import Path

import pytest

from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import live, submit, wait_for_state

SETTLED_BY = {
    "freepik": "callback",
    "apixo": "callback",
    "novita": "callback",
    "upscayl": "poll",
    "pixelcut": "response",
}


@pytest.mark.parametrize("provider", SETTLED_BY)
async def test_a_picture_goes_to_the_provider_and_its_result_is_kept(
    provider: str, tmp_path: Path, engine: dict[str, str]
) -> None:
    async with live(tmp_path, environment=engine) as (receiver, _), receiver.client() as client:
        job = await submit(client, provider, picture_bytes(160, 120))
        done = await wait_for_state(client, job["id"], kept=True)
        assert (done["state"], done["settled_by"]) == ("succeeded", SETTLED_BY[provider])
        (image,) = done["images"]
        kept = await client.get(f"/v1/jobs/{job['id']}/images/0")
        assert kept.status_code == 200
        assert len(kept.content) == image["bytes"]
        assert image["width"] >= 320
