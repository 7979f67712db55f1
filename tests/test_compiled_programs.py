"""What the tests keep between runs does not grow, nor go bad, nor need a home."""

import os
import subprocess
import sys
import zlib

import pytest
from compiled_programs import kept

PROGRAM = zlib.compress(os.urandom(1000))


def put(folder, name, content=PROGRAM, used=1e9):
    (folder / name).write_bytes(content)
    os.utime(folder / name, (used, used))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_programs_of_other_releases_and_processors_go(tmp_path):
    found = kept(tmp_path)
    put(found, "a-cache")
    (tmp_path / "jaxlib-0.1.2-0123abcd").mkdir()
    put(tmp_path / "jaxlib-0.1.2-0123abcd", "b-cache")
    assert kept(tmp_path) == found and names(tmp_path) == [found.name] and names(found) == ["a-cache"]


def test_what_was_used_longest_ago_goes_when_there_is_too_much(tmp_path):
    found = kept(tmp_path)
    for number in range(5):
        put(found, f"{number}-cache", used=1e9 + (number + 2) % 5)
    assert len(names(kept(tmp_path, 5 * len(PROGRAM)))) == 5
    assert names(kept(tmp_path, 3 * len(PROGRAM))) == ["0-cache", "1-cache", "2-cache"]


@pytest.mark.parametrize("length", [0, 1, 500, len(PROGRAM) - 1])
def test_what_a_killed_process_left_goes(tmp_path, length):
    found = kept(tmp_path)
    put(found, "whole-cache")
    put(found, "part-cache", PROGRAM[:length])
    assert names(kept(tmp_path)) == ["whole-cache"]


@pytest.mark.parametrize("home", ["/dev/null", "/no/such/folder", None])
def test_a_run_without_a_home_keeps_its_programs_to_itself(repository, tmp_path, home):
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(repository / "tests")}
    code = "import compiled_programs as c; f = c.folder(); assert f.is_dir(); print(f)"
    if home:
        environment["HOME"] = home
    else:  # as for a user whom the system does not know
        code = "import os, pwd\nos.getuid = lambda: 2**31 - 5\n" + code
    if home == "/no/such/folder":
        code = "import os\nfrom pathlib import Path\nPath.mkdir = lambda *a, **k: os.mkdir('/proc/none')\n" + code
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/brainldm_compiled_")
    assert names(tmp_path) == []  # gone with the run
