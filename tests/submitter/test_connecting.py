"""The receiver and token that a client finds; no token goes to a receiver that it does not belong to."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from submitter.connecting import find_receiver
from submitter.errors import NoReceiver, Unauthorized
from submitter.profiles import (
    Profile,
    Profiles,
    ProfilesUnusable,
    profiles_path,
    read_profiles,
    update_profiles,
    write_profiles,
)

PRODUCTION = Profile("https://hooks.example.com/upscale", "token-of-production")
STAGING = Profile("https://staging.example.com", "token-of-staging")


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, no profiles, no variables."""
    for name in [name for name in os.environ if name.startswith(("SUBMITTER_", "RECEIVER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def store(*, default: str | None = None, **profiles: Profile) -> None:
    write_profiles(Profiles(profiles, default))


def test_arguments_win_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITTER_RECEIVER_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SUBMITTER_TOKEN", "token-of-the-environment")
    store(production=PRODUCTION)
    found = find_receiver("https://other.example.com/", "given")
    assert (found.url, found.token) == ("https://other.example.com", "given")


def test_the_environment_wins_over_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITTER_RECEIVER_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SUBMITTER_TOKEN", "token-of-the-environment")
    store(production=PRODUCTION)
    found = find_receiver()
    assert (found.url, found.token, found.found_in) == (
        "http://127.0.0.1:9",
        "token-of-the-environment",
        "SUBMITTER_TOKEN",
    )


def test_a_dotenv_file_is_read(tmp_path: Path) -> None:
    Path(".env").write_text("SUBMITTER_RECEIVER_URL=http://127.0.0.1:9\nSUBMITTER_TOKEN=token-of-the-file\n")
    assert find_receiver().token == "token-of-the-file"


def test_the_default_profile_is_used_and_another_by_name() -> None:
    store(production=PRODUCTION, staging=STAGING, default="staging")
    assert find_receiver().token == STAGING.token
    found = find_receiver(profile="production")
    assert (found.url, found.token) == (PRODUCTION.url, PRODUCTION.token)
    with pytest.raises(NoReceiver, match="the profiles are: production, staging") as missing:
        find_receiver(profile="moon")
    assert missing.value.code == "no_such_profile"


def test_a_url_finds_its_own_profile_and_never_the_token_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    store(production=PRODUCTION, staging=STAGING)
    assert find_receiver("https://staging.example.com/").token == STAGING.token
    with pytest.raises(Unauthorized, match="submitter login") as refused:
        find_receiver("https://elsewhere.example.com")
    assert refused.value.code == "no_token"
    with pytest.raises(Unauthorized, match="not for https://elsewhere"):
        find_receiver("https://elsewhere.example.com", profile="staging")
    monkeypatch.setenv("SUBMITTER_RECEIVER_URL", "https://elsewhere.example.com")
    with pytest.raises(Unauthorized):
        find_receiver()


def test_the_data_directory_beside_gives_its_token_to_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data").mkdir()
    Path("data/secrets.json").write_text(json.dumps({"api_token": "token-of-the-data-directory"}))
    found = find_receiver()
    assert (found.url, found.token, found.found_in) == (
        "http://127.0.0.1:8000",
        "token-of-the-data-directory",
        "data directory",
    )
    assert find_receiver("http://localhost:9000").token == "token-of-the-data-directory"
    with pytest.raises(Unauthorized):
        find_receiver("https://hooks.example.com")
    monkeypatch.setenv("RECEIVER_API_TOKENS", "first-token, second-token")
    assert find_receiver().token == "first-token"


def test_profiles_are_private_and_survive_being_read_again() -> None:
    store(production=PRODUCTION)
    path = profiles_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]
    more = read_profiles().with_profile("staging", STAGING, default=True)
    write_profiles(more)
    assert read_profiles() == more
    assert read_profiles().without("staging") == Profiles({"production": PRODUCTION}, "production")
    assert "token" not in repr(more)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"profiles": {"a": {"url": 1, "token": "t"}}}', "\xff"])
def test_a_damaged_file_of_profiles_is_refused_without_quoting_it(text: str) -> None:
    store()
    profiles_path().write_text(text, encoding="latin-1")
    with pytest.raises(ProfilesUnusable, match="remove it and log in again"):
        read_profiles()


def test_profiles_that_are_stored_at_once_are_all_kept() -> None:
    names = [f"receiver-{n}" for n in range(8)]

    def add(name: str) -> None:
        update_profiles(lambda found: found.with_profile(name, Profile(PRODUCTION.url, name)))

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(add, names))
    assert sorted(read_profiles().profiles) == names


def test_a_symbolic_link_to_the_profiles_stays_one(tmp_path: Path) -> None:
    store()
    kept = tmp_path / "kept.json"
    profiles_path().rename(kept)
    profiles_path().symlink_to(kept)
    store(production=PRODUCTION)
    assert profiles_path().is_symlink()
    assert "production" in kept.read_text()


def test_a_user_without_a_home_has_no_profiles_and_is_told_when_one_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert read_profiles() == Profiles()
    with pytest.raises(Unauthorized, match="SUBMITTER_TOKEN"):
        find_receiver("https://other.example.com")
    with pytest.raises(ProfilesUnusable, match="set HOME or XDG_CONFIG_HOME"):
        update_profiles(lambda found: found)
