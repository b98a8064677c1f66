"""The package as it is published: what its files hold, and that it works and is typed where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("package")]

USER = """
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, assert_type

from fastapi import Depends, FastAPI

import receiver
from submitter import AsyncClient, Client, Delivery, Endpoint, Event, Job, JobEvent, JobFailed, JobImage, State
from submitter.contrib.fastapi import event
from submitter.testing import SandboxedReceiver, sample_event
from submitter.webhooks import CallbackRefused, unwrap


def send(client: Client) -> list[Path]:
    job = client.submit("freepik", "photo.jpg", options={"scale_factor": "2x"}, timeout=30)
    assert_type(job, Job)
    assert_type(client.wait(job).state, State)
    assert_type(client.jobs(state=["failed"]), Iterator[Job])
    assert_type(client.endpoints.create("https://shop.example.com/hooks", event_types=["job.failed"]), Endpoint)
    try:
        return client.save(job, "out")
    except JobFailed as error:
        assert_type(error.job, Job)
        assert_type(error.remedy, str | None)
        return []


async def send_async(client: AsyncClient) -> tuple[JobImage, ...]:
    assert_type(client.jobs(), AsyncIterator[Job])
    async for found in client.deliveries.list(undelivered=True):
        assert_type(found, Delivery)
    return (await client.wait(await client.submit("novita", b"bytes"))).images


def handle(event: Event) -> None:
    if event.type == "job.succeeded":
        for image in event.data.images:
            print(image.sha256)
    match event:
        case JobEvent():
            assert_type(event.data, Job)


app = FastAPI()


@app.post("/hooks")
async def hook(event: Annotated[Event, Depends(event("whsec_dGhpcyBpcyBhIHNlY3JldCBmb3IgdGVzdHM="))]) -> None:
    handle(event)


async def host() -> None:
    async with receiver.embed() as upscaling:
        app.mount("/upscale", upscaling)


def test_hook(receiver: SandboxedReceiver) -> None:
    headers, body = sample_event("job.failed", receiver.notify_secret)
    try:
        handle(unwrap(headers, body, receiver.notify_secret))
    except CallbackRefused as refused:
        assert_type(refused.reason, str)
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment that has the wheel, and everything else from this one."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place / "venv", with_pip=False, symlinks=True)
    python = place / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    ours = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "dependencies.pth").write_text("\n".join(ours) + "\n")
    (wheel,) = built.glob("*.whl")
    # It may be installed where the dependencies are, too: that is not the one to try.
    options = ("-q", "--no-deps", "--no-index", "--ignore-installed")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=place)
    return python


def test_the_files_are_what_an_index_takes_and_hold_what_they_should(built: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=built)
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {"receiver/py.typed", "submitter/py.typed", "receiver/__main__.py", "submitter/__main__.py"} <= names
        assert not [name for name in names if name.startswith(("tests/", "deploy/"))]
        (listed,) = [name for name in names if name.endswith("entry_points.txt")]
        entry_points = archive.read(listed).decode()
    for script in ("receiver = receiver", "upscale-receiver = receiver", "submitter = submitter"):
        assert f"\n{script}." in entry_points
    tracked = subprocess.run(["git", "ls-files", "receiver", "submitter"], cwd=ROOT, capture_output=True, text=True)
    assert set(tracked.stdout.split()) <= names
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/tests/conftest.py") or "/tests/" in name for name in archive.getnames())


def test_it_runs_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    for module in ("receiver", "submitter"):
        place = run(installed, "-c", f"import {module}; print({module}.__file__)", cwd=tmp_path)
        assert place.startswith(str(installed.parent.parent))
        assert "Usage" in run(installed, "-m", module, "--help", cwd=tmp_path)
    for script in ("receiver", "submitter", "upscale-receiver"):
        assert "Usage" in run(installed.parent / script, "--help", cwd=tmp_path)
    listed = run(installed, "-m", "pytest", "--fixtures", "-p", "no:cacheprovider", cwd=tmp_path)
    assert "A running receiver with sandboxed providers" in listed


def test_a_users_code_is_strictly_typed_against_it(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    run(sys.executable, "-m", "mypy", "--strict", "--python-executable", installed, "user.py", cwd=tmp_path)
