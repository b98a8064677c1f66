"""Files that are written whole or not at all, and the words for what keeps them from it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from submitter.system_errors import about, described
from submitter.whole_files import write_whole


def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "one", mode=0o600)
    write_whole(path, "two")
    assert (path.read_text(), [each.name for each in tmp_path.iterdir()]) == ("two", ["file"])
    with pytest.raises(FileExistsError, match="file"):
        write_whole(path, "three", replace=False)
    assert (path.read_text(), [each.name for each in tmp_path.iterdir()]) == ("two", ["file"])


def test_an_error_names_the_file_and_not_its_unfinished_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(tmp_path / "none" / "file", "x")
    assert described(raised.value) == f"{tmp_path}/none/file: no such file or directory"


@pytest.mark.parametrize(
    ("exc", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device; free some space there"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "a: too many open files; raise the limit of open files"),
        (OSError(errno.EFBIG, "File too large", "from", None, "to"), "to: file too large; raise the limit of a file's"),
        (OSError(errno.EIO, "Input/output error", "from", None, "to"), "from to to: input/output error"),
        (OSError("plain words"), "plain words"),
        (ValueError("another"), "another"),
    ],
)
def test_errors_say_the_file_what_is_wrong_and_what_to_change(exc: Exception, says: str) -> None:
    assert described(exc).startswith(says)


def test_an_error_without_a_file_gets_one() -> None:
    with pytest.raises(OSError, match="here") as raised, about("here"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="there"), about("here"):
        raise OSError(errno.ENOSPC, "No space left on device", "there")


def test_what_a_symbolic_link_leads_to_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    for text in ("one", "two"):
        write_whole(link, text)
        assert (link.is_symlink(), (tmp_path / "file").read_text()) == (True, text)
