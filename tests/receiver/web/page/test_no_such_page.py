"""Addresses without a page: a person sees a page that says so, a program gets the API's JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.support.pages import FIREFOX, Browser, signed_in
from tests.support.rows import execute
from tests.support.running_receiver import RunningReceiver, running_receiver

NO_JOB = f"/jobs/job_{26 * '0'}"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[RunningReceiver]:
    async with running_receiver(tmp_path) as receiver:
        yield receiver


def is_page(answer: httpx.Response, status: int, heading: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), answer.text
    assert f"<h1>{heading}</h1>" in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def is_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["code"] == code


async def test_an_unknown_address_is_a_page_that_leads_to_the_sign_in_form(here: RunningReceiver) -> None:
    async with Browser(here.receiver.app, headers={"accept": FIREFOX}) as browser:
        for path, base in (("/nothing", "./"), ("/jobs/a/b/c", "../../../"), ("/favicon.ico", "./"), ("/jobs/", "../")):
            answer = await browser.get(path)
            is_page(answer, 404, "There is no page at this address")
            assert f'<a class="button" href="{base}">Sign in</a>' in answer.text
            assert "<nav" not in answer.text


async def test_signed_in_it_has_the_navigation(here: RunningReceiver) -> None:
    async with signed_in(here) as browser:
        browser.headers["accept"] = FIREFOX
        answer = await browser.get("/nothing")
        is_page(answer, 404, "There is no page at this address")
        assert "<nav" in answer.text and "Go to the overview" in answer.text
        is_page(await browser.get(f"{NO_JOB}/input"), 404, "There is no such job")


async def test_an_address_for_forms_says_so_when_it_is_opened(here: RunningReceiver) -> None:
    async with Browser(here.receiver.app, headers={"accept": FIREFOX}) as browser:
        answer = await browser.get("/logout")
        is_page(answer, 405, "This address can’t be opened by itself")
        assert answer.headers["allow"] == "POST"


async def test_below_a_prefix_its_links_stay_below_it(here: RunningReceiver) -> None:
    host = Starlette(routes=[Mount("/upscale", here.receiver.app)])
    async with Browser(host, headers={"accept": FIREFOX}) as browser:
        answer = await browser.get("/upscale/jobs/a/b")
        is_page(answer, 404, "There is no page at this address")
        assert '<a class="button" href="../../">' in answer.text


@pytest.mark.sqlite(reason="a table that is missing stands for a broken file; PostgreSQL fails otherwise")
async def test_a_fault_behind_a_file_is_a_page_too(here: RunningReceiver) -> None:
    async with signed_in(here) as browser:
        browser.headers["accept"] = FIREFOX
        job = await here.job()
        await execute(here.receiver.parts.database, "DROP TABLE images")
        await execute(here.receiver.parts.database, "DROP TABLE jobs")
        answer = await browser.get(f"/jobs/{job.id}/input")
        is_page(answer, 503, "Something went wrong on our side")
        assert answer.headers["retry-after"] == "5"
        assert '<a class="button" href="">Try again</a>' in answer.text


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "",
        "application/json",
        "application/json, text/html;q=0.9",
        "text/html;q=0, */*",
        "text/html;q=much",
        "text/*",
        "image/avif,image/webp,*/*;q=0.8",
    ],
)
async def test_a_program_gets_json(accept: str, here: RunningReceiver) -> None:
    async with Browser(here.receiver.app, headers={"accept": accept}) as program:
        is_problem(await program.get("/nothing"), 404, "not_found")
        is_problem(await program.get("/logout"), 405, "method_not_allowed")


async def test_the_api_answers_json_to_everybody(here: RunningReceiver) -> None:
    async with Browser(here.receiver.app, headers={"accept": FIREFOX}) as browser:
        for path in ("/v1/nothing", "/v1", "/callbacks/freepik", "/inputs", "/inputs/token"):
            answer = await browser.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
        is_problem(await browser.get("/v1/jobs"), 401, "unauthorized")
        is_problem(await browser.delete("/v1/jobs"), 405, "method_not_allowed")


async def test_a_page_does_not_grow_with_the_depth_of_an_address(here: RunningReceiver) -> None:
    async with Browser(here.receiver.app, headers={"accept": FIREFOX}) as browser:
        is_problem(await browser.get(4000 * "/a"), 404, "not_found")
