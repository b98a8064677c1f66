"""What a new field of a job takes: the entity, a migration, and the rule that sets it. Nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from submitter import AsyncClient
from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import ROOT, TOKEN, live, submit, wait_for_state

FIELD = """\
    resubmit_of: str | None = shown("""
RULE = """\
        settled_by=brought,
"""
MIGRATION = '''\
"""Jobs have a colour."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("colour", sa.Text()))
'''


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, f"{before!r} stands {text.count(before)} times in {path.name}"
    path.write_text(text.replace(before, after))


async def test_a_new_job_field_takes_three_places(tmp_path: Path) -> None:
    code = tmp_path / "code"
    for package in ("receiver", "submitter"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    change(
        code / "receiver/domain/jobs.py",
        FIELD,
        f'    colour: str | None = shown("What the result mostly is.", default=None)\n{FIELD}',
    )
    change(code / "receiver/domain/lifecycle.py", RULE, f'{RULE}        colour="blue",\n')
    versions = code / "receiver/store/migrations/versions"
    before = max(path.name[:4] for path in versions.glob("0*.py"))
    revision = f"{int(before) + 1:04}"
    (versions / f"{revision}_colour.py").write_text(MIGRATION.format(revision=revision, before=before))

    async with live(tmp_path, environment={"PYTHONPATH": str(code)}) as (receiver, _), receiver.client() as client:
        job = await submit(client, "upscayl", picture_bytes(80, 60))
        assert job["colour"] is None
        shown = await wait_for_state(client, job["id"], "succeeded")
        assert shown["colour"] == "blue"
        listed = (await client.get("/v1/jobs")).json()["items"]
        assert [item["colour"] for item in listed] == ["blue"]
        events = (await client.get("/v1/events", params={"type": "job.succeeded"})).json()["items"]
        assert [event["data"]["colour"] for event in events] == ["blue"]
        described = (await client.get("/openapi.json")).json()["components"]["schemas"]["Job"]
        assert described["properties"]["colour"] == {
            "type": ["string", "null"],
            "description": "What the result mostly is.",
        }
        assert "colour" in described["required"]
        async with AsyncClient(receiver.url, TOKEN) as sdk:
            assert (await sdk.job(job["id"]))["colour"] == "blue"
