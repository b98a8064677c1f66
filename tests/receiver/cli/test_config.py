"""`receiver config`: what is in force, where it came from, and the README's table."""

import re
from pathlib import Path

import pytest

from receiver.cli.settings_listing import MASK, in_force, known, misspelt, to_markdown
from receiver.settings import Settings, SettingsInvalid, given, load
from submitter.environment import Environment, EnvironmentUnreadable
from submitter.providers import PROVIDERS
from submitter.signatures import new_secret
from tests.support.cli import bare_environment, receiver_command
from tests.support.processes import ROOT

pytestmark = pytest.mark.sqlite(reason="settings are shown, and none of a database")

SECRET = "a-very-secret-value-0123456789"


@pytest.fixture(autouse=True)
def _empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in given():
        if name.startswith(("RECEIVER_", "FREEPIK_", "APIXO_", "NOVITA_", "UPSCAYL_", "PIXELCUT_")):
            monkeypatch.delenv(name)


def test_the_readme_lists_every_setting_with_its_default_and_meaning() -> None:
    readme = (ROOT / "README.md").read_text()
    row = re.compile(r"^\| `([A-Z<>_]+)` \| (.*?) \| (.*) \|$", re.MULTILINE)
    rows, wanted = row.findall(readme), row.findall(to_markdown())
    assert len(wanted) == len(known())
    assert rows == wanted, "paste what `receiver config --markdown` prints"


def test_every_setting_has_a_meaning() -> None:
    assert [item.name for item in known() if not item.meaning] == []


async def test_it_says_where_each_value_came_from_and_masks_secrets(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"RECEIVER_KEEP_DAYS=7\nFREEPIK_API_KEY={SECRET}\nRECEIVER_CONFIRM=always\n")
    environment = bare_environment(RECEIVER_CONFIRM="never", RECEIVER_API_TOKENS=f"{SECRET},{SECRET}2")
    done = await receiver_command("config", "--json", environment=environment, directory=tmp_path)
    assert done.status == 0
    found = {item["name"]: (item["value"], item["origin"]) for item in done.json["items"]}
    assert found["RECEIVER_KEEP_DAYS"] == ("7", ".env")
    assert found["RECEIVER_CONFIRM"] == ("never", "environment")
    assert found["RECEIVER_JOB_TIMEOUT"] == ("3600", "default")
    assert found["RECEIVER_SECRET_KEYS"] == (MASK, "generated")
    assert found["RECEIVER_API_TOKENS"] == (f"{MASK},{MASK}", "environment")
    assert found["FREEPIK_API_KEY"] == (MASK, ".env")
    assert found["FREEPIK_BASE_URL"] == ("https://api.freepik.com", "default")
    assert found["FREEPIK_API_KEY_HEADER"] == ("x-freepik-api-key", "default")
    assert found["FREEPIK_CONCURRENCY"] == (str(PROVIDERS["freepik"].concurrency), "default")
    assert found["RECEIVER_POLL_INTERVAL"] == ("each provider's own", "default")
    readable = await receiver_command("config", environment=environment, directory=tmp_path)
    assert "RECEIVER_KEEP_DAYS" in readable.out
    assert SECRET not in done.out + done.err + readable.out + readable.err


async def test_wrong_settings_stop_the_start_with_all_errors_at_once(tmp_path: Path) -> None:
    environment = bare_environment(
        RECEIVER_PUBLIC_URL="ftp://example.com",
        RECEIVER_JOB_TIMEOUT="-1",
        RECEIVER_NOTIFY_SECRETS=SECRET,
        RECEIVER_DATABASE_URL="mysql://localhost/x",
        FREEPIK_RATE="often",
        APIXO_CONCURRENCY="0",
        NOVITA_API_KEY=f"two words {SECRET}",
    )
    done = await receiver_command("serve", "--port", "0", environment=environment, directory=tmp_path)
    assert done.status == 2
    reported = [line.split(":")[0].strip() for line in done.err.splitlines()[1:]]
    assert reported == [
        "RECEIVER_PUBLIC_URL",
        "RECEIVER_DATABASE_URL",
        "RECEIVER_NOTIFY_SECRETS",
        "RECEIVER_JOB_TIMEOUT",
        "FREEPIK_RATE",
        "APIXO_CONCURRENCY",
        "NOVITA_*",
    ]
    assert SECRET not in done.out + done.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('RECEIVER_KEEP_DAYS="5\nGARBAGE LINE\nRECEIVER_JOB_TIMEOUT=77\n', [1, 2]),
        (f"# fine\n\nFREEPIK_API_KEY={SECRET}\n\n  {SECRET} oh\nexport A=b\nRECEIVER_JOB_TIMEOUT 77\n", [5, 7]),
        (f"RECEIVER_API_TOKENS='{SECRET}' and more\nNAME_ALONE\n", [1]),
    ],
)
async def test_a_line_that_cannot_be_read_is_a_wrong_setting(tmp_path: Path, content: str, lines: list[int]) -> None:
    (tmp_path / ".env").write_text(content)
    reported = [f".env line {line}: write it as NAME=value, and close its quotes" for line in lines]
    environment = bare_environment(RECEIVER_CONFIRM="maybe")
    for arguments in (["serve", "--port", "0"], ["config"], ["doctor", "--json"]):
        done = await receiver_command(*arguments, environment=environment, directory=tmp_path)
        assert SECRET not in done.out + done.err
        if "doctor" in arguments:
            assert (done.status, done.err) == (1, "")
            found = [item["found"] for item in done.json["items"] if item["grade"] == "fail"]
        else:
            assert (done.status, done.out) == (2, "")
            found = [line.strip() for line in done.err.splitlines()[1:]]
        assert found[:-1] == reported
        assert found[-1].startswith("RECEIVER_CONFIRM: ")
    assert not (tmp_path / "data").exists()


async def test_a_name_without_a_value_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RECEIVER_KEEP_DAYS=7\n\nNOVITA_API_KEY\n")
    done = await receiver_command("config", environment=bare_environment(), directory=tmp_path)
    assert done.status == 0
    assert ".env line 3: NOVITA_API_KEY has no value; write NOVITA_API_KEY=value" in done.err


async def test_a_directory_in_place_of_the_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    done = await receiver_command("config", environment=bare_environment(), directory=tmp_path)
    assert (done.status, ".env: is a directory" in done.err, "Traceback" in done.err) == (2, True, False)
    with pytest.raises(EnvironmentUnreadable, match="is a directory"):
        Environment()


async def test_settings_that_are_no_text_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"RECEIVER_KEEP_DAYS=\xff\n")
    done = await receiver_command("config", environment=bare_environment(), directory=tmp_path)
    assert (done.status, ".env: must be UTF-8" in done.err, "Traceback" in done.err) == (2, True, False)


def test_what_only_some_providers_take_is_no_setting_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("1 USD", "cheap"):
        for name in ("APIXO_PRICE", "UPSCAYL_PRICE"):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NOVITA_WEBHOOK_SECRET_ENCODING", value)
        _, each = load()
        assert "price" not in type(each["apixo"]).model_fields
        assert misspelt(given()) == [
            "APIXO_PRICE is not a known setting; only FREEPIK_PRICE, NOVITA_PRICE and PIXELCUT_PRICE can be set",
            "NOVITA_WEBHOOK_SECRET_ENCODING is not a known setting; only FREEPIK_WEBHOOK_SECRET_ENCODING can be set",
            "UPSCAYL_PRICE is not a known setting; only FREEPIK_PRICE, NOVITA_PRICE and PIXELCUT_PRICE can be set",
        ]
    monkeypatch.setenv("NOVITA_PRICE", "cheap")
    with pytest.raises(SettingsInvalid, match="NOVITA_PRICE: write it as"):
        load()


def test_misspelt_names_are_noticed_and_names_of_others_are_not() -> None:
    names = ["RECEIVER_PUBLICURL", "RECEIVER_ZZZ", "FREEPIK_APIKEY", "NOVITA_MODEL_CACHE", "RECEIVER_KEEP_DAYS", "PATH"]
    assert misspelt(names) == [
        "FREEPIK_APIKEY is not a known setting; is FREEPIK_API_KEY meant?",
        "RECEIVER_PUBLICURL is not a known setting; is RECEIVER_PUBLIC_URL meant?",
        "RECEIVER_ZZZ is not a known setting",
    ]


def test_empty_values_are_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECEIVER_PUBLIC_URL", "RECEIVER_API_TOKENS", "FREEPIK_API_KEY", "FREEPIK_RATE", "RECEIVER_CONFIRM"):
        monkeypatch.setenv(name, "")
    settings, each = load()
    assert settings == Settings()
    assert each["freepik"].api_key is None


def test_a_good_notify_secret_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVER_NOTIFY_SECRETS", f"{new_secret()},{new_secret()}")
    assert len(load()[0].notify_secrets) == 2
    monkeypatch.setenv("RECEIVER_NOTIFY_SECRETS", "whsec_short")
    with pytest.raises(SettingsInvalid, match="RECEIVER_NOTIFY_SECRETS"):
        load()


def test_nothing_that_is_listed_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECEIVER_SECRET_KEYS", "RECEIVER_API_TOKENS", "FREEPIK_WEBHOOK_SECRET", "UPSCAYL_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    assert SECRET not in repr(in_force(*load(), given()))


@pytest.mark.parametrize("value", ["inf", "1e300", "nan", "-1", "31536001", "9" * 5000, "1e999"])
@pytest.mark.parametrize("name", ["CALLBACK_TIMEOUT", "POLL_INTERVAL", "JOB_TIMEOUT", "RETRY_SCHEDULE", "KEEP_DAYS"])
def test_a_duration_without_a_bound_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"RECEIVER_{name}", f"0,{value}" if name == "RETRY_SCHEDULE" else value)
    with pytest.raises(SettingsInvalid) as caught:
        load()
    (problem,) = caught.value.problems
    assert problem.startswith(f"RECEIVER_{name}: ")
    assert "\n" not in problem and len(problem) < 200


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("JOB_TIMEOUT", "soon", "must be a number"),
        ("CONFIRM", "maybe", "must be 'unsigned', 'always' or 'never'"),
        ("BLOB_REDIRECT", "maybe", "must be true or false"),
        ("MAX_CALLBACK_BYTES", "1.5", "must be a whole number"),
        (
            "BLOB_URL",
            "ftp://files",
            "must be the URL of a bucket, such as s3://bucket/prefix, gs://bucket or az://container, without"
            " credentials, a query or a fragment",
        ),
        ("ALLOW_NETWORKS", "10.0.0", "must be networks such as 10.0.0.0/8, with no bits set behind the prefix"),
    ],
)
def test_a_setting_that_can_not_be_used_says_what_to_write(
    name: str, value: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"RECEIVER_{name}", value)
    with pytest.raises(SettingsInvalid) as caught:
        load()
    assert caught.value.problems == [f"RECEIVER_{name}: {remedy}"]


@pytest.mark.parametrize("hosts", ["https://cdn.example.com", "cdn.example.com:443", "cdn.*.com", "*", "a b"])
def test_result_hosts_are_plain_names(hosts: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="RECEIVER_RESULT_HOSTS: must be host names"):
        load(data_dir=tmp_path, result_hosts=hosts)
    settings, _ = load(data_dir=tmp_path, result_hosts="cdn.example.com, *.Example.org")
    assert settings.result_hosts == ("cdn.example.com", "*.example.org")
