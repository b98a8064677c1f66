"""The promises that hold between rooms."""

import ast
import functools
import graphlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("architecture")  # one process parses all modules once
ROOT = Path(__file__).parent.parent
# Each package reads it in one place, so that every name is documented and none is read twice. The client's place is a
# module and not its commands, because the SDK finds its receiver the same way without them.
ENVIRONMENT_READERS = {"receiver/settings.py", "submitter/environment.py"}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_only_two_files_read_the_environment() -> None:
    readers = set()
    for path in [*(ROOT / "receiver").rglob("*.py"), *(ROOT / "submitter").rglob("*.py")]:
        for node in ast.walk(parsed(path)):
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
        for node in ast.walk(parsed(path)):
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


# --- Shape ----------------------------------------------------------------------------------------------------------

MOST_FLAT_MODULES = 4
MOST_PARAMETERS = 8
MOST_LINES = 80
EXCEPTIONS = {
    "submitter.sandbox.app.Sandbox": "settings with defaults, given by name",
    "receiver.store.migrations.versions.0001_first.upgrade": "the first schema",
}


def modules() -> dict[str, Path]:
    """The modules of both packages by name; a package is its `__init__`."""
    paths = [*(ROOT / "receiver").rglob("*.py"), *(ROOT / "submitter").rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted(paths)
    }


def definitions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for name, path in modules().items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield f"{name}.{node.name}", node


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Neither inside functions nor under TYPE_CHECKING: what needs each other belongs together, or apart."""
    known = modules()
    imports: dict[str, set[str]] = {}
    for name, path in known.items():
        found = imports[name] = set[str]()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {module if module in known else node.module for module in below}
    graph = {name: (found & known.keys()) - {name} for name, found in imports.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as exc:
        pytest.fail(" imports ".join(reversed(exc.args[1])))


def test_the_receiver_has_few_flat_modules() -> None:
    flat = [path.name for path in (ROOT / "receiver").glob("*.py") if not path.name.startswith("__")]
    assert len(flat) <= MOST_FLAT_MODULES, flat


def test_no_constructor_takes_more_than_it_can_name() -> None:
    """Of handlers, loops and whatever else is built from parts. Values have as many fields as they have."""
    long = []
    for name, node in definitions():
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    parameters = [*method.args.posonlyargs, *method.args.args[1:], *method.args.kwonlyargs]
                    long += [(name, len(parameters))] if len(parameters) > MOST_PARAMETERS else []
            if node.name.endswith("Api"):
                fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
                long += [(name, len(fields))] if len(fields) > MOST_PARAMETERS else []
    assert [(name, count) for name, count in long if name not in EXCEPTIONS] == []


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = {
        name: (node.end_lineno or 0) - node.lineno + 1
        for name, node in definitions()
        if not isinstance(node, ast.ClassDef)
    }
    assert [name for name, length in lengths.items() if length > MOST_LINES and name not in EXCEPTIONS] == []


# --- Words ----------------------------------------------------------------------------------------------------------

OLD_WORDS = (
    r"look_at",
    r"looked_at",
    r"next_look\w*",
    r"looks_made",
    r"/look\b",
    *("happenings?", "telling", "told", "tell_in", "glance", r"rehears\w+", "leash", "doorway", "reckoning", "crew"),
    *("write_raw", "on_its_thread", "on_free", "news", "trouble", "sentences", "the house", "the way of a job"),
    *(r"asks\.Ask", r"asked\.py", "HttpSenders", "CallingWire", "leaves the house", "at the door"),
    *(
        "by the way",
        "come again",
        "let go of",
        "next life",
        "is no moment",
        "taken to live",
        "worth nothing",
        "of ours",
    ),
    *("whom", "how-manyth"),
)
"""Regular expressions for names that were replaced by the standard ones of the field; any case. `_` parts words."""


def test_the_old_words_are_gone() -> None:
    """From code, help, messages, logs and the README. A migration names the columns that it renames."""
    pattern = re.compile("|".join(rf"(?<![^\W_])(?:{word})(?![^\W_])" for word in OLD_WORDS), re.IGNORECASE)
    paths = [*modules().values(), ROOT / "README.md"]
    found = [
        (path.relative_to(ROOT).as_posix(), number, match.group())
        for path in paths
        if "migrations" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in pattern.finditer(line)
    ]
    assert found == []


NO_BEGINNING = re.compile(r"(?:How|That|Those|What|When|Where|Whether|Which|Who|Whom|Whose|Why)\b")


def test_docstrings_begin_with_a_verb_or_the_thing_itself() -> None:
    """A question word makes the reader wait for the noun."""
    paths = [*modules().values(), *(ROOT / "tests" / "support").glob("*.py")]
    found = [
        (path.relative_to(ROOT).as_posix(), getattr(node, "lineno", 1), docstring)
        for path in paths
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (docstring := ast.get_docstring(node))
        and NO_BEGINNING.match(docstring)
    ]
    assert found == []


def test_nothing_is_called_one() -> None:
    """A variable bears the name of what it holds."""
    called = [
        (path.relative_to(ROOT).as_posix(), node.lineno)
        for path in modules().values()
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Name) and node.id == "one") or (isinstance(node, ast.arg) and node.arg == "one")
    ]
    assert called == []
