"""Controls of the pages in Chromium: the slider, bulk actions, copying, times, motion, and live pages."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.async_api import Page, expect

from submitter.sandbox import test_picture as picture_bytes
from tests.support.chromium import needs_chromium, watched
from tests.support.dashboard import Setup
from tests.support.processes import TOKEN, submit, wait_for_state

pytestmark = [
    needs_chromium,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.xdist_group("browser"),
]
TELEPHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}}


async def succeeded(running: Setup, **more: Any) -> dict[str, Any]:
    """A job with a kept image, four times as wide as a telephone."""
    async with running.receiver.client() as client:
        job = await submit(client, "pixelcut", picture_bytes(400, 300), options={"scale": 4}, **more)
        return await wait_for_state(client, job["id"], "succeeded", kept=True)


async def split_of(page: Page) -> str:
    split: str = await page.evaluate("document.querySelector('[data-stage]').style.getPropertyValue('--split')")
    return split


async def test_at_1_to_1_the_slider_splits_what_is_in_view(running: Setup) -> None:
    job = await succeeded(running)
    async with watched(running.browser, running.origin, **TELEPHONE) as browser:
        page = await browser.signed_in(TOKEN)
        await page.goto(f"{running.origin}/jobs/{job['id']}")
        after = page.get_by_role("img", name="After")
        assert await after.evaluate("image => image.decode().then(() => image.clientWidth < 390)")
        zoom = page.get_by_role("button", name="1:1")
        await zoom.click()
        await expect(zoom).to_have_attribute("aria-pressed", "true")
        assert await after.evaluate("image => [image.clientWidth, image.naturalWidth]") == [1600, 1600]
        assert await page.evaluate("document.documentElement.scrollWidth") == 390
        for place in (0, 700):
            left, width = await page.evaluate(
                "left => { const stage = document.querySelector('[data-stage]'); stage.scrollLeft = left;"
                " return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() =>"
                " done([stage.scrollLeft, stage.clientWidth])))); }",
                place,
            )
            assert left == place
            assert float((await split_of(page)).removesuffix("px")) == pytest.approx(left + width / 2)
        await zoom.click()
        await expect(zoom).to_have_attribute("aria-pressed", "false")
        assert await split_of(page) == "50%"


async def test_a_button_shows_the_picture_before_as_long_as_it_is_held(running: Setup) -> None:
    job = await succeeded(running)
    async with watched(running.browser, running.origin) as browser:
        page = await browser.signed_in(TOKEN)
        await page.goto(f"{running.origin}/jobs/{job['id']}")
        flip = page.get_by_role("button", name="Hold to flip")
        await flip.hover()
        await page.mouse.down()
        await expect(flip).to_have_attribute("aria-pressed", "true")
        assert await split_of(page) == "100%"
        await page.mouse.up()
        await expect(flip).to_have_attribute("aria-pressed", "false")
        assert await split_of(page) == "50%"
        await flip.focus()
        await page.keyboard.down("Space")
        await expect(flip).to_have_attribute("aria-pressed", "true")
        await page.keyboard.up("Space")
        await expect(flip).to_have_attribute("aria-pressed", "false")


async def test_jobs_that_pass_a_filter_are_canceled_together_by_keyboard(running: Setup) -> None:
    async with running.receiver.client() as client:
        await client.post("/v1/providers/novita/pause", json={"reason": "a pause of the tests"})
        for _ in range(2):
            await submit(client, "novita", running.picture.read_bytes())
    async with watched(running.browser, running.origin) as browser:
        page = await browser.signed_in(TOKEN)
        await page.goto(f"{running.origin}/jobs?state=queued")
        await expect(page.get_by_text("the provider is paused")).to_have_count(2)
        await page.get_by_text("Act on all jobs").focus()
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Cancel…").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Cancel: 2 jobs")
        await page.get_by_role("button", name="Cancel all 2").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status").first).to_have_text("2 jobs canceled.")
        await expect(page.get_by_text("No job passes these filters.")).to_be_visible()


async def test_a_job_is_copied_as_a_command(running: Setup) -> None:
    job = await succeeded(running, metadata={"order": "it's 1017"})
    async with watched(running.browser, running.origin, permissions=["clipboard-read", "clipboard-write"]) as browser:
        page = await browser.signed_in(TOKEN)
        await page.goto(f"{running.origin}/jobs/{job['id']}")
        await page.get_by_text("Copy as curl").click()
        for shown in ("curl-send", "curl-show"):
            button = page.locator(f"[data-copy={shown}]")
            await button.click()
            await expect(button).to_contain_text("Copied")
            copied = await page.evaluate("navigator.clipboard.readText()")
            assert copied == await page.locator(f"#{shown}").text_content()
            assert copied.startswith("curl ") and TOKEN not in copied


async def test_times_are_local_and_their_titles_utc(running: Setup) -> None:
    job = await succeeded(running)
    created = datetime.fromisoformat(job["created_at"])
    for scripted in (True, False):
        async with watched(
            running.browser, running.origin, timezone_id="Asia/Kolkata", java_script_enabled=scripted
        ) as browser:
            page = await browser.signed_in(TOKEN)
            await page.goto(f"{running.origin}/jobs/{job['id']}")
            time = page.locator(".sheet time").first
            zone = ZoneInfo("Asia/Kolkata" if scripted else "UTC")
            await expect(time).to_contain_text(created.astimezone(zone).strftime("%H:%M"))
            title = await time.get_attribute("title") or ""
            assert created.isoformat(timespec="milliseconds").replace("+00:00", "Z") in title
            assert scripted or "UTC" in (await time.text_content() or "")


async def test_nothing_moves_where_motion_is_reduced(running: Setup) -> None:
    still = (
        "[...document.querySelectorAll('*')].map(element => getComputedStyle(element))"
        ".every(style => style.animationName === 'none' && style.transitionDuration === '0s')"
    )
    first = await succeeded(running)
    for motion, expected in (("reduce", True), ("no-preference", False)):
        async with watched(running.browser, running.origin, reduced_motion=motion) as browser:
            page = await browser.signed_in(TOKEN)
            await page.goto(f"{running.origin}/jobs")
            await expect(page.locator("#live-words")).to_have_text("Live")
            await page.locator(f"#{first['id']}").evaluate("row => row.classList.add('changed')")
            assert await page.evaluate(still) == expected


async def test_a_hidden_page_waits_until_it_is_seen(running: Setup) -> None:
    async with watched(running.browser, running.origin) as browser:
        hidden = await browser.signed_in(TOKEN)
        seen = await browser.page()
        for page in (hidden, seen):
            await page.goto(f"{running.origin}/jobs")
            await expect(page.locator("#live-words")).to_have_text("Live")
        become = (
            "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')); }"
        )
        await hidden.evaluate(become, True)
        job = await succeeded(running)
        await expect(seen.locator(f"#{job['id']} .badge")).to_have_text("succeeded")
        await expect(hidden.locator(f"#{job['id']}")).to_have_count(0)
        await hidden.evaluate(become, False)
        await expect(hidden.locator(f"#{job['id']} .badge")).to_have_text("succeeded")


async def test_a_page_waits_while_something_is_selected(running: Setup) -> None:
    async with running.receiver.client() as client:
        first = await submit(client, "pixelcut", running.picture.read_bytes())
        await wait_for_state(client, first["id"], "succeeded", kept=True)
        async with watched(running.browser, running.origin) as browser:
            page = await browser.signed_in(TOKEN)
            await page.goto(f"{running.origin}/jobs")
            await expect(page.locator("#live-words")).to_have_text("Live")
            await page.locator("tbody tr .name").first.evaluate("element => getSelection().selectAllChildren(element)")
            second = await submit(client, "pixelcut", running.picture.read_bytes())
            await expect(page.locator("#live-words")).to_have_text("Paused while you select")
            await expect(page.locator(f"#{second['id']}")).to_have_count(0)
            await page.evaluate("getSelection().removeAllRanges()")
            await expect(page.locator(f"#{second['id']}")).to_be_visible()
