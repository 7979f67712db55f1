"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


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

    Made once; tests read it, and copy what they change. The programs compiled meanwhile are kept in `compiled` beside
    it, for tests that train further in processes of their own.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from brainldm import demo

    out = tmp_path_factory.mktemp("demo") / "out"
    jax.config.update("jax_compilation_cache_dir", str(out.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    try:
        demo.demo(out, demo.TINY)
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
    return out
