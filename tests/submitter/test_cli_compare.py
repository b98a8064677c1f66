"""`submitter compare`: one picture through several providers, refusals before payment, and nothing sent twice."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from PIL import Image, ImageFilter
from playwright.async_api import expect

from submitter.commands import compare_process
from submitter.commands.compare_pictures import Appearance
from submitter.commands.compare_report import Comparison, Result, write_report
from submitter.images import inspect
from submitter.providers import PROVIDERS
from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.sdk.values import Job
from tests.support.chromium import chromium, needs_chromium, watched
from tests.support.processes import live
from tests.support.submitter_cli import pictures, started, submitter
from tests.support.waiting import eventually

HOSTILE = "<img src=x onerror=alert(1)>\"'{0}{{7*7}}&amp;"


async def test_a_picture_is_given_by_its_url(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "big cat.png").write_bytes(picture_bytes(160, 120))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{site.server_port}"
        async with live(tmp_path) as (receiver, sandbox):
            address, own = f"{origin}/big%20cat.png", ("--option", "apixo.resolution=2k", "--scale", "2", "--json")
            command = ("compare", address, "--providers", "novita,apixo", *own)
            done = await submitter(receiver, *command)
            assert done.status == 0, done.err
            assert done.json["image"]["path"] == address
            saved = [Path(result["saved"][0]).stem for result in done.json["results"]]
            assert saved == ["big cat-novita", "big cat-apixo"]
            assert all(result["sharpness"] > 0 for result in done.json["results"])
            assert (tmp_path / "compared" / "big cat-compared.html").exists()
            again = await submitter(receiver, *command)
            assert (again.status, len(sandbox.accepted())) == (0, 2)
            missing = await submitter(receiver, "compare", f"{origin}/none.png", "--providers", "novita")
            assert (missing.status, len(sandbox.accepted())) == (1, 2)
            assert "can't be fetched" in missing.err and "404" in missing.err
        site.shutdown()


async def test_a_provider_that_takes_urls_only_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 3, picture_bytes(96, 64))
    async with live(tmp_path, environment={"RECEIVER_PUBLIC_URL": ""}) as (receiver, sandbox):
        for command in (
            ("compare", "in/photo-000.jpg", "--providers", "novita,apixo"),
            ("batch", "in", "--provider", "apixo"),
        ):
            done = await submitter(receiver, *command)
            assert done.status == 1, command
            assert "nothing was sent: apixo can't take files from this receiver" in done.err, done.err
            assert "RECEIVER_PUBLIC_URL" in done.err
        assert sandbox.accepted() == []
        fine = await submitter(receiver, "batch", "in", "--provider", "novita", "--json")
        assert fine.json["succeeded"] == 3, fine.err


async def test_results_are_compared_and_a_second_run_sends_nothing(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    command = ("compare", "cat.jpg", "--providers", "novita,upscayl, apixo", "--scale", "3")
    own = ("--option", "apixo.resolution=2k", "--option", "upscayl.saveImageAs=png")
    async with live(tmp_path) as (receiver, sandbox):
        done = await submitter(receiver, *command, *own, "--json")
        assert done.status == 0, done.err
        assert "3 new jobs, each billed by its provider" in done.err
        novita, upscayl, apixo = done.json["results"]
        assert (novita["provider"], novita["options"], novita["state"]) == ("novita", {"scale_factor": 3}, "succeeded")
        assert upscayl["options"] == {"scale": 3, "saveImageAs": "png"}
        assert apixo["options"] == {"resolution": "2k"}
        assert (novita["width"], novita["height"]) == (480, 360)
        assert upscayl["cost"] == {"amount": "10", "unit": "credits"}
        for result in (novita, upscayl, apixo):
            (saved,) = result["saved"]
            assert Path(saved).stem == f"cat-{result['provider']}"
            assert (tmp_path / saved).stat().st_size == result["bytes"]
            assert result["seconds"] > 0 and result["sharpness"] > 0
        again = await submitter(receiver, *command, *own)
        assert (again.status, len(sandbox.accepted())) == (0, 3)
        assert "0 new jobs" in again.err
        assert all(text in again.out for text in ("sharpness", "480×360", "10 credits", novita["job"]))
        elsewhere = await submitter(receiver, *command, *own, "--out", "other", "--html", "report.html", "--json")
        assert [result["job"] for result in elsewhere.json["results"]] == [novita["job"], upscayl["job"], apixo["job"]]
        assert len(sandbox.accepted()) == 3
    for report in (tmp_path / "compared" / "cat-compared.html", tmp_path / "report.html"):
        assert report.read_text().count("<img ") == 4


async def test_whatever_a_provider_refuses_is_found_before_anything_is_paid_for(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    (tmp_path / "page.jpg").write_text("<html>")
    two = ("--providers", "pixelcut,novita")
    refused = {
        ("cat.jpg", "--providers", "pixelcut,nosuch"): (2, "there is no provider 'nosuch'"),
        ("cat.jpg", "--providers", ","): (2, "names none"),
        ("cat.jpg", *two, "--scale", "8"): (1, "nothing was sent: 2 of 2"),
        ("cat.jpg", *two, "--scale", "3"): (1, "pixelcut: options.scale"),
        ("cat.jpg", "--providers", "pixelcut,apixo", "--scale", "2"): (1, "apixo: APIXO has a resolution"),
        ("cat.jpg", *two, "-o", "scale=2"): (2, "provider.name=value"),
        ("cat.jpg", *two, "-o", "novita.colour=red"): (1, "options.colour"),
        ("cat.jpg", "--providers", "pixelcut,freepik"): (1, "no key for freepik"),
        ("page.jpg", *two): (1, "page.jpg"),
        ("no.jpg", *two): (2, "is not a file"),
        ("cat.jpg", *two, "--html", "nowhere/report.html"): (2, "--html nowhere/report.html"),
        ("cat.jpg", *two, "--html", "/proc/report.html"): (2, "--html /proc/report.html can't be written to"),
        ("cat.jpg", *two, "--html", "/dev/null"): (2, "--html /dev/null is not a place for a file"),
        ("cat.jpg", *two, "--out", "cat.jpg"): (2, "--out cat.jpg"),
    }
    async with live(tmp_path, environment={"FREEPIK_API_KEY": ""}) as (receiver, _), receiver.client() as client:
        for arguments, (status, says) in refused.items():
            done = await submitter(receiver, "compare", *arguments)
            assert (done.status, done.out) == (status, ""), arguments
            assert says in done.err, arguments
        assert (await client.get("/v1/jobs")).json()["items"] == []


async def test_a_provider_that_fails_is_shown_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    sandbox = Sandbox(seed=5, turnaround_seconds=(0.05, 0.1), faults=Faults(fail=1))
    command = ("compare", "cat.jpg", "--providers", "novita,upscayl", "--json")
    async with live(tmp_path, sandbox=sandbox) as (receiver, _):
        first = await submitter(receiver, *command)
        assert first.status == 1
        assert sorted(result["state"] for result in first.json["results"]) == ["failed", "succeeded"]
        (failed,) = [result for result in first.json["results"] if result["state"] == "failed"]
        assert failed["job"] in failed["reason"]
        page = (tmp_path / "compared" / "cat-compared.html").read_text()
        assert failed["reason"].partition("(")[0] in page
        assert (await submitter(receiver, *command)).status == 1
        assert len(sandbox.accepted()) == 2
        again = await submitter(receiver, *command, "--again")
        assert (again.status, len(sandbox.accepted())) == (0, 3)


async def test_an_interrupt_names_the_jobs_that_go_on_and_the_same_command_goes_on_with_them(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    sandbox = Sandbox(seed=5, turnaround_seconds=(600, 600))
    command = ("compare", "cat.jpg", "--providers", "novita,freepik")
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        for _ in range(2):
            running = await started(receiver, *command)
            known = tmp_path / "compared" / ".submitter-compare.jsonl"
            await eventually(lambda known=known: known.exists() and known.read_text().count('"job"') == 2)  # type: ignore[misc]
            await eventually(lambda: len(sandbox.accepted()) == 2)
            assert running.stderr is not None
            planned = await running.stderr.readline()
            running.send_signal(signal.SIGINT)
            _, err = await running.communicate()
            assert running.returncode == 130
        jobs = (await client.get("/v1/jobs")).json()["items"]
    assert "0 new jobs" in planned.decode()
    assert len(jobs) == 2
    assert "go on at the receiver" in err.decode() and "`submitter list`" in err.decode()


# --- Sharpness ------------------------------------------------------------------------------------------------------


def sharpness(path: Path, width: int = 320, height: int = 240) -> float | None:
    return compare_process.sharpness(Image.open(path), width, height)


def saved(picture: Image.Image, path: Path) -> Path:
    picture.save(path)
    return path


def test_a_blurred_picture_is_less_sharp_and_its_size_and_orientation_do_not_matter(tmp_path: Path) -> None:
    picture = Image.open(io.BytesIO(picture_bytes(320, 240))).convert("RGB")
    sharp = sharpness(saved(picture, tmp_path / "a.png"))
    blurred = sharpness(saved(picture.filter(ImageFilter.GaussianBlur(2)), tmp_path / "b.png"))
    turned = sharpness(saved(picture.transpose(Image.Transpose.ROTATE_90), tmp_path / "c.png"))
    larger = sharpness(saved(picture.resize((960, 720), Image.Resampling.LANCZOS), tmp_path / "d.png"))
    assert sharp is not None and blurred is not None and turned is not None and larger is not None
    assert blurred < sharp / 4
    assert turned == pytest.approx(sharp, rel=1e-6)
    assert larger == pytest.approx(sharp, rel=0.1)


def test_a_known_pattern_has_the_variance_that_the_definition_gives(tmp_path: Path) -> None:
    pattern = Image.new("L", (70, 70))
    for x in range(70):
        for y in range(70):
            pattern.putpixel((x, y), 128 + (100, 0, -100, 0)[x % 4])
    # Of a wave of four pixels, each (1 2 1) / 4 leaves a half, and the Laplacian is twice what is left.
    assert sharpness(saved(pattern, tmp_path / "wave.png"), 70, 70) == pytest.approx((100 / 4 * 2) ** 2 / 2, rel=1e-6)
    assert sharpness(saved(Image.new("L", (66, 66), 7), tmp_path / "flat.png"), 66, 66) == 0.0


def test_a_picture_too_large_to_decode_is_not_measured(tmp_path: Path) -> None:
    path = saved(Image.new("1", (12_000, 12_000)), tmp_path / "large.png")
    command = [sys.executable, "-I", compare_process.__file__, str(path), "100", "100"]
    ended = subprocess.run(command, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (compare_process.TOO_LARGE, b"", b"")
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    ended = subprocess.run([*command[:3], str(tmp_path / "no.png"), "9", "9"], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")


# --- The report -----------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.slow
async def test_the_report_opens_offline_compares_and_shows_hostile_words_as_words(tmp_path: Path) -> None:
    picture = tmp_path / f"{HOSTILE}.jpg"
    picture.write_bytes(picture_bytes(160, 120))
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    async with live(tmp_path) as (receiver, _):
        done = await submitter(receiver, "compare", picture.name, "--providers", "novita,upscayl", "--scale", "2")
        assert done.status == 0, done.err
    (report,) = (tmp_path / "compared").glob("*.html")
    failed = tmp_path / "failed.html"
    job = Job.model_validate({"id": HOSTILE, "provider": "novita", "state": "failed", "created_at": datetime.now(UTC)})
    broken = Result("novita", {HOSTILE: HOSTILE}, "failed", job, f"{HOSTILE}\x1b[2J")
    write_report(Comparison(picture, inspect(picture), Appearance(), [broken]), failed)
    async with chromium() as browser:
        for scheme in ("light", "dark"):
            async with watched(browser, "file://", color_scheme=scheme, offline=True) as context:
                page = await context.page()
                await page.goto(report.as_uri())
                await expect(page.get_by_role("heading", level=1)).to_have_text(picture.name)
                titles = [PROVIDERS["novita"].title, PROVIDERS["upscayl"].title, "Before"]
                assert await page.get_by_role("heading", level=2).all_inner_texts() == titles
                sizes = "[...document.images].map(image => [image.naturalWidth > 0, image.complete])"
                assert await page.evaluate(sizes) == [[True, True]] * 5
                slider = page.get_by_role("slider").first
                left = page.locator("#novita img.left")
                await slider.fill("25")
                assert "75%" in await left.evaluate("image => getComputedStyle(image).clipPath")
                before, shown = page.locator("img.before"), await left.get_attribute("src")
                assert shown == await before.get_attribute("src")
                await page.locator("#novita select").select_option(index=1)
                assert await left.get_attribute("src") == await page.locator("#upscayl img.after").get_attribute("src")
                assert (await Axe().run(page)).response["violations"] == []
                await page.goto(failed.as_uri())
                await expect(page.locator(".reason")).to_have_text(f"{HOSTILE}\\x1b[2J")
                assert (await Axe().run(page)).response["violations"] == []
