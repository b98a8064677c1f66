"""Query parameters of lists: impossible values are refused, so that nobody takes an empty page for an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from receiver.domain.ids import is_id, new_id
from tests.support.running_receiver import running_receiver


@pytest.mark.parametrize("path", ["jobs", "events"])
async def test_an_unknown_provider_is_refused_with_those_there_are(path: str, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job, other = await here.job(), await here.job("novita")
        refused = await here.client.get(f"/v1/{path}?provider=nope")
        assert refused.status_code == 422
        problem = refused.json()
        assert (problem["code"], problem["field"]) == ("invalid_filter", "provider")
        assert problem["detail"] == "there is no provider 'nope'"
        assert problem["remedy"] == "use freepik, apixo, novita, upscayl, pixelcut"
        for asked, wanted in (("freepik", [job]), ("freepik,novita", [other, job]), ("apixo", []), ("", [other, job])):
            if path == "jobs":
                found = (await here.client.get(f"/v1/jobs?provider={asked}")).json()["items"]
                assert [item["id"] for item in found] == [item.id for item in wanted]


@pytest.mark.parametrize("path", ["jobs", "events", "endpoints", "deliveries", "jobs/{id}/evidence"])
async def test_a_cursor_that_no_page_gave_is_refused_everywhere(path: str, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        path = path.format(id=(await here.job()).id)
        for cursor in ("zzz", "job_", "ep_1", "' OR 1=1", "\x00", "dlv_" + "u" * 26):
            answer = await here.client.get(f"/v1/{path}", params={"cursor": cursor})
            assert answer.status_code == 422, cursor
            assert (answer.json()["code"], answer.json()["field"]) == ("invalid_cursor", "cursor")
        assert (await here.client.get(f"/v1/{path}?cursor=")).status_code == 200


async def test_the_cursor_of_a_page_leads_to_the_next(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        wanted = [(await here.job()).id for _ in range(3)][::-1]
        first = (await here.client.get("/v1/jobs?limit=2")).json()
        second = (await here.client.get(f"/v1/jobs?limit=2&cursor={first['next']}")).json()
        assert [item["id"] for page in (first, second) for item in page["items"]] == wanted
        assert second["next"] is None


def test_an_id_is_known_by_its_prefix_and_alphabet() -> None:
    made = new_id("job")
    assert is_id("job", made)
    for other in ("", "job", "job_", made[:-1], made + "0", made.upper(), made.replace("job", "ep"), made[:-1] + "u"):
        assert not is_id("job", other)
