"""The next release of the receiver, made from this one: jobs get a field."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.processes import ROOT

_FIELD = """\
    resubmit_of: str | None = shown("""
_RULE = """\
        settled_by=brought,
"""
_MIGRATION = '''\
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


def next_release(code: Path) -> Path:
    """Write both packages to *code*, with a field `colour` that is "blue" once a job is settled. Returns *code*."""
    for package in ("receiver", "submitter"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    _change(
        code / "receiver/domain/jobs.py",
        _FIELD,
        f'    colour: str | None = shown("What the result mostly is.", default=None)\n{_FIELD}',
    )
    _change(code / "receiver/domain/lifecycle.py", _RULE, f'{_RULE}        colour="blue",\n')
    versions = code / "receiver/store/migrations/versions"
    before = max(path.name[:4] for path in versions.glob("0*.py"))
    revision = f"{int(before) + 1:04}"
    (versions / f"{revision}_colour.py").write_text(_MIGRATION.format(revision=revision, before=before))
    return code


def _change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, f"{before!r} stands {text.count(before)} times in {path.name}"
    path.write_text(text.replace(before, after))
