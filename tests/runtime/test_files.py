"""Files and folders: nothing is overwritten, and checksums tell what has changed."""

import errno
import hashlib

import pytest

from brainldm.runtime.errors import BrainldmError, UserError
from brainldm.runtime.files import (
    SUMS,
    read_sums,
    require_new_folder,
    require_writable,
    require_writable_file,
    verify_sums,
    write_sums,
)


def test_folders_that_hold_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already holds"):
        require_new_folder(tmp_path)
    assert require_new_folder(tmp_path, own="thesis.txt") == tmp_path
    with pytest.raises(UserError, match="is a file"):
        require_new_folder(tmp_path / "thesis.txt")


def test_trying_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    (tmp_path / "old").mkdir()
    for path in ("old", "old/new", "a/b/c"):
        require_writable(tmp_path / path)
    for path in ("a/" + "n" * 300, "a\0b"):
        with pytest.raises(UserError, match="cannot be written to|is no path"):
            require_writable(tmp_path / path)
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    require_writable_file(tmp_path / "old/page.html")
    for path, said in (("old", "is a folder"), ("n" * 250, "longer than")):
        with pytest.raises(UserError, match=said):
            require_writable_file(tmp_path / path)


def test_a_full_disk_is_no_mistake_of_the_user(tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    with pytest.raises(BrainldmError, match="No space left") as caught:
        require_writable(tmp_path / "out")
    assert caught.value.exit_code == 1 and not (tmp_path / "out").exists()


@pytest.fixture
def summed(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    return tmp_path, write_sums(tmp_path, ["deep/a", "b"])


def test_sums_have_the_form_of_sha256sum_in_the_order_given(summed):
    folder, content = summed
    digests = [hashlib.sha256(letter).hexdigest() for letter in (b"a", b"b")]
    assert content.decode() == f"{digests[0]}  deep/a\n{digests[1]}  b\n"
    assert (folder / SUMS).read_bytes() == content
    assert verify_sums(folder, read_sums(content)) == {}


def test_what_is_wrong_is_said_file_by_file(summed):
    folder, content = summed
    (folder / "deep/a").write_bytes(b"c")
    (folder / "b").unlink()
    assert verify_sums(folder, read_sums(content)) == {"deep/a": "changed", "b": "missing"}
    assert verify_sums(folder, read_sums(content), ["b", "unlisted"]) == {"b": "missing", "unlisted": "missing"}
    (folder / "b").mkdir()
    assert verify_sums(folder, read_sums(content), ["b"]) == {"b": "cannot be read"}


def test_damaged_sums_are_no_crash(summed):
    folder, content = summed
    for damaged in (
        b"",
        content[:-5],
        b"\xff\0" * 40,
        content.replace(b"  ", b" "),
        content + b"0" * 64 + b"  " + b"x" * 300,
    ):
        sums = read_sums(damaged)
        assert sums != read_sums(content)
        assert verify_sums(folder, sums) or not sums


def test_a_file_that_cannot_be_read_back_is_no_success(tmp_path):
    with pytest.raises(OSError, match="absent cannot be read back"):
        write_sums(tmp_path, ["absent"])
    assert not (tmp_path / SUMS).exists()
