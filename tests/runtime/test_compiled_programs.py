"""Compiled programs are kept between runs: a folder that does not grow, nor go bad, and that nobody else writes to."""

import os
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest

from brainldm.models.layers import torch_uniform
from brainldm.runtime import compiled_programs
from brainldm.runtime.compiled_programs import cache_home, keep_programs, private_folder, quickly_compiled

PROGRAM = zlib.compress(os.urandom(1000))


def put(folder, name, content=PROGRAM, used=1e9):
    """A program that was last used then; it was written just now."""
    (folder / name).write_bytes(content)
    os.utime(folder / name, (used, (folder / name).stat().st_mtime))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "checked")


def test_each_release_and_processor_has_its_folder(tmp_path, monkeypatch):
    here = private_folder(tmp_path / "a/programs")
    monkeypatch.setattr(compiled_programs, "_processor", lambda: "0123abcd")
    there = private_folder(tmp_path / "a/programs")
    assert here != there and here.parent == there.parent and here.is_dir() and there.is_dir()


def test_of_all_programs_those_used_longest_ago_go_when_there_is_too_much(tmp_path, monkeypatch):
    here = private_folder(tmp_path / "a/programs")
    monkeypatch.setattr(compiled_programs, "_processor", lambda: "0123abcd")
    there = private_folder(tmp_path / "a/programs")
    for number in range(6):
        put((here, there)[number % 2], f"{number}-cache", used=1e9 + (number + 2) % 6)
    private_folder(here.parent, 6 * len(PROGRAM))
    assert names(here) + names(there) == ["0-cache", "2-cache", "4-cache", "1-cache", "3-cache", "5-cache"]
    private_folder(here.parent, 3 * len(PROGRAM))
    assert names(here) + names(there) == ["2-cache", "1-cache", "3-cache"]


@pytest.mark.parametrize("length", [0, 1, 500, len(PROGRAM) - 1])
def test_what_a_killed_process_left_goes(tmp_path, length):
    found = private_folder(tmp_path / "a/programs")
    put(found, "whole-cache")
    put(found, "part-cache", PROGRAM[:length])
    (found / "folder").mkdir()  # as JAX makes for GPUs
    private_folder(found.parent)
    assert names(found) == ["folder", "whole-cache"]
    assert (found / "whole-cache").stat().st_atime == 1e9


def test_all_folders_are_private(tmp_path):
    umask = os.umask(0o002)
    try:
        found = private_folder(tmp_path / "cache/brainldm/programs")
    finally:
        os.umask(umask)
    assert {place.stat().st_mode & 0o777 for place in (found, found.parent, found.parent.parent)} == {0o700}


@pytest.fixture
def undecided(monkeypatch, tmp_path):
    """JAX as it is where the environment decides nothing, and a home of its own; returns the cache folder in it."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(undecided, capsys):
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(private_folder(undecided / "brainldm/programs"))
    assert capsys.readouterr().err == ""


def test_the_environment_decides_first(undecided, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None and not undecided.exists()


def _of_another_user(place, monkeypatch):
    monkeypatch.setattr(compiled_programs.os, "geteuid", lambda: place.stat().st_uid + 1)


def _open_to_others(place, monkeypatch):
    place.chmod(0o777)


def _a_file(place, monkeypatch):
    place.rmdir()
    place.write_text("")


@pytest.mark.parametrize(
    "spoil, said", [(_of_another_user, "another user"), (_open_to_others, "chmod"), (_a_file, "exists")]
)
def test_a_folder_that_cannot_be_trusted_is_a_warning_and_is_not_used(undecided, monkeypatch, capsys, spoil, said):
    place = undecided / "brainldm/programs"
    place.mkdir(parents=True)
    spoil(place, monkeypatch)
    keep_programs()
    err = capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir is None
    assert err.startswith(str(undecided)) and said in err and err.count("\n") == 1 and "compiles again" in err


def test_a_user_without_a_home_gets_a_warning(undecided, monkeypatch, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)  # whom the system does not know
    keep_programs()
    assert "no home" in capsys.readouterr().err and jax.config.jax_compilation_cache_dir is None


def test_a_relative_cache_home_is_none(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_home()) == "/home/somebody/.cache"


def test_a_second_process_finds_what_the_first_compiled(tmp_path, repository):
    code = (
        "from brainldm.runtime.compiled_programs import keep_programs\n"
        "keep_programs()\n"
        "import jax, jax.monitoring\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
        "print(jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((3, 3))).sum())\n"
        "print(hits.count('/jax/compilation_cache/cache_hits') > 0)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120) for _ in range(2)]
    assert [run.stdout.split() for run in runs] == [["36.0", "False"], ["36.0", "True"]], runs
    assert [run.stderr for run in runs] == ["", ""]


def test_what_is_compiled_quickly_draws_the_same_initial_values():
    def draw():
        return torch_uniform(jax.random.key(0), (3, 3, 3, 4, 8))

    quick = jax.jit(draw, compiler_options=quickly_compiled())
    np.testing.assert_array_equal(quick(), jax.jit(draw)())
