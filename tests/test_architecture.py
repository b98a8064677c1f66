"""The promises that hold between rooms."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each package reads it in one place, so that every name is documented and none is read twice. The client's place is a
# module and not its commands, because the SDK finds its receiver the same way without them.
ENVIRONMENT_READERS = {"receiver/settings.py", "submitter/environment.py"}


def test_only_two_files_read_the_environment() -> None:
    readers = set()
    for path in [*(ROOT / "receiver").rglob("*.py"), *(ROOT / "submitter").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {
                isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"),
                isinstance(node, ast.Name) and node.id in ("environ", "getenv", "BaseSettings"),
                isinstance(node, ast.keyword) and node.arg == "envvar",
            }
            if any(names):
                readers.add(path.relative_to(ROOT).as_posix())
    assert readers == ENVIRONMENT_READERS


def test_a_provider_is_one_file_a_line_and_its_stand_in() -> None:
    """Nothing else in the two packages knows a provider's protocol: its paths and its words."""
    protocols = ("generateTask", "start-task", "async/upscale", "ai/image-upscaler", "/v1/upscale")
    for path in [*(ROOT / "receiver").rglob("*.py"), *(ROOT / "submitter").rglob("*.py")]:
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(("submitter/providers/", "submitter/sandbox/")):
            continue
        text = path.read_text()
        assert [sender for sender in protocols if sender in text] == [], place


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_top_level_holds_what_it_should() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.partition("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} == {
        "pyproject.toml",
        "README.md",
        "receiver",
        "submitter",
        "tests",
        "deploy",
    }


_SQL = re.compile(r"\b(SELECT\s.+\sFROM|INSERT INTO|UPDATE\s\w+\sSET|DELETE FROM)\s", re.DOTALL)
_DRIVERS = {"sqlite3", "sqlalchemy", "alembic", "asyncpg", "aiosqlite"}


def test_only_the_store_knows_sql_and_drivers() -> None:
    found = []
    for path in [*(ROOT / "receiver").rglob("*.py"), *(ROOT / "submitter").rglob("*.py")]:
        place = path.relative_to(ROOT).as_posix()
        if place.startswith("receiver/store/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SQL.search(node.value):
                found.append((place, node.lineno, node.value))
            if isinstance(node, ast.Import | ast.ImportFrom):
                from_module = node.module if isinstance(node, ast.ImportFrom) else None
                modules = [from_module] if from_module else [alias.name for alias in node.names]
                found += [(place, node.lineno, module) for module in modules if module.partition(".")[0] in _DRIVERS]
    assert found == []


def test_migrations_follow_each_other_in_one_line() -> None:
    revisions = [
        re.findall(r'^(?:down_)?revision = "?(\w+)"?$', path.read_text(), re.MULTILINE)
        for path in sorted((ROOT / "receiver/store/migrations/versions").glob("0*.py"))
    ]
    assert revisions == [[f"{n + 1:04}", f"{n:04}" if n else "None"] for n in range(len(revisions))]
