"""The package installs as its files say: dependency list and locks agree, the wheel is complete.

Also: names that the code must not use, and the launch scripts. Everything here is offline.
"""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.txt", "requirements-dev.txt")
LOCK_OPTIONS = {
    "requirements.txt": "",
    "requirements-dev.txt": "--constraint=requirements.txt --extra=dev ",
}
# pip-compile never pins the installers themselves.
INSTALLERS = {"pip", "setuptools"}
SCRIPTS = ("launch/demo.sh", "launch/test.sh", ".ci/run")

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
OLDEST_PYTHON = re.fullmatch(r">=(3\.\d+)", PROJECT["requires-python"])[1]


def listed(lock: str) -> list[Requirement]:
    """The hand-written requirements that a lock is made from."""
    lines = list(PROJECT["dependencies"])
    if lock == "requirements-dev.txt":
        lines += PROJECT["optional-dependencies"]["dev"]
    return [Requirement(line) for line in lines]


def pins(lock: str) -> dict[str, Version]:
    """Canonical name -> pinned version."""
    found = {}
    for line in (ROOT / lock).read_text().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line)
        assert match, f"{lock}: not a plain pin: {line!r}"
        name = canonicalize_name(match[1])
        assert name not in found, f"{lock}: {name} is pinned twice"
        found[name] = Version(match[2])
    return found


def parents(lock: str) -> dict[str, set[str]]:
    """Canonical name -> what the `# via` notes under its pin name as the reason."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if pin := re.match(r"([A-Za-z0-9._-]+)==", line):
            reasons = found.setdefault(canonicalize_name(pin[1]), set())
        elif found and (note := re.match(r"    #(?: via)?\s*(.*)", line)):
            reasons.add(note[1])
    return found


# ---- dependency list and locks


@pytest.mark.parametrize("lock", LOCKS)
def test_every_listed_dependency_is_pinned_inside_its_range(lock):
    pinned = pins(lock)
    for requirement in listed(lock):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{lock} lacks {requirement}; make the lock anew (launch/README.md)"
        assert requirement.specifier.contains(pinned[name], prereleases=True), (
            f"{lock} pins {name}=={pinned[name]}, outside {requirement}; make the lock anew"
        )


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_exactly_the_listed_dependencies_as_its_origin(lock):
    direct = {name for name, why in parents(lock).items() if any(w.startswith("brainldm (") for w in why)}
    assert direct == {canonicalize_name(requirement.name) for requirement in listed(lock)}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_is_needed_and_nothing_needed_is_unpinned(lock):
    pinned = pins(lock)
    # One lock serves this Python and the oldest, on which it was made and which needs some backports more.
    pythons = ({}, {"python_version": OLDEST_PYTHON, "python_full_version": f"{OLDEST_PYTHON}.0"})
    needed: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    missing = set()
    queue = [(canonicalize_name(r.name), frozenset(r.extras)) for r in listed(lock)]
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        needed.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            missing.add(name)
            continue
        for requirement in map(Requirement, requirements):
            marker = requirement.marker
            if marker is None or any(
                marker.evaluate({**python, "extra": extra}) for python in pythons for extra in extras | {""}
            ):
                queue.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    needed -= INSTALLERS
    # Holds with packages missing too: what is installed asks for nothing outside the lock.
    assert not needed - set(pinned), f"{lock} lacks what its packages need on this Python"
    if missing - INSTALLERS:
        pytest.skip(f"not installed here, so what they need is unknown: {', '.join(sorted(missing))}")
    assert not set(pinned) - needed, f"{lock} pins what nothing needs"


def test_both_locks_pin_the_same_versions():
    run, dev = (pins(lock) for lock in LOCKS)
    assert run.items() <= dev.items()


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_header_is_as_generated_and_holds_no_address(lock):
    text = (ROOT / lock).read_text()
    assert text.startswith(
        "#\n"
        f"# This file is autogenerated by pip-compile with Python {OLDEST_PYTHON}\n"
        "# by the following command:\n"
        "#\n"
        f"#    pip-compile {LOCK_OPTIONS[lock]}--no-emit-find-links --no-emit-index-url --no-emit-options "
        f"--no-emit-trusted-host --output-file={lock} --strip-extras pyproject.toml\n"
        "#\n"
    )
    for line in text.splitlines():
        assert not line.startswith("-"), f"{lock}: an option: {line!r}"
        assert not re.search(r"://|(^|[\s=(])[/~]", line), f"{lock}: an address or a path: {line!r}"


def test_accelerator_extras_ask_for_the_same_jax():
    (jax,) = [Requirement(line) for line in PROJECT["dependencies"] if Requirement(line).name == "jax"]
    for extra in ("cuda13", "cuda12", "tpu"):
        (requirement,) = map(Requirement, PROJECT["optional-dependencies"][extra])
        assert requirement.name == "jax" and requirement.extras == {extra}
        assert requirement.specifier == jax.specifier


# ---- version and wheel


def package_version() -> str:
    return re.search(r'^__version__ = "([^"]+)"$', (ROOT / "brainldm/__init__.py").read_text(), re.M)[1]


def test_citation_states_the_version():
    stated = re.search(r"^version: *\"?([^\s\"]+)\"?$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert stated and stated[1] == package_version()


def test_wheel_holds_package_configs_and_licence_and_no_tests(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for name in ("brainldm", "configs", "tests", "pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif origin.is_file():
            shutil.copy(origin, source / name)
    (source / "configs/added.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    assert wheel.name == f"brainldm-{package_version()}-py3-none-any.whl"
    info = f"brainldm-{package_version()}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()

    def files(folder: str) -> set[str]:
        paths = (path for path in (source / folder).rglob("*") if path.is_file())
        return {path.relative_to(source).as_posix() for path in paths}

    assert {name.split("/")[0] for name in names} == {"brainldm", info}
    assert f"{info}/licenses/LICENSE" in names
    assert "brainldm/configs/added.py" in names
    in_package = {name for name in names if name.startswith("brainldm/")}
    assert in_package == files("brainldm") | {f"brainldm/{name}" for name in files("configs")}
    assert "brainldm = brainldm.cli:main" in entry_points


def test_importing_the_package_does_not_import_jax():
    code = "import sys, brainldm; sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr or "import brainldm pulls in jax, flax or numpy"


# ---- banned names: private, deprecated, slow to start, unsafe or wrong for this package

BANS = [rule for rule in SETTINGS["tool"]["ruff"]["lint"]["select"] if rule.startswith(("TID", "S"))]
VIOLATIONS = (
    "from jax._src import core",
    "import jax\nx = jax._src",
    "import jax.numpy as jnp\nx = jnp.empty((2, 3))",
    "import jax\nx = jax.numpy.empty(2)",
    "import flax.linen as nn\ny = nn.ConvTranspose(8, (3, 3, 3))",
    "from flax.linen import Conv, ConvTranspose",
    "import jax\ny = jax.image.resize(1, 2, 'linear')",
    "from jax import image",
    "import jax\nf = jax.pmap(len)",
    "from jax import jit, pmap",
    "import tensorflow as tf",
    "from tensorflow.io import gfile",
    "import pickle\nx = pickle.load(open('f'))",
    "from pickle import loads",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import os\nos.system('ls')",
    "x = eval(input())",
)
ALLOWED = (
    "import jax\nshape = jax.eval_shape(len, [1])",
    "network = object()\nnetwork.eval()",
    "import numpy as np\nx = np.empty(3)",
    "from PIL import Image\nImage.new('L', (2, 2)).resize((64, 64))",
    "from tensorboardX import SummaryWriter",
)


def ruff(*paths: Path) -> dict[str, set[str]]:
    """File name -> the rules among the bans that it breaks, by this project's settings."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", ROOT / "pyproject.toml"]
    command += ["--select", ",".join(BANS), "--output-format", "json", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, set[str]] = {}
    for entry in json.loads(done.stdout):
        found.setdefault(Path(entry["filename"]).name, set()).add(entry["code"])
    return found


def test_bans_catch_each_violation_and_spare_what_is_allowed(tmp_path):
    for kind, lines in (("bad", VIOLATIONS), ("good", ALLOWED)):
        for number, text in enumerate(lines):
            (tmp_path / f"{kind}_{number}.py").write_text(text + "\n")
    assert set(ruff(tmp_path)) == {f"bad_{number}.py" for number in range(len(VIOLATIONS))}


def test_nothing_banned_is_in_the_package():
    assert ruff(ROOT / "brainldm", ROOT / "configs") == {}


def test_no_mesh_is_entered_as_a_context():
    """Deprecated in JAX, and no rule of ruff knows it."""

    def is_mesh(node: ast.expr) -> bool:
        return (isinstance(node, ast.Name) and node.id == "mesh") or (
            isinstance(node, ast.Attribute) and node.attr == "mesh"
        )

    def entered(text: str) -> list[int]:
        withs = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.With))
        return [node.lineno for node in withs if any(is_mesh(item.context_expr) for item in node.items)]

    assert entered("with mesh:\n    pass\nwith self.mesh, other():\n    pass\n") == [1, 3]
    assert entered("with jax.set_mesh(mesh):\n    pass\nwith open(mesh_file):\n    pass\n") == []
    for path in (ROOT / "brainldm").rglob("*.py"):
        assert not entered(path.read_text()), path


# ---- launch scripts


@pytest.mark.parametrize("script", [*SCRIPTS, "launch/lib.sh"])
def test_script_is_valid_bash(script):
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_executable_and_stops_on_errors(script):
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in path.read_text()


@pytest.mark.parametrize("script", ["launch/demo.sh", "launch/test.sh"])
def test_script_refuses_an_unusable_python_with_one_clear_line(script, tmp_path):
    environment = {
        **os.environ,
        "BRAINLDM_VENV": str(tmp_path / "venv"),
        "PYTHON": str(tmp_path / "no-such-python"),
    }
    done = subprocess.run([ROOT / script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"error: PYTHON={tmp_path}/no-such-python is not a working Python >= 3.11.\n"
    assert list(tmp_path.iterdir()) == []
