"""Downloads of results and inputs, their thumbnails, and the list of what was paid for and lost."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from receiver.domain.jobs import Job
from receiver.store.codecs import us
from receiver.store.retention import Pruning, Retention
from receiver.store.tables import images
from submitter.image_files import SUFFIXES
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import Cost, Failure, State
from tests.support.pictures import png
from tests.support.processes import live, submit, wait_for_state
from tests.support.rows import execute
from tests.support.running_receiver import RunningReceiver, running_receiver
from tests.support.waiting import eventually


def encoded(kind: str = "JPEG", size: tuple[int, int] = (1200, 800), **saving: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "teal").save(out, kind, **saving)
    return out.getvalue()


async def with_image(
    here: RunningReceiver, data: bytes, *, content_type: str = "image/jpeg", state: str = "kept", **columns: Any
) -> Job:
    """A succeeded job whose image is *data*."""
    job = await here.job(state=State.SUCCEEDED, cost=Cost(Decimal(10), "credits"))
    path = here.receiver.parts.blobs.image_path(job.id, 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    values = {
        "job_id": job.id,
        "n": 0,
        "source_url": "https://a.example/x",
        "content_type": content_type,
        "state": state,
        "tries": 1,
        "sha256": "d1ge57",
        "renewals": 0,
        **columns,
    }
    names = [column.name for column in images.columns]
    query = f"INSERT INTO images ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    await execute(here.receiver.parts.database, query, *(values.get(name) for name in names))
    return job


@pytest.mark.parametrize(("content_type", "suffix"), SUFFIXES.items())
async def test_a_download_has_its_types_suffix_its_digest_and_ranges(
    tmp_path: Path, content_type: str, suffix: str
) -> None:
    async with running_receiver(tmp_path) as here:
        job = await with_image(here, b"0123456789", content_type=content_type)
        url = f"/v1/jobs/{job.id}/images/0"
        answer = await here.client.get(url)
        assert (answer.content, answer.headers["content-type"]) == (b"0123456789", content_type)
        assert answer.headers["etag"] == '"d1ge57"'
        assert answer.headers["content-disposition"] == f'inline; filename="{job.id}-0{suffix}"'
        part = await here.client.get(url, headers={"range": "bytes=2-4", "if-range": '"d1ge57"'})
        assert (part.status_code, part.content) == (206, b"234")
        known = await here.client.get(url, headers={"if-none-match": 'W/"d1ge57", "other"'})
        assert (known.status_code, known.content) == (304, b"")


async def test_a_lost_image_says_why_and_what_can_be_done(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await with_image(here, b"", state="lost", last_error="answered 403")
        answer = await here.client.get(f"/v1/jobs/{job.id}/images/0")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (404, "image_lost")
        assert "answered 403" in problem["detail"] and f"/v1/jobs/{job.id}/poll" in problem["remedy"]
        (image,) = (await here.client.get(f"/v1/jobs/{job.id}")).json()["images"]
        assert (image["state"], image["lost_reason"], image["kept"]) == ("lost", "answered 403", False)


async def test_an_image_that_was_removed_by_age_says_so_and_is_not_lost(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, keep_images_days=1 / 24) as here:
        two_hours_ago = us(datetime.now(UTC) - timedelta(hours=2))
        job = await with_image(here, b"0123456789", kept_at=two_hours_ago)
        pruning = Pruning(
            here.receiver.parts.database,
            here.receiver.parts.blobs,
            keep=Retention(timedelta(days=30), images=timedelta(days=1 / 24)),
        )
        assert (await pruning.prune()).images <= 1  # the receiver prunes by itself too

        async def removed() -> bool:
            (image,) = (await here.client.get(f"/v1/jobs/{job.id}")).json()["images"]
            return (image["state"], image["lost_reason"], image["kept"]) == ("removed", None, False)

        await eventually(removed)
        answer = await here.client.get(f"/v1/jobs/{job.id}/images/0")
        assert (answer.status_code, answer.json()["code"]) == (404, "image_removed")
        paid = await here.client.post(f"/v1/jobs/{job.id}/resubmit")
        assert (paid.json()["code"], paid.json()["remedy"]) == ("not_resubmittable", "POST /v1/jobs for a new one")
        refused = await here.client.post(f"/v1/jobs/{job.id}/poll")
        assert (refused.status_code, refused.json()["code"]) == (409, "nothing_to_poll")
        assert refused.json()["detail"] == "the job is succeeded already, and no image is missing"
        assert (await here.client.get("/v1/lost")).json()["items"] == []
        assert await here.events(job) == []


async def test_a_thumbnail_is_small_upright_and_made_once(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    async with running_receiver(tmp_path) as here:
        job = await with_image(here, encoded(exif=turned))
        url = f"/v1/jobs/{job.id}/images/0/thumbnail"
        answer = await here.client.get(url)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
        with Image.open(io.BytesIO(answer.content)) as thumbnail:
            assert max(thumbnail.size) == 512
            assert thumbnail.height > thumbnail.width
        here.receiver.parts.blobs.image_path(job.id, 0).unlink()
        again = await here.client.get(url)
        assert again.content == answer.content
        assert (await here.client.get(url, headers={"if-none-match": answer.headers["etag"]})).status_code == 304


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
async def test_every_format_has_a_thumbnail(tmp_path: Path, kind: str) -> None:
    async with running_receiver(tmp_path) as here:
        job = await with_image(here, encoded(kind))
        answer = await here.client.get(f"/v1/jobs/{job.id}/images/0/thumbnail")
        with Image.open(io.BytesIO(answer.content)) as thumbnail:
            assert max(thumbnail.size) == 512


async def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await with_image(here, encoded(size=(16_000, 12_000), quality=20))
        answer = await here.client.get(f"/v1/jobs/{job.id}/images/0/thumbnail")
        assert answer.status_code == 200


@pytest.mark.parametrize("data", [png(60_000, 60_000), png(300, 200), b"nothing"], ids=["bomb", "no data", "no image"])
async def test_what_can_not_be_decoded_here_has_no_thumbnail_and_is_not_tried_twice(
    tmp_path: Path, data: bytes
) -> None:
    async with running_receiver(tmp_path) as here:
        job = await with_image(here, data, content_type="image/png")
        url = f"/v1/jobs/{job.id}/images/0/thumbnail"
        for _ in range(2):
            answer = await here.client.get(url)
            assert (answer.status_code, answer.json()["code"]) == (404, "no_thumbnail")
        assert (await here.client.get(f"/v1/jobs/{job.id}/images/0")).content == data


async def test_an_input_is_shown_with_its_thumbnail_while_it_is_kept(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job(state=State.SUCCEEDED, input_name="given")
        blobs = here.receiver.parts.blobs
        blobs.input_path("given").write_bytes(encoded("PNG"))
        answer = await here.client.get(f"/v1/jobs/{job.id}/input")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert answer.headers["content-disposition"] == f'inline; filename="{job.id}-input.png"'
        thumbnail = await here.client.get(f"/v1/jobs/{job.id}/input/thumbnail")
        assert (thumbnail.status_code, thumbnail.headers["content-type"]) == (200, "image/webp")
        await blobs.drop_input("given")
        for path in ("input", "input/thumbnail"):
            answer = await here.client.get(f"/v1/jobs/{job.id}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "input_not_kept")


@pytest.mark.parametrize("behind", ["", ".png", ".jpg", ".png.png", "/image.png"])
async def test_a_providers_input_url_may_end_as_a_file_does(tmp_path: Path, behind: str) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job(input_name="given")
        here.receiver.parts.blobs.input_path("given").write_bytes(encoded("PNG"))
        token = here.receiver.credentials.tokens.input(job.id)
        answer = await here.client.get(f"/inputs/{token}{behind}", headers={"authorization": ""})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")


async def test_the_ledger_names_what_was_paid_for_and_lost(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        await with_image(here, b"x")
        lost = await with_image(here, b"", state="lost", last_error="answered 410")
        never = Failure("no_result_url", "the task is done but its answer names no image", permanent=True)
        unnamed = await here.job(state=State.FAILED, error=never, finished_at=datetime.now(UTC))
        await here.job(state=State.FAILED, error=Failure("failed", "it failed", permanent=True))
        answer = (await here.client.get("/v1/lost")).json()
        assert [(item["id"], item["reason"]) for item in answer["items"]] == [
            (unnamed.id, never.message),
            (lost.id, "answered 410"),
        ]
        assert answer["items"][1]["cost"] == {"amount": "10", "unit": "credits"}
        first = (await here.client.get("/v1/lost?limit=1")).json()
        second = (await here.client.get(f"/v1/lost?limit=1&cursor={first['next']}")).json()
        assert ([item["id"] for item in second["items"]], second["next"]) == ([lost.id], None)


async def test_a_kept_image_whose_file_is_gone_is_fetched_again_and_that_is_said_once(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        job = await submit(client, "upscayl", picture_bytes(64, 48))
        kept = await wait_for_state(client, job["id"], "succeeded", kept=True)
        url = f"/v1/jobs/{job['id']}/images/0"
        (receiver.data_dir / "images" / job["id"] / "0").unlink()
        answer = await client.get(url)
        assert (answer.status_code, answer.json()["code"]) == (404, "image_gone")
        await client.get(url)
        again = await wait_for_state(client, job["id"], "succeeded", kept=True)
        assert again["images"][0]["sha256"] == kept["images"][0]["sha256"]
        assert (await client.get(url)).status_code == 200
        assert receiver.log.count("kept_image_gone") == 1


async def test_without_any_link_a_kept_image_whose_file_is_gone_is_lost(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await with_image(here, b"0123456789", source_url=None)
        here.receiver.parts.blobs.image_path(job.id, 0).unlink()
        answer = await here.client.get(f"/v1/jobs/{job.id}/images/0")
        assert (answer.status_code, answer.json()["code"]) == (404, "image_gone")
        (image,) = (await here.client.get(f"/v1/jobs/{job.id}")).json()["images"]
        assert (image["state"], image["lost_reason"]) == ("lost", "our copy of it is gone")
        assert await here.events(job) == ["job.images_lost"]


async def test_a_thumbnail_is_not_given_up_because_its_image_is_gone(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await with_image(here, encoded())
        path = here.receiver.parts.blobs.image_path(job.id, 0)
        path.unlink()
        url = f"/v1/jobs/{job.id}/images/0/thumbnail"
        answer = await here.client.get(url)
        assert (answer.status_code, answer.json()["code"]) == (404, "image_gone")
        await execute(here.receiver.parts.database, "UPDATE images SET state = 'kept' WHERE job_id = ?", job.id)
        path.write_bytes(encoded())
        assert (await here.client.get(url)).headers["content-type"] == "image/webp"


async def test_images_that_are_all_not_there_are_not_given_up(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await with_image(here, b"0123456789")
        root = here.receiver.parts.blobs.root
        (root / "images").rename(root / "elsewhere")
        url = f"/v1/jobs/{job.id}/images/0"
        answer = await here.client.get(url)
        assert (answer.status_code, answer.json()["code"]) == (503, "images_unavailable")
        (root / "elsewhere").rename(root / "images")
        assert (await here.client.get(url)).status_code == 200
