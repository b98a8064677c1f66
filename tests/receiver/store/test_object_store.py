"""Kept images and inputs in an object store: a real S3 server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from receiver.settings import SettingsInvalid, load
from receiver.store.blobs import Blobs
from receiver.store.object_store import PART_BYTES, ObjectStore
from receiver.web.files import object_response
from submitter.sandbox import test_picture as picture_bytes
from tests.support.cli import Done, receiver_command
from tests.support.object_stores import Bucket, bucket
from tests.support.processes import LiveReceiver, live
from tests.support.serving import serving
from tests.support.waiting import eventually


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[ObjectStore, Bucket]]:
    async with bucket() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield ObjectStore(made.url), made


async def all_kept(client: httpx.AsyncClient, job_ids: list[str]) -> list[dict[str, Any]]:
    """The jobs, once every image of theirs is kept."""

    async def kept_all() -> bool:
        jobs[:] = [(await client.get(f"/v1/jobs/{job_id}")).json() for job_id in job_ids]
        return all(job["images"] and all(image["kept"] for image in job["images"]) for job in jobs)

    jobs: list[dict[str, Any]] = []
    await eventually(kept_all)
    return jobs


async def submitted(client: httpx.AsyncClient, provider: str, count: int) -> list[str]:
    made = []
    for seed in range(count):
        data = picture_bytes(80 + seed, 70, seed=seed)
        answer = await client.post(
            "/v1/jobs", data={"job": f'{{"provider": "{provider}"}}'}, files={"image": ("a.jpg", data)}
        )
        made.append(answer.json()["id"])
    return made


async def test_files_of_any_size_are_objects_and_come_back(store: tuple[ObjectStore, Bucket], tmp_path: Path) -> None:
    objects, _ = store
    for size in (0, 1000, PART_BYTES, 2 * PART_BYTES + 1):
        source, copy = tmp_path / "source", tmp_path / "copy"
        source.write_bytes(os.urandom(size))
        await objects.put(f"images/{size}", source, "image/png")
        assert await objects.size(f"images/{size}") == size
        await objects.fetch(f"images/{size}", copy)
        assert copy.read_bytes() == source.read_bytes()
    part = b"".join([piece async for piece in objects.read(f"images/{size}", 10, 1010)])
    assert part == source.read_bytes()[10:1010]
    await objects.delete(f"images/{size}")
    await objects.delete(f"images/{size}")
    with pytest.raises(FileNotFoundError):
        await objects.size(f"images/{size}")


async def test_a_failure_of_the_store_is_an_oserror_that_names_no_secret(
    store: tuple[ObjectStore, Bucket], tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(OSError, match="object store") as caught:
        await ObjectStore("s3://no-such-bucket").put("images/1", tmp_path / "x", "image/png")
    assert "s3cret" not in str(caught.value) and "no-such-bucket" not in str(caught.value)


async def test_an_input_is_fetched_by_a_process_that_has_no_copy(
    store: tuple[ObjectStore, Bucket], tmp_path: Path
) -> None:
    objects, _ = store
    here, there = Blobs(tmp_path / "here", objects), Blobs(tmp_path / "there", objects)
    for blobs in (here, there):
        blobs.prepare()
    part = here.new_part()
    part.write_bytes(picture_bytes(40, 30))
    name = await here.keep_input(part, "job_1")
    assert (await there.input_file(name)).read_bytes() == picture_bytes(40, 30)
    await here.drop_input(name)
    with pytest.raises(FileNotFoundError):
        await here.input_file(name)
    for blobs in (here, there):
        blobs.close()


async def test_results_are_kept_there_and_served_through_us(store: tuple[ObjectStore, Bucket], tmp_path: Path) -> None:
    objects, made = store
    environment = {**made.environment, "RECEIVER_BLOB_URL": made.url}
    async with live(tmp_path, environment=environment) as (receiver, _), receiver.client() as client:
        jobs = [job for name in ("freepik", "pixelcut") for job in await submitted(client, name, 2)]
        shown = await all_kept(client, jobs)
        contents = await made.contents(objects)
        assert {key for key in contents if key.startswith("images/")} == {f"images/{job}/0" for job in jobs}
        assert not list((receiver.data_dir / "images").iterdir())
        for job in shown:
            (image,) = job["images"]
            url = f"/v1/jobs/{job['id']}/images/0"
            answer = await client.get(url)
            assert hashlib.sha256(answer.content).hexdigest() == image["sha256"]
            assert answer.content == contents[f"images/{job['id']}/0"]
            assert answer.headers["content-length"] == str(image["bytes"])
            assert (await client.get(url, headers={"if-none-match": answer.headers["etag"]})).status_code == 304
            part = await client.get(url, headers={"range": "bytes=-10"})
            assert (part.status_code, part.content) == (206, answer.content[-10:])
            assert (await client.get(url, headers={"range": "bytes=999999999-"})).status_code == 416
            thumbnail = await client.get(f"{url}/thumbnail")
            with Image.open(io.BytesIO(thumbnail.content)) as opened:
                assert max(opened.size) <= 512
        assert "s3cret-of-the-store" not in receiver.log


async def test_downloads_may_be_sent_to_the_store_by_a_signed_link(
    store: tuple[ObjectStore, Bucket], tmp_path: Path
) -> None:
    _, made = store
    environment = {**made.environment, "RECEIVER_BLOB_URL": made.url, "RECEIVER_BLOB_REDIRECT": "true"}
    async with live(tmp_path, environment=environment) as (receiver, _), receiver.client() as client:
        (job,) = await all_kept(client, await submitted(client, "freepik", 1))
        answer = await client.get(f"/v1/jobs/{job['id']}/images/0")
        assert answer.status_code == 307
        async with httpx.AsyncClient(trust_env=False) as plain:
            data = (await plain.get(answer.headers["location"])).content
        assert hashlib.sha256(data).hexdigest() == job["images"][0]["sha256"]


@pytest.mark.sqlite(reason="a backup of the file")
async def test_evidence_is_read_again_and_backups_are_restored_beside_an_object_store(
    store: tuple[ObjectStore, Bucket], tmp_path: Path
) -> None:
    objects, made = store
    environment = {**made.environment, "RECEIVER_BLOB_URL": made.url}
    async with live(tmp_path, environment=environment) as (receiver, _), receiver.client() as client:
        jobs = [job for name in ("freepik", "pixelcut") for job in await submitted(client, name, 1)]
        shown = await all_kept(client, jobs)
        before = await made.contents(objects)
        reread = await command(receiver, "reread", "--all")
        assert reread.status == 0, reread.err
        assert await made.contents(objects) == before
        assert not list((receiver.data_dir / "images").iterdir())

        backup = await command(receiver, "backup", str(tmp_path / "kept"))
        assert (backup.status, "does not copy" in backup.out) == (0, True), backup.err
        await receiver.kill()
        shutil.rmtree(receiver.data_dir)
        assert (await command(receiver, "restore", str(tmp_path / "kept"))).status == 0
        await receiver.start()
        for job in shown:
            answer = await client.get(f"/v1/jobs/{job['id']}/images/0")
            assert hashlib.sha256(answer.content).hexdigest() == job["images"][0]["sha256"]


async def command(receiver: LiveReceiver, *arguments: str) -> Done:
    return await receiver_command(
        *arguments, environment=receiver.full_environment(), directory=receiver.data_dir.parent
    )


@pytest.mark.parametrize("url", ["/var/lib/pictures", "http://bucket", "s3://", "s3://bucket?key=secret"])
def test_a_url_that_names_no_bucket_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="RECEIVER_BLOB_URL"):
        load(data_dir=tmp_path, blob_url=url)


@pytest.mark.parametrize("redirect", ["false", "true"])
async def test_a_kept_image_whose_object_is_gone_is_fetched_again(
    store: tuple[ObjectStore, Bucket], tmp_path: Path, redirect: str
) -> None:
    objects, made = store
    environment = {**made.environment, "RECEIVER_BLOB_URL": made.url, "RECEIVER_BLOB_REDIRECT": redirect}
    async with live(tmp_path, environment=environment) as (receiver, _), receiver.client() as client:
        (job,) = await all_kept(client, await submitted(client, "freepik", 1))
        await objects.delete(f"images/{job['id']}/0")
        answer = await client.get(f"/v1/jobs/{job['id']}/images/0")
        assert (answer.status_code, answer.json()["code"]) == (404, "image_gone")
        (again,) = await all_kept(client, [job["id"]])
        assert again["images"][0]["sha256"] == job["images"][0]["sha256"]
        assert (await client.get(f"/v1/jobs/{job['id']}/images/0")).status_code in (200, 307)


class VanishingObject:
    """An S3 server on which an object of *size* bytes is there when it is asked for, and gone after *served* bytes."""

    def __init__(self, size: int, served: int) -> None:
        self.size = size
        self.served = served
        self.asked = 0

    async def answer(self, request: Request) -> Response:
        headers = {"etag": '"1"', "last-modified": "Thu, 26 Nov 2026 00:00:00 GMT", "accept-ranges": "bytes"}
        if request.method == "HEAD":
            return Response(headers=headers | {"content-length": str(self.size)})
        self.asked += 1
        if self.asked > 1 or self.served == 0:
            return Response(b"<Error><Code>NoSuchKey</Code></Error>", 404)

        async def cut() -> AsyncIterator[bytes]:
            yield bytes(self.served)
            raise ConnectionResetError

        span = f"bytes 0-{self.size - 1}/{self.size}"
        headers |= {"content-length": str(self.size), "content-range": span}
        return StreamingResponse(cut(), 206, headers=headers)


@pytest.mark.parametrize("served", [0, 3 << 20])
async def test_an_object_that_goes_while_it_is_read_is_no_whole_answer(
    monkeypatch: pytest.MonkeyPatch, served: int
) -> None:
    vanishing = VanishingObject(8 << 20, served)
    app = Starlette(routes=[Route("/{path:path}", vanishing.answer)])
    async with serving(app) as origin:
        for name, value in {**Bucket(0).environment, "AWS_ENDPOINT_URL": origin}.items():
            monkeypatch.setenv(name, value)
        request = Request({"type": "http", "method": "GET", "headers": []})
        answering = object_response(request, ObjectStore(Bucket.url), "images/1/0", "image/png", name="a", tag="t")
        if served == 0:
            with pytest.raises(FileNotFoundError):  # answered as an image that is gone, and fetched again
                await answering
            return
        answer = await answering
        assert isinstance(answer, StreamingResponse)
        came = 0
        with pytest.raises(OSError, match="object store"):
            async for piece in answer.body_iterator:
                came += len(piece)
        assert 0 < came < vanishing.size
