"""The pages in Chromium: the walk of an operator, with and without JavaScript, accessibility, and hostile content."""

from __future__ import annotations

import json
import os
import re
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.support.chromium import SCREENSHOTS, needs_chromium, watched
from tests.support.dashboard import READ_TOKEN, Setup, endpoint, go_to
from tests.support.processes import TOKEN, submit, wait_for_state

WIDTHS = (390, 1280, 1920)
pytestmark = [
    needs_chromium,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.xdist_group("browser"),
]
_AXE = Axe().axe_script
HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>{{7*7}}"


async def test_the_walk_of_an_operator(running: Setup) -> None:
    await endpoint(running, "/hooks")
    async with watched(running.browser, running.origin, viewport={"width": 1280, "height": 900}) as browser:
        page = await browser.signed_in(TOKEN)
        await expect(page.get_by_role("heading", level=1)).to_have_text("Overview")

        # Send a picture, and see it succeed without a reload.
        await go_to(page, "Send")
        await page.get_by_label("Image").set_input_files(running.picture)
        await page.get_by_label("Provider").select_option("pixelcut")
        await page.get_by_label("scale", exact=True).select_option("4")
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("harbour at dusk.png")
        await page.evaluate("window.notReloaded = true")
        await expect(page.locator("#summary .badge")).to_have_text("succeeded")
        slider = page.get_by_role("slider")
        await expect(slider).to_be_visible()
        assert await page.evaluate("window.notReloaded")

        # Move the slider by keyboard.
        await slider.focus()
        for _ in range(5):
            await slider.press("ArrowLeft")
        assert await page.evaluate("document.querySelector('[data-stage]').style.getPropertyValue('--split')") == "45%"
        await page.get_by_role("button", name="1:1").click()
        await page.get_by_role("button", name="1:1").click()

        # Replay a delivery.
        before = len(running.subscriber.at("/hooks"))
        delivery = page.get_by_role("article", name=re.compile(r"job\.succeeded"))
        await delivery.get_by_role("button", name="Replay").click()
        await expect(page.get_by_role("status")).to_have_text("The delivery goes out again.")
        await expect(delivery.get_by_role("listitem")).to_have_count(2)
        assert len(running.subscriber.at("/hooks")) > before

        # Filter, by the form and by the keyboard.
        await go_to(page, "Jobs")
        await expect(page.locator("#live-words")).to_have_text("Live")
        await page.keyboard.press("/")
        await expect(page.get_by_label("Search")).to_be_focused()
        await page.keyboard.type("harbour")
        await expect(page.get_by_label("Search")).to_have_value("harbour")
        await page.get_by_label("State").select_option("succeeded")
        await page.get_by_role("button", name="Filter").click()
        await page.wait_for_url("**/jobs?q=harbour&state=succeeded")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("harbour at dusk.png")
        await page.go_back()
        await page.get_by_label("State").select_option("failed")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.get_by_text("No job passes these filters")).to_be_visible()

        # Rotate a secret: it is shown once.
        await go_to(page, "Endpoints")
        await page.get_by_role("button", name="Rotate secret").click()
        await expect(page.locator("#secret")).to_have_text(re.compile(r"^whsec_.{20,}"))
        await page.reload()
        await expect(page.locator("#secret")).to_have_count(0)

        # Pause and resume a provider.
        await go_to(page, "Providers")
        novita = page.get_by_role("region", name="Novita")
        await novita.get_by_text("Pause…").click()
        await novita.get_by_role("button", name="Pause").click()
        await expect(novita.locator(".badge").first).to_have_text("paused")
        await go_to(page, "Overview")
        await page.get_by_role("button", name="Resume novita").click()
        await expect(page.get_by_text("Nothing needs attention")).to_be_visible()

        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
        await page.goto(f"{running.origin}/jobs")
        await expect(page.get_by_role("button", name="Sign in")).to_be_visible()


async def test_a_picture_is_compared_with_and_without_javascript(running: Setup) -> None:
    for scripted in (True, False):
        async with watched(running.browser, running.origin, java_script_enabled=scripted) as browser:
            page = await browser.signed_in(TOKEN)
            await go_to(page, "Send")
            await page.get_by_label("Image").set_input_files(running.picture)
            await page.get_by_role("group", name="Compare with").get_by_label("Pixelcut").check()
            await page.get_by_role("button", name="Send").click()
            await expect(page.get_by_role("heading", level=1)).to_have_text("Compare")
            job_ids = re.findall(r"job=(\w+)", page.url)
            assert len(job_ids) == 2
            async with running.receiver.client() as client:
                for job_id in job_ids:
                    await wait_for_state(client, job_id, "succeeded", kept=True)
            if not scripted:
                await page.reload()
            await expect(page.get_by_role("article").get_by_text("succeeded")).to_have_count(2)
            await page.get_by_label("Left", exact=True).select_option("Pixelcut")
            if not scripted:
                await page.get_by_role("button", name="Show").click()
            await expect(page.get_by_role("img", name="Left: Pixelcut")).to_have_attribute(
                "src", re.compile(rf"jobs/{job_ids[1]}/images/0$")
            )
            assert f"left={job_ids[1]}" in page.url
            more = page.get_by_role("region", name="Ask more providers")
            await more.get_by_label("APIXO").check()
            await more.get_by_role("button").click()
            await expect(page.get_by_role("status")).to_have_text("The picture is on its way.")
            await expect(page.get_by_role("article")).to_have_count(3)


async def test_the_same_walk_without_javascript(running: Setup) -> None:
    await endpoint(running, "/hooks")
    async with watched(running.browser, running.origin, java_script_enabled=False) as browser:
        page = await browser.signed_in(TOKEN)
        await go_to(page, "Send")
        await page.get_by_label("Provider").select_option("pixelcut")
        await page.get_by_role("button", name="Show its options").click()
        await page.get_by_label("scale", exact=True).select_option("2")
        await page.get_by_label("Image").set_input_files(running.picture)
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("harbour at dusk.png")
        job_id = page.url.partition("/jobs/")[2].partition("?")[0]
        async with running.receiver.client() as client:
            await wait_for_state(client, job_id, "succeeded", kept=True)
        await page.reload()
        await expect(page.locator("#summary .badge")).to_have_text("succeeded")
        await expect(page.get_by_role("slider")).to_be_visible()
        delivery = page.get_by_role("article", name=re.compile(r"job\.succeeded"))
        await delivery.get_by_role("button", name="Replay").click()
        await expect(page.get_by_role("status")).to_have_text("The delivery goes out again.")
        await go_to(page, "Endpoints")
        await page.get_by_role("button", name="Rotate secret").click()
        await expect(page.locator("#secret")).to_have_text(re.compile(r"^whsec_.{20,}"))
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("button", name="Sign in")).to_be_visible()


async def test_axe_finds_nothing_and_nothing_scrolls_sideways(running: Setup) -> None:
    await endpoint(running, "/hooks", description="orders service")
    await endpoint(running, "/bad", description="billing, being moved")
    async with running.receiver.client() as client:
        job_ids = []
        for provider in ("pixelcut", "freepik", "apixo"):
            job = await submit(client, provider, running.picture.read_bytes(), metadata={"order": 1017})
            await wait_for_state(client, job["id"], "succeeded", kept=True)
            job_ids.append(job["id"])
    paths = (
        "/",
        "/jobs",
        f"/jobs/{job_ids[0]}",
        f"/jobs/{job_ids[1]}",
        "/deliveries",
        "/endpoints",
        "/providers",
        "/send",
        f"/compare?job={'&job='.join(job_ids)}",
        "/compare",
    )
    found: dict[str, Any] = {}
    for scheme in ("light", "dark"):
        options: dict[str, Any] = {"viewport": {"width": WIDTHS[0], "height": 900}, "color_scheme": scheme}
        async with watched(running.browser, running.origin, **options) as browser:
            page = await browser.page()
            await page.goto(f"{running.origin}/login")
            found |= await _viewed(page, "login", scheme)
            await page.get_by_label("API token").fill(TOKEN)
            await page.get_by_role("button", name="Sign in").click()
            await page.wait_for_url(f"{running.origin}/")
            for path in paths:
                await page.goto(f"{running.origin}{path}")
                await page.evaluate("for (const each of document.querySelectorAll('main details')) each.open = true")
                name = re.sub(r"\?.*", "-jobs", path).replace(job_ids[0], "job").replace(job_ids[1], "other")
                found |= await _viewed(page, re.sub(r"\W+", "-", name).strip("-") or "overview", scheme)
    assert found == {}, "\n".join(f"{name}: {wrong}" for name, wrong in found.items())


async def _viewed(page: Page, name: str, scheme: str) -> dict[str, Any]:
    """
    Return the problems of *page* at each width; with RECEIVER_TEST_SCREENSHOTS, take screenshots of it.

    Colours are all that the dark scheme changes, so axe looks at nothing else there, and at one width.
    """
    found: dict[str, Any] = {}
    rules: dict[str, Any] = {"resultTypes": ["violations"]}
    if scheme == "dark":
        rules["runOnly"] = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
    assert await page.locator("h1").count() == 1, name
    for width in WIDTHS:
        await page.set_viewport_size({"width": width, "height": 900})
        if "RECEIVER_TEST_SCREENSHOTS" in os.environ:
            await page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{width}.png", full_page=True)
        wrong: list[str] = []
        if width == WIDTHS[0] or (width == WIDTHS[1] and scheme == "light"):
            await page.evaluate(_AXE)
            wrong += [
                f"{violation['id']}: {node['target']} {node.get('failureSummary', '')[:300]}"
                for violation in await page.evaluate("rules => axe.run(rules).then(all => all.violations)", rules)
                for node in violation["nodes"][:3]
            ]
        wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if wide > 0:
            wrong.append(f"{wide} px too wide")
        if wrong:
            found[f"{name}-{scheme}-{width}"] = wrong
    return found


async def test_hostile_content_is_inert_on_every_page(running: Setup) -> None:
    await endpoint(running, "/bad", description=HOSTILE[:400])
    async with running.receiver.client() as client:
        asked = {"provider": "freepik", "options": {"prompt": HOSTILE}, "metadata": {HOSTILE: HOSTILE}}
        answer = await client.post(
            "/v1/jobs",
            data={"job": json.dumps(asked)},
            files={"image": (HOSTILE.replace("/", "_"), running.picture.read_bytes(), "image/png")},
        )
        assert answer.status_code == 202, answer.text
        job = await wait_for_state(client, answer.json()["id"], "succeeded", kept=True)
        await client.post("/v1/providers/novita/pause", json={"reason": HOSTILE})
    paths = (
        "/",
        f"/jobs?q={HOSTILE[:30]}",
        f"/jobs/{job['id']}",
        f"/compare?job={job['id']}&done={quote(HOSTILE)}",
        "/deliveries",
        "/endpoints",
        "/providers",
        "/send",
    )
    async with watched(running.browser, running.origin) as browser:
        page = await browser.signed_in(TOKEN)
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        for path in paths:
            await page.goto(f"{running.origin}{path}")
            await expect(page.get_by_role("heading", level=1)).to_be_visible()
            assert await page.locator("main img[src=x], main script").count() == 0, path
        assert dialogs == []


async def test_a_read_token_sees_pages_without_buttons(running: Setup) -> None:
    async with watched(running.browser, running.origin) as browser:
        page = await browser.signed_in(READ_TOKEN)
        for name in ("Jobs", "Deliveries", "Endpoints", "Providers", "Send"):
            await go_to(page, name)
            await expect(page.get_by_role("heading", level=1)).to_have_text(name)
            assert await page.locator("main form[method=post]").count() == 0, name
        await expect(page.get_by_text("Read only")).to_be_visible()
