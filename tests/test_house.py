"""The layout of the package, as launch/house.py measures it."""

import subprocess
import sys

import pytest


@pytest.fixture
def house(repository):
    """house(PACKAGE): exit code and lines of launch/house.py."""

    def run(*package):
        command = [sys.executable, repository / "launch/house.py", *package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert not done.stderr
        return done.returncode, done.stdout.splitlines()

    return run


@pytest.fixture
def package(tmp_path):
    """package({file: text}): a package of these files, its shares made small by many lines in an own room."""

    def make(files):
        folder = tmp_path / "brainldm"
        padding = {
            f"{room}/padding.py": "x = 1\n" * 100 for room in ("data", "models", "volumes", "runtime", "weights")
        }
        padding |= {f"{room}/padding.py": "x = 1\n" * 100 for room in ("datasets", "training", "reports")}
        for name, text in {**padding, **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return folder

    return make


def test_arrows_point_down_and_no_room_or_file_is_too_large(house):
    code, lines = house()
    assert code == 0, "\n".join(lines)


def test_a_sound_package_has_no_fault(house, package):
    code, lines = house(package({"training/loop.py": "from brainldm.models import unet\n", "models/unet.py": ""}))
    assert code == 0
    assert any(line.startswith("training") and line.endswith("-> models") for line in lines)


@pytest.mark.parametrize(
    "files, fault",
    [
        (
            {"models/unet.py": "from brainldm.training.loop import x\n", "training/loop.py": "x = 1\n"},
            "models -> training",
        ),
        ({"models/a.py": "def f():\n    import brainldm.training.b\n", "training/b.py": ""}, "models -> training"),
        (
            {"data/a.py": "from brainldm.data import b\n", "data/b.py": "from brainldm.data.a import c\n"},
            "data.a -> data.b",
        ),
        ({"data/long.py": "x = 1\n" * 401}, "data.long 401"),
        ({f"data/{n}.py": "x = 1\n" * 100 for n in range(5)}, "data 4"),
        ({"attic/a.py": "x = 1\n"}, "attic"),
    ],
)
def test_each_fault_is_named(house, package, files, fault):
    code, lines = house(package(files))
    assert code == 1 and any(fault in line for line in lines[-5:]), "\n".join(lines)


def test_what_is_imported_for_types_alone_is_no_arrow(house, package):
    text = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from brainldm.training.loop import x\n"
    assert house(package({"models/a.py": text, "training/loop.py": "x = 1\n"}))[0] == 0
