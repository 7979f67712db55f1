"""A checkout in a folder with spaces in its name, and programs that record what they were called with."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Whatever a script might start on a cluster or in a cloud: none of the real ones is ever reached.
PROGRAMS = ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "docker", "sudo", "nvidia-smi")

RECORDER = """#!{python} -S
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("EXIT_" + os.path.basename(sys.argv[0]).replace("-", "_"), "0")))
"""

# Stands for `brainldm`: says what it was asked and what JAX would see, then ends as PLAN says, one word a turn:
# an exit code, or "wait" to wait for SIGTERM and end with 75. Process i of several reads the i-th part of "a|b".
PROGRAM = """#!{python} -S
import json, os, signal, sys, time
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append("TERM"))
words = sys.argv[1:]
process = int(words[words.index("--process-id") + 1]) if "--process-id" in words else 0
with open(os.environ["CALLS"], "a") as file:
    names = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR", "CUDA_VISIBLE_DEVICES",
             "XLA_PYTHON_CLIENT_MEM_FRACTION")
    file.write(json.dumps({{"words": words, **{{n: os.environ[n] for n in names if n in os.environ}}}}) + "\\n")
with open(os.environ["CALLS"]) as file:
    turn = sum('"words"' in line for line in file) - 1
print("program started", process, flush=True)
plan = os.environ.get("PLAN", "0").split("|")
plan = plan[min(process, len(plan) - 1)].split()
word = plan[0 if len(plan) == 1 or "--process-id" in words else min(turn, len(plan) - 1)]
if word == "wait":
    until = time.monotonic() + 60
    while not seen and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.7)  # saving: a second signal would be seen
    print("program saw", *seen, flush=True)
    word = "75" if seen else "99"
sys.exit(int(word))
"""


class Place:
    """A checkout with recording programs in front of the real ones."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.checkout = folder / "my checkout"
        self.calls_file = folder / "calls"
        programs = folder / "programs"
        home = folder / "home of a user"
        programs.mkdir()
        home.mkdir()
        (self.checkout / ".venv/bin").mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        for name in PROGRAMS:
            self.put(programs / name, RECORDER)
        self.put(self.checkout / ".venv/bin/brainldm", PROGRAM)
        kept = ("PATH", "LANG", "TMPDIR")
        self.environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(home),
            "CALLS": str(self.calls_file),
            "BRAINLDM_PLATFORM": "cpu",
            # Should a real one be reached all the same, it knows no account and no cluster.
            "CLOUDSDK_CONFIG": str(folder / "none"),
            "KUBECONFIG": "/dev/null",
        }

    @staticmethod
    def put(path: Path, text: str) -> None:
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)

    def run(
        self, script: str, *words: str, stdin=subprocess.DEVNULL, **environment: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.checkout / "launch" / script, *words],
            cwd=self.checkout,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=stdin,
        )

    def start(self, script: str, *words: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [self.checkout / "launch" / script, *words],
            cwd=self.checkout,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def calls(self) -> list:
        """What was started so far, in order: lists from recording programs, dicts from the program itself."""
        if not self.calls_file.exists():
            return []
        return [json.loads(line) for line in self.calls_file.read_text().splitlines()]


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)
