"""A short run of launch/fuzz.sh: the same cases every time."""

import os
import subprocess
import sys

CASES = 30


def test_odd_arguments_values_tables_and_files_end_in_a_sentence(repository):
    done = subprocess.run(
        [sys.executable, "tests/fuzzing.py", "--cases", str(CASES), "--limit", "0.7", "--seed", "300"],
        capture_output=True,
        text=True,
        cwd=repository,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"{CASES} cases from seed 300, 0 wrong" in done.stdout
