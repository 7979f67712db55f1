"""Fixtures shared by all tests."""

import fcntl
import os
import shutil
import signal
from pathlib import Path

import compiled_programs
import numpy as np
import pytest

# Many tests, and the processes that they start, compile the same programs: each is compiled once. Set before jax comes,
# and inherited by the workers of a run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compiled_programs.folder())
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

REPOSITORY = Path(__file__).resolve().parents[1]

# A shell that starts the tests in the background has Ctrl-C ignored, also by what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference numbers and scans that are too large or not free to ship, kept beside the checkout."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside this checkout: comparisons with reference numbers and real scans not run")
    return folder


@pytest.fixture
def random() -> np.random.Generator:
    """Random moments and places; BRAINLDM_TEST_SEED repeats those of a failed test, which shows its seed."""
    seed = int(os.environ.get("BRAINLDM_TEST_SEED", "2209"))
    print(f"BRAINLDM_TEST_SEED={seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory) -> Path:
    """The folder of `brainldm demo --tiny`: a dataset, both trained stages, a model, a generated dataset, a report.

    Made once, by whichever process of the run comes first; tests read it, and copy what they change.
    """
    from brainldm.commands import demo

    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent  # which all workers share
    out, made = session / "demo/out", session / "demo/made"
    out.parent.mkdir(exist_ok=True)
    with (session / "demo/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when a worker dies
        if not made.exists():
            shutil.rmtree(out, ignore_errors=True)
            demo.demo(out, demo.TINY)
            made.touch()
    return out


SLOW_FIXTURES = {"demo_run", "start"}
"""Session fixtures that take long themselves, or start processes that do."""


TOGETHER = ("tests/parallel/test_distributed_", "tests/parallel/test_exit_reports.py")
"""Beginnings of files that one worker runs one after the other: groups of processes, which wait for each other."""


AFTER_DEMO = ("tests/test_tour.py",)
"""Files that run the programs of the demo, which need not be compiled twice."""


def _group(node_id: str) -> str:
    """What one worker runs as a whole: a file, or all files of TOGETHER."""
    return "together" if node_id.startswith(TOGETHER) else node_id.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks what is slow by its fixtures, and brings files into the order in which two workers finish soonest.

    First comes one that needs the demo's run, so that one worker makes it while the other goes on with the rest; then
    the processes, files with slow tests, the others, and at the end what else needs the demo's run.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker("slow")
        groups.setdefault(_group(item.nodeid), []).append(item)

    def rank(name: str) -> int:
        if name.startswith(AFTER_DEMO) or any("demo_run" in item.fixturenames for item in groups[name]):
            return 3
        if name == "together":
            return 0
        return 1 if any(item.get_closest_marker("slow") for item in groups[name]) else 2

    order = sorted(groups, key=rank)
    first = [name for name in order if rank(name) == 3 and not name.startswith(AFTER_DEMO)][:1]
    items[:] = [item for name in (*first, *(name for name in order if name not in first)) for item in groups[name]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Groups in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Scheduling(config, log)
