"""One run at a time fills a folder, and what it leaves says whether it is whole."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from brainldm.runtime.errors import UserError
from brainldm.runtime.lock import UNFINISHED, new_folder

HOLDER = """
import sys, time
from brainldm.runtime.lock import new_folder
with new_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("a")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, repository):
    """Another process that fills tmp_path/out."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "out")],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_fills_is_refused_with_its_name(holder, tmp_path):
    with pytest.raises(UserError, match=f"another run is at work in it .process {holder.pid} on "):
        with new_folder(tmp_path / "out"):
            pass
    assert (tmp_path / "out/a").exists()


def test_a_killed_run_leaves_no_lock_and_a_folder_known_as_unfinished(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    for _ in range(2):  # also when it was refused before
        with pytest.raises(UserError, match=f"unfinished run .process {holder.pid} on .*Delete it"):
            with new_folder(tmp_path / "out"):
                pass
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", UNFINISHED}
    (tmp_path / "out/a").unlink()
    with new_folder(tmp_path / "out") as folder:  # killed before it wrote anything
        (folder / "b").write_text("b")
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_whole_folder_holds_no_lock_file_and_is_not_taken_for_unfinished(tmp_path):
    with new_folder(tmp_path / "deep/out") as folder:
        assert (folder / UNFINISHED).exists()
        (folder / "a").write_text("a")
    assert [path.name for path in folder.iterdir()] == ["a"]
    with pytest.raises(UserError, match="already holds something else"):
        with new_folder(folder):
            pass


def test_a_folder_that_nothing_came_of_does_not_stay(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(KeyboardInterrupt):
            with new_folder(tmp_path / name):
                raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("path", ["file/out", "/proc/out"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        with new_folder(tmp_path / path):
            pass
