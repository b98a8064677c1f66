"""Signing in and out, who may see what, and which posts are refused."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import FunctionType

import httpx
import pytest
from starlette.routing import Route

from receiver.web.auth import Bearer
from receiver.web.page.sessions import sign_in_link
from submitter.vocabulary import State
from tests.support.pages import FIREFOX, PAGES, TOKEN, Browser, form_token_of, signed_in
from tests.support.running_receiver import RunningReceiver, running_receiver

READ_TOKEN = "a-read-token-of-the-tests"
_INLINE = re.compile(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script(?![^>]* src=)")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[RunningReceiver]:
    async with running_receiver(tmp_path, read_tokens=READ_TOKEN) as receiver:
        yield receiver


async def test_signed_out_every_page_leads_to_the_sign_in_form(here: RunningReceiver) -> None:
    job = await here.job()
    async with Browser(here.receiver.app) as browser:
        for path in (*PAGES, f"/jobs/{job.id}", f"/jobs/{job.id}/input", "/live"):
            answer = await browser.get(path)
            assert answer.status_code == 303, path
            led_to = answer.next_request
            assert led_to is not None and led_to.url.path == "/login", path
        answer = await browser.get("/jobs?state=failed", follow_redirects=True)
        assert 'value="jobs?state=failed"' in answer.text


OPEN = {"/login", "/open", "/static/{name}"}
"""What everybody may see."""


def routes_of_pages(here: RunningReceiver, method: str) -> list[str]:
    """The paths of the dashboard that answer *method*, with ids in them; all but those that are open to everybody."""
    routes = [route for route in here.receiver.app.router.routes if isinstance(route, Route)]
    pages = [route for route in routes if isinstance(route.endpoint, FunctionType) and not route.include_in_schema]
    paths = [route.path for route in pages if method in (route.methods or ()) and route.path not in OPEN]
    assert {"/jobs/{id}/cancel", "/compare", "/endpoints/{id}/rotate-secret"} <= set(paths) or method == "GET"
    return [path.format(id=f"job_{26 * '0'}", n=0, name="novita") for path in paths]


async def test_no_page_and_no_post_is_open_without_signing_in(here: RunningReceiver) -> None:
    async with Browser(here.receiver.app) as browser:
        for method in ("GET", "POST"):
            for path in routes_of_pages(here, method):
                answer = await browser.request(method, path)
                assert answer.status_code == 303, (method, path)
                led_to = answer.next_request
                assert led_to is not None and led_to.url.path == "/login", (method, path)


async def test_every_post_of_a_page_refuses_forged_forms(here: RunningReceiver) -> None:
    async with signed_in(here) as browser:
        form_token = form_token_of(await browser.get("/"))
        for path in routes_of_pages(here, "POST"):
            for headers, data in (
                ({}, {}),
                ({}, {"form_token": form_token[:-1]}),
                ({"origin": "https://evil.example"}, {"form_token": form_token}),
                ({"sec-fetch-site": "cross-site"}, {"form_token": form_token}),
            ):
                answer = await browser.post(path, data=data, headers=headers)
                assert (answer.status_code, "forged_form" in answer.text) == (403, True), (path, headers, data)


async def test_every_post_of_a_page_refuses_a_read_token(here: RunningReceiver) -> None:
    async with signed_in(here, token=READ_TOKEN) as browser:
        form_token = form_token_of(await browser.get("/"))
        for path in routes_of_pages(here, "POST"):
            if path != "/logout":
                answer = await browser.post(path, data={"form_token": form_token})
                assert (answer.status_code, "read_only_token" in answer.text) == (403, True), path


async def test_a_right_token_signs_in_and_leads_back(here: RunningReceiver) -> None:
    async with Browser(here.receiver.app) as browser:
        answer = await browser.post("/login", data={"token": TOKEN, "next": "jobs?state=failed"})
        assert answer.status_code == 303
        assert (
            answer.next_request is not None and answer.next_request.url == "https://hooks.example.com/jobs?state=failed"
        )
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "Secure", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert TOKEN not in cookie
        assert (await browser.get("/")).status_code == 200


ELSEWHERE = ["https://evil.example", "//evil.example", "/\\evil.example", "../x", "javascript:x"]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
async def test_signing_in_leads_nowhere_else(elsewhere: str, here: RunningReceiver) -> None:
    async with Browser(here.receiver.app) as browser:
        answer = await browser.post("/login", data={"token": TOKEN, "next": elsewhere})
        assert answer.next_request is not None
        assert answer.next_request.url.host == "hooks.example.com"
        assert answer.next_request.url.path in ("/", "/javascript:x")


async def test_a_wrong_token_is_said_in_an_alert_and_then_slowed_down(here: RunningReceiver) -> None:
    async with Browser(here.receiver.app) as browser:
        answer = await browser.post("/login", data={"token": "wrong"})
        assert answer.status_code == 401
        assert 'role="alert"' in answer.text
        assert "set-cookie" not in answer.headers
        for _ in range(20):
            answer = await browser.post("/login", data={"token": "wrong"})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert (await browser.post("/login", data={"token": TOKEN})).status_code == 429
    async with Browser(here.receiver.app, peer="198.51.100.7") as other:
        assert (await other.post("/login", data={"token": TOKEN})).status_code == 303


async def test_a_session_ends_with_its_token(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, api_tokens=f"{TOKEN},another-token") as here, signed_in(here) as browser:
        cookies = browser.cookies
        assert (await browser.get("/")).status_code == 200
    async with (
        running_receiver(tmp_path, api_tokens="another-token") as here,
        Browser(here.receiver.app, cookies=cookies) as browser,
    ):
        assert (await browser.get("/")).status_code == 303


async def test_signing_out_ends_the_session_and_not_only_the_cookie(here: RunningReceiver) -> None:
    async with signed_in(here) as browser:
        cookies = httpx.Cookies(browser.cookies)
        answer = await browser.post("/logout", data={"form_token": form_token_of(await browser.get("/"))})
        assert answer.status_code == 303
    async with Browser(here.receiver.app, cookies=cookies) as browser:
        assert (await browser.get("/")).status_code == 303


async def test_a_sign_in_link_works_once(here: RunningReceiver) -> None:
    token = sign_in_link(here.receiver.credentials.tokens, Bearer([TOKEN]), TOKEN)
    async with Browser(here.receiver.app) as browser:
        assert (await browser.get(f"/open?token={token}")).status_code == 303
        assert (await browser.get("/")).status_code == 200
    async with Browser(here.receiver.app) as browser:
        answer = await browser.get(f"/open?token={token}")
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
        assert (await browser.get("/open?token=forged")).status_code == 401


async def test_forged_posts_are_refused_and_change_nothing(here: RunningReceiver) -> None:
    job = await here.job(state=State.QUEUED)
    path = f"/jobs/{job.id}/cancel"
    async with signed_in(here) as browser:
        form_token = form_token_of(await browser.get(f"/jobs/{job.id}"))
        other_token = ""
        async with signed_in(here) as other:
            other_token = form_token_of(await other.get("/"))
        for headers, data in (
            ({}, {}),
            ({}, {"form_token": "x"}),
            ({}, {"form_token": other_token}),
            ({"origin": "https://evil.example"}, {"form_token": form_token}),
            ({"origin": "null"}, {"form_token": form_token}),
            ({"sec-fetch-site": "cross-site"}, {"form_token": form_token}),
            ({"sec-fetch-site": "same-site"}, {"form_token": form_token}),
        ):
            answer = await browser.post(path, data=data, headers=headers)
            assert answer.status_code == 403, (headers, data)
            assert "forged_form" in answer.text
        assert (await here.now(job)).state is State.QUEUED
        headers = {"origin": "https://hooks.example.com", "sec-fetch-site": "same-origin"}
        assert (await browser.post(path, data={"form_token": form_token}, headers=headers)).status_code == 303
        assert (await here.now(job)).state is State.CANCELED


async def test_a_read_token_sees_everything_and_is_offered_no_action(here: RunningReceiver) -> None:
    job = await here.job(state=State.QUEUED)
    async with signed_in(here, token=READ_TOKEN) as browser:
        for path in (*PAGES, f"/jobs/{job.id}"):
            answer = await browser.get(path)
            assert answer.status_code == 200, path
            forms = re.findall(r'<form[^>]*method="post"[^>]*action="([^"]*)"', answer.text)
            assert [form for form in forms if not form.endswith("logout")] == [], path
        form_token = form_token_of(await browser.get("/"))
        answer = await browser.post(f"/jobs/{job.id}/cancel", data={"form_token": form_token})
        assert (answer.status_code, "read_only_token" in answer.text) == (403, True)
        assert (await here.now(job)).state is State.QUEUED
        assert (await browser.post("/logout", data={"form_token": form_token})).status_code == 303


async def test_every_answer_has_a_strict_policy_and_nothing_inline(here: RunningReceiver) -> None:
    job = await here.job()
    async with signed_in(here) as browser:
        for path in ("/login", *PAGES, f"/jobs/{job.id}", "/jobs/none", "/static/page.css", "/static/page.js"):
            answer = await browser.get(path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'"), path
            assert "unsafe" not in policy, path
            assert "frame-ancestors 'none'" in policy and "require-trusted-types-for 'script'" in policy, path
            assert answer.headers["x-content-type-options"] == "nosniff"
            if "text/html" in answer.headers.get("content-type", ""):
                assert not _INLINE.search(answer.text), path


async def test_the_dashboard_can_be_switched_off(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, dashboard="off") as here:
        for path in ("/", "/login", "/jobs", "/static/page.css"):
            answer = await here.client.get(path, headers={"accept": FIREFOX})
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert (await here.client.get("/v1/jobs")).status_code == 200
