"""One picture through several providers: sent by the form, added to, and what is said of the results."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from receiver.web.page.compare import merits
from submitter.sandbox import test_picture as picture_bytes
from tests.support.pages import form_token_of, signed_in
from tests.support.running_receiver import RunningReceiver, running_receiver

READ_TOKEN = "a-read-token-of-the-tests"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[RunningReceiver]:
    async with running_receiver(tmp_path, read_tokens=READ_TOKEN) as receiver:
        yield receiver


def jobs_of(answer: httpx.Response) -> list[str]:
    """The jobs that a redirection wants to have compared."""
    assert answer.status_code == 303, answer.text
    assert answer.next_request is not None
    assert answer.next_request.url.path == "/compare"
    return answer.next_request.url.params.get_list("job")


async def test_a_picture_is_sent_to_several_providers_by_one_form(here: RunningReceiver) -> None:
    for provider in ("novita", "freepik"):  # so that the jobs wait
        (await here.client.post(f"/v1/providers/{provider}/pause", json={})).raise_for_status()
    async with signed_in(here) as browser:
        form = await browser.get("/send")
        fields = {
            "form_token": form_token_of(form),
            "key": "k-1",
            "provider": "novita",
            "novita.scale_factor": "3",
            "also": ["freepik", "novita"],
        }
        files = {"image": ("harbour.png", picture_bytes(64, 64), "image/png")}
        job_ids = jobs_of(await browser.post("/send", data=fields, files=files))
        assert jobs_of(await browser.post("/send", data=fields, files=files)) == job_ids
        jobs = [(await here.client.get(f"/v1/jobs/{job_id}")).json() for job_id in job_ids]
        assert [(job["provider"], job["options"]) for job in jobs] == [
            ("novita", {"scale_factor": 3}),
            ("freepik", {}),
        ]
        page = await browser.get("/compare", params={"job": job_ids})
        assert page.status_code == 200
        assert re.findall(r'<article class="card result" id="(\w+)"', page.text) == job_ids
        assert "waiting for the result" in page.text


async def test_more_providers_are_asked_for_the_same_picture_once(here: RunningReceiver) -> None:
    async with signed_in(here) as browser:
        token = form_token_of(await browser.get("/send"))
        picture = picture_bytes(64, 64)
        sent = {"form_token": token, "provider": "novita"}
        files = {"image": ("harbour.png", picture, "image/png")}
        answer = await browser.post("/send", data=sent, files=files)
        assert answer.next_request is not None
        first = answer.next_request.url.path.rpartition("/")[2]
        asked = {"form_token": token, "key": "k-2", "job": [first], "provider": ["freepik", "none"]}
        answer = await browser.post("/compare", data=asked)
        _, second = jobs_of(answer)
        assert jobs_of(await browser.post("/compare", data=asked)) == [first, second]
        assert answer.next_request is not None
        page = await browser.send(answer.next_request)
        assert "The picture is on its way; 1 left out: no such provider." in page.text
        assert (await browser.get(f"/jobs/{second}/input")).content == picture
        job = (await here.client.get(f"/v1/jobs/{second}")).json()
        assert (job["provider"], job["input"]["file_name"]) == ("freepik", "harbour.png")


async def test_what_can_not_be_compared_is_said(here: RunningReceiver) -> None:
    job = await here.job()  # its picture is not kept
    async with signed_in(here) as browser:
        page = await browser.get("/compare")
        assert (page.status_code, "Send a picture" in page.text) == (200, True)
        assert (await browser.get(f"/compare?job=job_{26 * '0'}")).status_code == 404
        page = await browser.get(f"/compare?job={job.id}&job=nonsense&left=x&right=y")
        assert "The picture is not kept any more" in page.text
        token = form_token_of(page)
        for asked, status in (
            ({"job": job.id, "provider": "novita"}, 409),
            ({"job": job.id}, 422),
            ({"provider": "novita"}, 422),
        ):
            answer = await browser.post("/compare", data={"form_token": token, **asked})
            assert (answer.status_code, "Go to the overview" in answer.text) == (status, True), asked


async def test_a_read_token_compares_and_asks_nobody(here: RunningReceiver) -> None:
    job = await here.job(options={"prompt": HOSTILE}, metadata={HOSTILE: HOSTILE}, last_error=HOSTILE)
    async with signed_in(here, token=READ_TOKEN) as browser:
        page = await browser.get(f"/compare?job={job.id}&done={HOSTILE}&left={HOSTILE}")
        assert page.status_code == 200
        assert 'method="post" action="./compare"' not in page.text
        assert "<script>" not in page.text and "<img src=x" not in page.text
        asked = {"form_token": form_token_of(page), "job": job.id, "provider": "novita"}
        answer = await browser.post("/compare", data=asked)
        assert (answer.status_code, "read_only_token" in answer.text) == (403, True)


def result(job_id: str, seconds: int, side: int, cost: tuple[str, str] | None) -> dict[str, Any]:
    return {
        "id": job_id,
        "state": "succeeded",
        "sent_at": "2026-03-10T12:00:00Z",
        "finished_at": f"2026-03-10T12:00:{seconds:02}Z",
        "images": [{"width": side, "height": side}],
        "cost": None if cost is None else {"amount": cost[0], "unit": cost[1]},
    }


def test_a_result_is_praised_for_what_it_is_best_at() -> None:
    jobs = [
        result("a", 3, 100, ("10", "credits")),
        result("b", 5, 400, ("9", "credits")),
        result("c", 3, 200, None),
    ]
    assert merits(jobs) == {"a": ["fastest"], "b": ["largest", "cheapest"], "c": ["fastest"]}


def test_nothing_is_praised_alone_among_equals_or_in_different_units() -> None:
    assert merits([result("a", 3, 100, ("1", "USD"))]) == {"a": []}
    equal = [result(name, 3, 100, ("1", unit)) for name, unit in (("a", "USD"), ("b", "credits"))]
    assert merits(equal) == {"a": [], "b": []}
