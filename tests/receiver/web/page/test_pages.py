"""The contents and actions of the pages, without a browser."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from receiver.web.page.formatting import result_name
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import Failure, State
from tests.support import forking
from tests.support.cli import bare_environment
from tests.support.pages import FIREFOX, PAGES, TOKEN, Browser, form_token_of, signed_in
from tests.support.rows import execute
from tests.support.running_receiver import RunningReceiver, running_receiver
from tests.support.waiting import patiently

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"


_FOR_PROGRAMS = re.compile(r"\b(?:None|null|undefined|nan|True|False|1 tries)\b|\d{4}-\d\d-\d\dT|\{\{")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[RunningReceiver]:
    async with running_receiver(tmp_path) as receiver:
        yield receiver


def badge_of(page: httpx.Response) -> str:
    found = re.search(r'<div class="summary".*?</svg>([a-z]+)</span>', page.text, re.S)
    assert found is not None
    return found[1]


async def test_every_page_has_the_navigation_and_a_heading_of_its_own(here: RunningReceiver) -> None:
    job = await here.job()
    async with signed_in(here) as browser:
        for path in (*PAGES, f"/jobs/{job.id}"):
            page = await browser.get(path)
            assert page.status_code == 200, path
            nav = page.text.partition("<nav")[2].partition("</nav>")[0]
            names = re.findall(r"</svg>(\w+)</a>", nav)
            assert names == ["Overview", "Jobs", "Deliveries", "Endpoints", "Providers", "Send"], path
            assert page.text.count("<h1") == 1, path
            assert re.search(r"<button[^>]*>Sign out</button>", page.text), path


async def test_a_picture_is_sent_by_the_form_and_only_once(here: RunningReceiver) -> None:
    async with signed_in(here) as browser:
        form = await browser.get("/send?provider=novita")
        assert 'name="novita.scale_factor"' in form.text
        key = re.search(r'name="key" value="([^"]+)"', form.text)
        assert key is not None
        fields = {
            "form_token": form_token_of(form),
            "key": key[1],
            "provider": "novita",
            "novita.scale_factor": "3",
            "freepik.scale_factor": '"2x"',
        }
        places = set()
        for _ in range(2):
            files = {"image": ("harbour at dusk.png", picture_bytes(64, 64), "image/png")}
            answer = await browser.post("/send", data=fields, files=files)
            assert answer.status_code == 303, answer.text
            assert answer.next_request is not None
            places.add(answer.next_request.url.path)
        (place,) = places
        page = await browser.get(place)
        assert '<h1 class="file">harbour at dusk.png</h1>' in page.text
        job = await here.client.get(f"/v1{place}")
        assert job.json()["options"] == {"scale_factor": 3}
        assert job.json()["input"]["file_name"] == "harbour at dusk.png"
        before = await browser.get(f"{place}/input")
        assert (before.status_code, before.content) == (200, picture_bytes(64, 64))


async def test_the_command_of_an_empty_page_is_one_that_can_be_typed(here: RunningReceiver, tmp_path: Path) -> None:
    async with signed_in(here) as browser:
        for path in ("/", "/jobs"):
            found = re.search(r"<pre><code>(submitter [^<]+)</code></pre>", (await browser.get(path)).text)
            assert found is not None, path
            _, *arguments = shlex.split(found[1])
            done = forking.run("submitter", *arguments, environment=bare_environment(), directory=tmp_path)
            _, _, said = await patiently(done)
            assert said == b"submitter: picture.jpg is not a file\n", found[1]


@pytest.mark.parametrize("public_url", [None, "https://hooks.example.com"])
async def test_the_form_says_before_which_provider_takes_no_file_here(tmp_path: Path, public_url: str | None) -> None:
    async with running_receiver(tmp_path, public_url=public_url) as receiver, signed_in(receiver) as browser:
        for provider, takes in (("apixo", public_url is not None), ("novita", True)):
            form = (await browser.get(f"/send?provider={provider}")).text
            assert ("takes images by URL only" in form) is not takes, provider


async def test_what_can_not_be_sent_is_said_beside_the_form(here: RunningReceiver) -> None:
    async with signed_in(here) as browser:
        form_token = form_token_of(await browser.get("/send"))
        picture = ("in.png", picture_bytes(64, 64), "image/png")
        for fields, image, said in (
            ({"provider": "novita", "novita.scale_factor": "9"}, picture, "scale_factor"),
            ({"provider": "novita", "novita.scale_factor": "x"}, picture, "not a number"),
            ({"provider": "novita", "novita.passthrough": "{"}, picture, "not JSON"),
            ({"provider": "novita"}, ("in.txt", b"text", "text/plain"), "JPEG, PNG"),
            ({"provider": "none"}, picture, "provider"),
            ({"provider": "novita"}, ("", b"", "image/png"), "no image was chosen"),
        ):
            answer = await browser.post("/send", data={**fields, "form_token": form_token}, files={"image": image})
            assert answer.status_code == 422, (fields, answer.text)
            alert = answer.text.partition('role="alert">')[2].partition("</p>")[0]
            assert said.lower() in alert.lower(), (fields, alert)
            assert alert.lower().count("send a jpeg") == (1 if "jpeg" in said.lower() else 0)
        assert (await here.client.get("/v1/jobs")).json()["items"] == []


async def test_buttons_of_a_job_apply_to_its_state(here: RunningReceiver) -> None:
    expected = {
        State.QUEUED: {"cancel"},
        State.RUNNING: {"poll", "cancel"},
        State.FAILED: {"resubmit"},
        State.UNCONFIRMED: {"poll", "cancel", "resubmit"},
        State.CANCELED: {"resubmit"},
    }
    async with signed_in(here) as browser:
        for state, actions in expected.items():
            job = await here.job("novita", state)
            page = await browser.get(f"/jobs/{job.id}")
            forms = re.findall(rf'action="\.\./jobs/{job.id}/(\w+)"', page.text)
            assert set(forms) == actions, state
            assert ("pay twice" in page.text) == (state is State.UNCONFIRMED)


async def test_a_page_is_inert_whatever_a_job_holds(here: RunningReceiver) -> None:
    job = await here.job(
        state=State.FAILED,
        metadata={HOSTILE: HOSTILE},
        options={"prompt": HOSTILE},
        error=Failure(HOSTILE, HOSTILE, False),
        last_error=HOSTILE,
        remote_id=HOSTILE,
    )
    await here.write_events(job, HOSTILE)
    await here.read()
    async with signed_in(here) as browser:
        for path in ("/", f"/jobs/{job.id}", "/jobs", f"/jobs?q={HOSTILE}&state=failed", f"/deliveries?job={HOSTILE}"):
            page = await browser.get(path)
            assert page.status_code in (200, 422), path
            assert "<script>" not in page.text and "<img src=x" not in page.text, path


async def test_a_job_says_what_holds_in_its_state_and_nothing_else(here: RunningReceiver) -> None:
    lost = Failure("answer_lost", "the answer was lost", False)
    async with signed_in(here) as browser:
        for state, said, unsaid in (
            (State.QUEUED, (">created<",), (">sent<", ">ended<", ">expires<", "provider’s id")),
            (State.RUNNING, (">sent<", ">expires<", "provider’s id"), (">ended<",)),
            (State.FAILED, (">ended<", "another try may help", 'class="notice bad"'), (">expires<",)),
            (State.UNCONFIRMED, ('class="notice warn"', "pay twice"), ("another try may help", ">ended<")),
        ):
            error = lost if state in (State.FAILED, State.UNCONFIRMED) else None
            remote_id = None if state is State.QUEUED else "task-1" + state
            job = await here.job("novita", state, error=error, remote_id=remote_id)
            page = await browser.get(f"/jobs/{job.id}")
            assert [words for words in said if words not in page.text] == [], state
            assert [words for words in unsaid if words in page.text] == [], state


@pytest.mark.parametrize(
    ("file_name", "content_type", "saved_as"),
    [("a b.jpeg", "image/png", "a b.png"), (None, "image/webp", "job_.webp"), ("../x/y.png", "image/jpeg", "y.jpg")],
)
def test_a_result_is_saved_under_the_name_of_its_input_and_the_ending_of_its_type(
    file_name: str | None, content_type: str, saved_as: str
) -> None:
    job = {"id": "job_", "input": {"file_name": file_name}, "images": [{"content_type": content_type}]}
    assert result_name(job, 0) == saved_as


async def test_no_page_shows_a_value_that_only_programs_read(here: RunningReceiver) -> None:
    """Jobs of every state with nothing that may be unknown, and images of which nothing is known."""
    nothing: dict[str, Any] = {"remote_id": None, "sent_at": None, "deadline_at": None, "next_poll_at": None}
    paths = [*PAGES, "/?span=month", "/jobs?q=nothing-has-this", "/deliveries?state=given_up", "/nothing"]
    for state in State:
        job = await here.job("novita", state, **nothing, tries=3)
        paths += [f"/jobs/{job.id}", f"/compare?job={job.id}"]
        for n, image in enumerate(("wanted", "lost", "removed") if state is State.SUCCEEDED else ()):
            row = {"job_id": job.id, "n": n, "state": image, "tries": 1, "next_at": 2**53, "give_up_at": 2**53}
            statement = f"INSERT INTO images ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
            await execute(here.receiver.parts.database, statement, *row.values())
    async with signed_in(here) as browser:
        browser.headers["accept"] = FIREFOX
        for path in paths:
            page = (await browser.get(path)).text
            text = html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(pre|head|textarea)\b.*?</\1>", " ", page)))
            raw = re.findall(
                r"\b(?:None|null|undefined|nan|True|False)\b|\d{4}-\d\d-\d\dT[\d:.]*|\{\{|\b1 tries\b", text
            )
            assert raw == [], (path, raw)
            assert not re.search(
                r"<(td|dd|th|h[1-3])\b[^>]*>\s*</\1>", page.replace('<th scope="col" class="pic"></th>', "")
            ), path


async def test_bulk_actions_count_first_and_then_do_it(here: RunningReceiver) -> None:
    queued = [await here.job("novita", State.QUEUED, metadata={"batch": "b-7"}) for _ in range(3)]
    other = await here.job("novita", State.QUEUED)
    running = await here.job("novita", State.RUNNING, metadata={"batch": "b-7"})
    async with signed_in(here) as browser:
        asked = {"form_token": form_token_of(await browser.get("/")), "action": "cancel", "q": "B-7"}
        page = await browser.post("/jobs/bulk", data=asked)
        assert "Cancel: 3 jobs" in page.text
        assert {(await here.now(job)).state for job in queued} == {State.QUEUED}
        before = re.search(r'name="before" value="([^"]+)"', page.text)
        assert before is not None
        later = await here.job("novita", State.QUEUED, metadata={"batch": "b-7"})
        answer = await browser.post("/jobs/bulk", data={**asked, "confirmed": "true", "before": before[1]})
        assert answer.next_request is not None
        assert "3 jobs canceled" in (await browser.send(answer.next_request)).text
        assert {(await here.now(job)).state for job in queued} == {State.CANCELED}
        assert {(await here.now(job)).state for job in (other, later)} == {State.QUEUED}
        assert (await here.now(running)).state is State.RUNNING


async def test_pages_work_below_any_prefix(here: RunningReceiver) -> None:
    job = await here.job("novita", State.QUEUED)
    hosts = Starlette(routes=[Mount("/tools/upscaling", app=here.receiver.app)])
    async with Browser(hosts) as browser:
        answer = await browser.get(f"/tools/upscaling/jobs/{job.id}", follow_redirects=True)
        assert answer.url.path == "/tools/upscaling/login"
        answer = await browser.post("/tools/upscaling/login", data={"token": TOKEN, "next": f"jobs/{job.id}"})
        assert "Path=/tools/upscaling;" in answer.headers["set-cookie"]
        page = await browser.get(f"/tools/upscaling/jobs/{job.id}")
        assert page.status_code == 200
        assert re.findall(r'(?:href|src|action)="/', page.text) == []
        for link in set(re.findall(r'(?:href|src)="([^"#]+)"', page.text)):
            found = await browser.get(page.url.join(html.unescape(link)))
            assert found.status_code == 200 or link.endswith("/input"), link
        answer = await browser.post(
            str(page.url.join(f"../jobs/{job.id}/cancel")), data={"form_token": form_token_of(page)}
        )
        assert answer.next_request is not None
        assert answer.next_request.url.path == f"/tools/upscaling/jobs/{job.id}"
    assert (await here.now(job)).state is State.CANCELED


async def test_the_cookie_is_for_the_path_of_the_public_url(tmp_path: Path) -> None:
    async with (
        running_receiver(tmp_path, public_url="https://hooks.example.com/tools") as here,
        Browser(here.receiver.app) as browser,
    ):
        answer = await browser.post("/login", data={"token": TOKEN})
        assert "Path=/tools;" in answer.headers["set-cookie"]
        answer = await browser.post("/login", data={"token": TOKEN}, headers={"host": "127.0.0.1:8000"})
        assert "Path=/;" in answer.headers["set-cookie"]


async def test_fragments_are_shared_and_their_form_tokens_are_not(here: RunningReceiver) -> None:
    job = await here.job("novita", State.QUEUED)
    path = f"/jobs/{job.id}?fragment=live_main"
    async with signed_in(here) as this, signed_in(here) as other:
        fragments = [await browser.get(path) for browser in (this, other)]
        tokens = [form_token_of(fragment) for fragment in fragments]
        assert tokens[0] != tokens[1]
        assert tokens == [form_token_of(await browser.get("/")) for browser in (this, other)]
        assert "<html" not in fragments[0].text
        for browser, token in zip((this, other), reversed(tokens), strict=True):
            answer = await browser.post(f"/jobs/{job.id}/cancel", data={"form_token": token})
            assert answer.status_code == 403
        for wrong in ("main", "title", "live_none", "base.html"):
            assert (await this.get(f"/jobs?fragment={wrong}")).status_code == 404
        assert badge_of(fragments[0]) == "queued"


async def test_a_fragment_shows_what_a_form_has_just_changed(here: RunningReceiver) -> None:
    async with signed_in(here) as browser:
        page = await browser.get("/endpoints")
        assert "No endpoints" in (await browser.get("/endpoints?fragment=live_list")).text
        asked = {"form_token": form_token_of(page), "url": "https://shop.example.com/new"}
        assert "whsec_" in (await browser.post("/endpoints", data=asked)).text
        assert "shop.example.com/new" in (await browser.get("/endpoints?fragment=live_list")).text


async def test_an_endpoint_is_made_tested_and_its_secret_shown_once(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, allow_networks="127.0.0.0/8") as here, signed_in(here) as browser:
        form_token = form_token_of(await browser.get("/endpoints"))
        asked = {"form_token": form_token, "url": "http://127.0.0.1:8999/hooks", "event_types": ["job.failed"]}
        made = await browser.post("/endpoints", data={**asked, "timeout_seconds": "5", "concurrency": "2"})
        assert made.status_code == 200, made.text.partition('role="alert"')[2][:300]
        assert re.search(r'<code id="secret">whsec_[^<]{20,}</code>', made.text)
        (endpoint,) = (await here.client.get("/v1/endpoints")).json()["items"]
        assert (endpoint["event_types"], endpoint["timeout_seconds"], endpoint["concurrency"]) == (["job.failed"], 5, 2)
        assert "whsec_" not in (await browser.get("/endpoints")).text
        path = f"/endpoints/{endpoint['id']}"
        rotated = await browser.post(f"{path}/rotate-secret", data={"form_token": form_token})
        assert "whsec_" in rotated.text
        for action in ("disable", "enable", "test"):
            assert (await browser.post(f"{path}/{action}", data={"form_token": form_token})).status_code == 303
        wrong = await browser.post(
            path, data={"form_token": form_token, "url": "http://192.0.2.1/", "concurrency": "x"}
        )
        assert wrong.status_code == 422 and 'role="alert"' in wrong.text
        assert (await browser.post(f"{path}/remove", data={"form_token": form_token})).status_code == 303
        assert (await here.client.get("/v1/endpoints")).json()["items"] == []


async def test_an_address_says_what_was_done_in_words_of_ours_only(here: RunningReceiver) -> None:
    job = await here.job()
    async with signed_in(here) as browser:
        for path in ("/jobs", "/deliveries", "/endpoints", "/providers", f"/jobs/{job.id}", f"/compare?job={job.id}"):
            for done in ("Call+0800", "poll+Call", "__class__", ""):
                address = f"{path}{'&' if '?' in path else '?'}done={done}&count=Call+0800&refused=Call:0800&more=Call"
                page = await browser.get(address)
                assert (page.status_code, 'role="status"' in page.text) == (200, False), address
        page = await browser.get("/jobs?done=bulk-cancel&count=Call+0800&refused=Call+0800:12&refused=already_sent:3")
        said = re.search(r'role="status">([^<]*)<', page.text)
        assert said is not None
        assert said[1] == "0 jobs canceled; 12 left out: refused; 3 left out: sent already."


async def test_a_bulk_action_says_how_many_there_were(here: RunningReceiver) -> None:
    for _ in range(3):
        await here.job(state=State.QUEUED)
    async with signed_in(here) as browser:
        asked = {"form_token": form_token_of(await browser.get("/jobs")), "action": "cancel", "state": "queued"}
        question = await browser.post("/jobs/bulk", data=asked)
        before = re.search(r'name="before" value="([^"]+)"', question.text)
        assert before is not None
        answer = await browser.post("/jobs/bulk", data={**asked, "before": before[1], "confirmed": "true"})
        assert answer.headers["location"] == "../jobs?state=queued&done=bulk-cancel&count=3"
        assert "3 jobs canceled." in (await browser.get("/jobs?state=queued&done=bulk-cancel&count=3")).text


async def test_a_replay_of_many_is_counted_and_asked_about_first(here: RunningReceiver) -> None:
    made = await here.client.post("/v1/endpoints", json={"url": "https://hooks.example.com/a"})
    async with signed_in(here) as browser:
        form_token = form_token_of(await browser.get("/deliveries"))
        for asked in (
            {},
            {"since": "2026-01-31T12:00"},
            {"endpoint": made.json()["id"]},
            {"endpoint": made.json()["id"], "since": "2026-01-31"},
        ):
            question = await browser.post("/deliveries/replay", data={"form_token": form_token, **asked})
            assert (question.status_code, "Replay 0 deliveries" in question.text) == (200, True), asked
            confirmed = {"form_token": form_token, **asked, "confirmed": "true"}
            answer = await browser.post("/deliveries/replay", data=confirmed)
            assert answer.headers["location"] == "../deliveries?done=replay-many&count=0", asked


@pytest.mark.sqlite(reason="a table that is missing stands for a broken file; PostgreSQL fails otherwise")
@pytest.mark.parametrize("table", ["jobs", "spent_tokens"])
async def test_a_database_that_fails_is_a_page_that_says_so(here: RunningReceiver, table: str) -> None:
    async with signed_in(here) as browser:
        await execute(here.receiver.parts.database, f"DROP TABLE {table}")
        for path in ("/", "/jobs", "/jobs?fragment=live_rows"):
            page = await browser.get(path)
            assert (page.status_code, page.headers["retry-after"]) == (503, "5"), path
            assert "<h1>Something went wrong on our side</h1>" in page.text, path
