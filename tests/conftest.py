"""Fixtures shared by all tests."""

import hashlib
import importlib.metadata
import os
import signal
from pathlib import Path

import pytest


def _compiled_folder() -> Path:
    """Where compiled programs live between runs: of one release of jaxlib, and of one kind of processor."""
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))]
    processor = hashlib.sha256("".join(flags[:1]).encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "brainldm-tests" / f"jaxlib-{importlib.metadata.version('jaxlib')}-{processor}"


# Many tests, and the processes that they start, compile the same programs: each is compiled once. Set before jax comes.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compiled_folder()))
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


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory) -> Path:
    """The folder of `brainldm demo --tiny`: a dataset, both trained stages, a model, a generated dataset, a report.

    Made once; tests read it, and copy what they change.
    """
    from brainldm.commands import demo

    out = tmp_path_factory.mktemp("demo") / "out"
    demo.demo(out, demo.TINY)
    return out
