"""The tests need no home to keep their programs in."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("home", ["/dev/null", "/no/such/folder", None])
def test_a_run_without_a_home_keeps_its_programs_to_itself(repository, tmp_path, home):
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(map(str, (repository, repository / "tests"))),
    }
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
    assert list(tmp_path.iterdir()) == []  # gone with the run
