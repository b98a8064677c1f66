"""The SDK's calls, driven by hand: what is retried, for how long, and what each refusal becomes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from submitter.errors import (
    Conflict,
    Invalid,
    JobFailed,
    NoReceiver,
    NotFound,
    Overloaded,
    RequestRefused,
    Unauthorized,
)
from submitter.sdk import administration, events, jobs
from submitter.sdk.steps import Body
from tests.support.driving import ByHand, answer, frame, streamed

CUT = httpx.ReadError("cut")
AWAY = httpx.ConnectError("nobody listens")
JOB = {"id": "job_1", "provider": "freepik", "state": "running", "created_at": "2026-01-01T00:00:00.000Z"}
DONE: dict[str, Any] = {
    **JOB,
    "state": "succeeded",
    "images": [{"url": "http://receiver.test/0", "kept": True, "state": "kept"}],
}


def submit(by_hand: ByHand, **more: Any) -> Any:
    given = {"options": None, "metadata": None, "notify_url": None, "idempotency_key": None, "timeout": None, **more}
    return jobs.submit(by_hand.link(), "freepik", b"picture", **given)


def test_a_submit_outlasts_a_receiver_that_is_away_for_15_seconds_with_one_key() -> None:
    by_hand = ByHand([AWAY, AWAY, AWAY, CUT, answer(502), answer(503, {"code": "unavailable"}), answer(202, JOB)])
    assert by_hand.drive(submit(by_hand)).id == "job_1"
    assert len({request.headers["idempotency-key"] for request in by_hand.requests}) == 1
    away = ByHand([AWAY])
    with pytest.raises(NoReceiver, match="is it running") as gone:
        away.drive(submit(away))
    assert (gone.value.code, 50 < away.now <= 60) == ("no_answer", True)
    assert max(away.sleeps) <= 2.0
    assert "trying again" in away.messages[0]


def test_a_call_has_its_own_time_and_no_try_waits_longer_than_it() -> None:
    by_hand = ByHand([AWAY])
    with pytest.raises(NoReceiver):
        by_hand.drive(submit(by_hand, timeout=2.0))
    assert by_hand.now < 2.0
    assert all(request.extensions["timeout"]["read"] <= 2.0 for request in by_hand.requests)


def test_a_wish_to_come_again_is_followed_and_an_end_of_patience_is_overloaded() -> None:
    by_hand = ByHand([answer(429, {"code": "slow_down"}, retry_after="7"), answer(202, JOB)])
    by_hand.drive(submit(by_hand))
    assert by_hand.sleeps == [7.0]
    busy = ByHand(
        [answer(503, {"code": "unavailable", "remedy": "come again"}, retry_after="20", x_request_id="req_1")]
    )
    with pytest.raises(Overloaded) as refused:
        busy.drive(submit(busy))
    assert (refused.value.retry_after_seconds, refused.value.request_id) == (20.0, "req_1")
    assert len(busy.requests) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid),
        (401, Unauthorized),
        (403, Unauthorized),
        (404, NotFound),
        (409, Conflict),
        (413, Invalid),
        (422, Invalid),
    ],
)
def test_a_refusal_is_final_and_carries_code_field_remedy_and_request_id(
    status: int, kind: type[RequestRefused]
) -> None:
    problem = {"code": "some_code", "detail": "so it is", "field": "image", "remedy": "change it"}
    by_hand = ByHand([answer(status, problem, x_request_id="req_9")])
    with pytest.raises(kind) as refused:
        by_hand.drive(submit(by_hand))
    error = refused.value
    assert type(error) is kind
    assert (error.code, error.field, error.remedy, error.request_id, error.status) == (
        "some_code",
        "image",
        "change it",
        "req_9",
        status,
    )
    assert str(error) == "so it is (some_code); change it"
    assert len(by_hand.requests) == 1


@pytest.mark.parametrize("other", [answer(404), answer(301, location="https://elsewhere"), answer(200, [1])])
def test_what_answers_like_another_server_is_no_receiver(other: httpx.Response) -> None:
    by_hand = ByHand([other])
    with pytest.raises(NoReceiver, match="is not a receiver"):
        by_hand.drive(jobs.job(by_hand.link(), "job_1"))


def test_answers_come_uncompressed_because_a_compressed_one_could_swell() -> None:
    by_hand = ByHand([answer(200, JOB)])
    by_hand.drive(jobs.job(by_hand.link(), "job_1"))
    assert by_hand.requests[0].headers["accept-encoding"] == "identity"
    with pytest.raises(httpx.DecodingError, match="not asked for"):
        Body(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"")))
    long = Body(httpx.Response(200))
    with pytest.raises(httpx.RemoteProtocolError, match="longer"):
        for _ in range(65):
            long.add(bytes(1 << 20))


def test_what_would_happen_twice_is_not_repeated_once_it_may_have_arrived() -> None:
    endpoint = {"id": "ep_1", "url": "https://a.example"}

    def create(by_hand: ByHand) -> Any:
        return administration.create_endpoint(
            by_hand.link(), "https://a.example", secret=None, settings={}, timeout=None
        )

    refused = ByHand([AWAY, answer(503, {"code": "unavailable"}), answer(201, endpoint)])
    assert refused.drive(create(refused)).id == "ep_1"
    for lost in (CUT, answer(502)):
        by_hand = ByHand([lost, answer(201, endpoint)])
        with pytest.raises(NoReceiver):
            by_hand.drive(create(by_hand))
        assert len(by_hand.requests) == 1


def test_a_cancel_or_delete_whose_answer_was_lost_is_recognized_as_done() -> None:
    by_hand = ByHand([CUT, answer(409, {"code": "already_ended"}), answer(200, {**JOB, "state": "canceled"})])
    assert by_hand.drive(jobs.cancel(by_hand.link(), "job_1", abandon=False, timeout=None)).state == "canceled"
    at_once = ByHand([answer(409, {"code": "already_ended"})])
    with pytest.raises(Conflict):
        at_once.drive(jobs.cancel(at_once.link(), "job_1", abandon=False, timeout=None))
    gone = ByHand([CUT, answer(404, {"code": "no_such_endpoint"})])
    gone.drive(administration.delete_endpoint(gone.link(), "ep_1", timeout=None))


def test_ids_can_not_leave_their_path_and_unusable_keys_and_tokens_are_refused_here() -> None:
    by_hand = ByHand([answer(404, {"code": "no_such_job"})])
    with pytest.raises(NotFound):
        by_hand.drive(jobs.job(by_hand.link(), "../providers?x=1"))
    assert by_hand.requests[0].url.raw_path == b"/v1/jobs/..%2Fproviders%3Fx%3D1"
    with pytest.raises(Invalid) as refused:
        by_hand.drive(submit(by_hand, idempotency_key="schlüssel"))
    assert refused.value.field == "Idempotency-Key"


def test_all_pages_are_read_and_filters_without_a_value_are_left_out() -> None:
    pages = [answer(200, {"items": [{**JOB, "id": f"job_{n}"}], "next": str(n) if n < 3 else None}) for n in (1, 2, 3)]
    by_hand = ByHand(pages)
    by_hand.drive(
        jobs.jobs(
            by_hand.link(), state=["failed", "expired"], provider=(), since=None, until=None, q=None, timeout=None
        )
    )
    assert [job.id for job in by_hand.emitted] == ["job_1", "job_2", "job_3"]
    queries = [dict(request.url.params) for request in by_hand.requests]
    assert queries == [
        {"state": "failed,expired"},
        {"state": "failed,expired", "cursor": "1"},
        {"state": "failed,expired", "cursor": "2"},
    ]


# --- Waiting and saving ---------------------------------------------------------------------------------------------


def test_wait_ends_as_soon_as_the_stream_says_something() -> None:
    by_hand = ByHand([answer(200, JOB), answer(200, JOB), answer(200, DONE)], [streamed(b": events\n\n", frame(1))])
    assert by_hand.drive(jobs.wait(by_hand.link(), "job_1", timeout=None)).succeeded
    assert (by_hand.now, by_hand.open) == (0.0, 0)


@pytest.mark.parametrize("stream", [AWAY, streamed(), streamed(CUT), streamed(httpx.ReadTimeout("silence"))])
def test_wait_without_a_stream_that_flows_asks_now_and_then(stream: Any) -> None:
    by_hand = ByHand([answer(200, JOB)] * 20 + [answer(200, DONE)], [stream])
    assert by_hand.drive(jobs.wait(by_hand.link(), "job_1", timeout=None)).succeeded
    assert 5 < by_hand.now < 200
    assert by_hand.open == 0


def test_wait_survives_twenty_absences_of_15_seconds() -> None:
    by_hand = ByHand([])
    flowing = streamed(b": events\n\n", CUT)

    class Restarting(list[Any]):
        def __len__(self) -> int:
            return 1 << 30

        def __getitem__(self, index: Any) -> Any:
            by_hand.now += 0.5
            if by_hand.now > 20 * 30:
                return answer(200, DONE)
            return AWAY if by_hand.now % 30 > 15 else answer(200, JOB)

    by_hand.answers, by_hand.streams = Restarting(), [flowing]
    assert by_hand.drive(jobs.wait(by_hand.link(), "job_1", timeout=None)).succeeded


def test_wait_gives_up_after_its_time_and_with_the_receiver_after_its() -> None:
    by_hand = ByHand([answer(200, JOB)], [AWAY])
    with pytest.raises(TimeoutError, match="job_1 has not ended in time"):
        by_hand.drive(jobs.wait(by_hand.link(), "job_1", timeout=10.0))
    assert 9.0 < by_hand.now <= 10.5
    away = ByHand([answer(200, JOB), AWAY], [AWAY])
    with pytest.raises(NoReceiver):
        away.drive(jobs.wait(away.link(), "job_1", timeout=None))
    late = ByHand([answer(200, JOB), AWAY], [AWAY])
    with pytest.raises(TimeoutError):
        late.drive(jobs.wait(late.link(), "job_1", timeout=5.0))


def test_a_poll_is_waited_for_and_its_outcome_returned() -> None:
    before = {**JOB, "polled_at": "2026-01-01T00:01:00.000Z", "due_at": "2026-01-01T00:02:00.000Z"}
    after = {**before, "polled_at": "2026-01-01T00:02:00.100Z"}

    def poll(*answers: Any, wait: float = 30.0) -> tuple[Any, ByHand]:
        by_hand = ByHand([answer(202, answers[0]), *(answer(200, job) for job in answers[1:])])
        return by_hand.drive(jobs.poll(by_hand.link(), "job_1", wait=wait, timeout=None)), by_hand

    job, by_hand = poll(before, before, before, {**after, "state": "succeeded", "due_at": None})
    assert (job.state, len(by_hand.requests)) == ("succeeded", 4)
    assert [request.method for request in by_hand.requests] == ["POST", "GET", "GET", "GET"]
    assert poll(before, {**after})[0].state == "running"  # asked, and not finished
    settled = {**before, "state": "succeeded", "due_at": None}
    assert poll(before, settled)[0].state == "succeeded"  # a callback came first: nothing is left to poll
    assert poll(before, wait=0.0)[0].polled_at.minute == 1
    assert poll(JOB)[0].state == "running"  # a receiver that does not tell
    with pytest.raises(TimeoutError, match="job_1 was not polled within 5 s; it stays due"):
        poll(before, before, wait=5.0)


@pytest.mark.parametrize(
    ("ended", "code", "says"),
    [
        (
            {**JOB, "state": "failed", "error": {"code": "nsfw", "message": "no", "permanent": True}},
            "nsfw",
            "failed: no",
        ),
        ({**JOB, "state": "unconfirmed"}, "unconfirmed", "is unconfirmed"),
        (
            {**DONE, "images": [{"url": "u", "kept": False, "state": "lost", "lost_reason": "the link had expired"}]},
            "image_lost",
            "lost: the link had expired; poll",
        ),
    ],
)
def test_save_says_at_once_that_nothing_will_come(ended: Any, code: str, says: str, tmp_path: Path) -> None:
    by_hand = ByHand([answer(200, ended)])
    with pytest.raises(JobFailed, match=says) as failed:
        by_hand.drive(jobs.save(by_hand.link(), "job_1", tmp_path, stem=None, timeout=300.0))
    assert (failed.value.code, failed.value.job.id, by_hand.now) == (code, "job_1", 0.0)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"file_name": "big cat.jpeg"}, "big cat.png"),
        ({"file_name": "../../etc/cron.d/x.png"}, "x.png"),
        ({"file_name": None}, "job_1.png"),
        ({"file_name": "upload"}, "job_1.png"),
        (None, "job_1.png"),
    ],
)
def test_without_a_stem_a_result_is_named_after_the_input(given: Any, name: str, tmp_path: Path) -> None:
    content = b"picture"
    image = {**DONE["images"][0], "content_type": "image/png", "sha256": hashlib.sha256(content).hexdigest()}
    job = {**DONE, "id": "job_1", "input": given, "images": [image]}
    by_hand = ByHand([answer(200, job)], streams=[(httpx.Response(200), [content])])
    assert by_hand.drive(jobs.save(by_hand.link(), "job_1", tmp_path, stem=None, timeout=300.0)) == [tmp_path / name]


def test_results_are_named_after_their_stem_and_never_overwrite_another_file(tmp_path: Path) -> None:
    content = b"picture"
    image = {**DONE["images"][0], "content_type": "image/png", "sha256": hashlib.sha256(content).hexdigest()}

    def save(stem: str, count: int) -> tuple[list[str], int]:
        """The names of the files, and how many images were downloaded."""
        job = {**DONE, "images": [image] * count}
        by_hand = ByHand([answer(200, job)], streams=[(httpx.Response(200), [content])])
        paths = by_hand.drive(jobs.save(by_hand.link(), "job_1", tmp_path, stem=stem, timeout=300.0))
        return [path.name for path in paths], len([r for r in by_hand.requests if "/images/" in r.url.path])

    (tmp_path / "cat-2.png").write_bytes(b"another picture")
    assert save("cat", 1) == (["cat.png"], 1)
    assert save("cat", 2) == (["cat_2-1.png", "cat_2-2.png"], 2)
    assert save("cat", 2) == (["cat_2-1.png", "cat_2-2.png"], 0)
    assert [(tmp_path / f"cat_2-{n}.png").read_bytes() for n in (1, 2)] == [content] * 2
    assert (tmp_path / "cat-2.png").read_bytes() == b"another picture"
    assert len(list(tmp_path.iterdir())) == 4


# --- Events ---------------------------------------------------------------------------------------------------------


def follow(by_hand: ByHand, *, values: int, **more: Any) -> list[int]:
    by_hand.drive(events.events(by_hand.link(), params={}, **{"after": 0, **more}), values=values)
    return [event.position for event in by_hand.emitted]


def test_events_are_seen_once_whatever_is_cut_or_sent_again() -> None:
    whole = frame(3)
    by_hand = ByHand(
        streams=[
            streamed(frame(1), frame(2), whole[:20], CUT),
            AWAY,
            streamed(frame(2), whole[:-1], whole[-1:] + frame(4)),
            streamed(b": heartbeat\r\n\r\n", frame(5).replace(b"\n", b"\r\n"), httpx.ReadTimeout("silence")),
            streamed(b"id: 6\n\nevent: x\n\n", frame(6)),
        ]
    )
    assert follow(by_hand, values=6) == [1, 2, 3, 4, 5, 6]
    assert [request.headers["last-event-id"] for request in by_hand.requests] == ["0", "2", "2", "4", "5"]


def test_a_stream_without_a_position_begins_where_the_receiver_says_even_if_it_is_cut_at_once() -> None:
    by_hand = ByHand(streams=[streamed(CUT, start=41), streamed(frame(42))])
    assert follow(by_hand, values=1, after=None) == [42]
    assert [request.headers.get("last-event-id") for request in by_hand.requests] == [None, "41"]


@pytest.mark.parametrize("named", [{"newest": 9, "resume_after": 5}, {"newest": 5}])
def test_a_position_ahead_of_the_log_goes_on_from_where_nothing_is_missed(named: dict[str, int]) -> None:
    """Older receivers name their newest event alone."""
    problem = {"code": "position_ahead", "detail": "the log ends at 5", **named}
    ahead = httpx.Response(409, content=json.dumps(problem).encode())
    by_hand = ByHand(streams=[(ahead, [json.dumps(problem).encode()]), streamed(frame(6))])
    assert follow(by_hand, values=1, after=900) == [6]
    assert by_hand.messages == ["the log ends at 5; going on from position 5"]
    assert by_hand.requests[1].headers["last-event-id"] == "5"


def test_a_stream_gives_up_at_first_or_when_its_time_is_over_but_not_otherwise() -> None:
    nobody = ByHand(streams=[AWAY])
    with pytest.raises(NoReceiver):
        follow(nobody, values=1)
    assert 55 < nobody.now < 70
    patient = ByHand(streams=[streamed(frame(1))] + [AWAY] * 500 + [streamed(frame(2))])
    assert follow(patient, values=2) == [1, 2]
    assert patient.now > 600
    limited = ByHand(streams=[streamed(frame(1)), AWAY])
    with pytest.raises(NoReceiver):
        follow(limited, values=2, timeout=30.0)
    refused = (httpx.Response(401), [b'{"code": "unauthorized"}'])
    with pytest.raises(Unauthorized):
        follow(ByHand(streams=[refused]), values=1)
