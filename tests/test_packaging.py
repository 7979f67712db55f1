"""The package installs as its files say: dependency list and locks agree, the wheel is complete.

Also: names that the code must not use, and the launch scripts. Everything here is offline.
"""

import ast
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
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

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
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
    assert {"brainldm/reports/templates/base.html", "brainldm/reports/templates/style.css"} <= names
    in_package = {name for name in names if name.startswith("brainldm/")}
    assert in_package == files("brainldm") | {f"brainldm/{name}" for name in files("configs")}
    assert "brainldm = brainldm.cli:main" in entry_points


def test_importing_the_package_does_not_import_jax():
    code = "import sys, brainldm; sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr or "import brainldm pulls in jax, flax or numpy"


# ---- banned names: private, deprecated, slow to start, unsafe or wrong for this package

BANNED = {
    "jax._src": r"\bjax\._src\b|\bfrom jax import\b.*\b_src\b",
    "jnp.empty(": r"\b(jnp|jax\.numpy)\.empty\(",
    "with mesh:": r"\bwith\s+([\w.]+\.)?mesh\s*[:,]",
    "nn.ConvTranspose": r"\b(nn|linen)\.ConvTranspose|\bimport\b.*\bConvTranspose",
    "jax.image.resize": r"\bjax\.image\.resize\b|\bfrom jax import\b.*\bimage\b|\bfrom jax\.image import\b",
    "jax.pmap": r"\bjax\.pmap\b|\bfrom jax import\b.*\bpmap\b",
    "tensorflow": r"\btensorflow\b",
    "pickle.load(": r"\bpickle\.loads?\(|\bfrom pickle import\b",
    "shell=True": r"\bshell\s*=\s*True\b",
    "eval(": r"(?<![\w.])eval\(",
}
VIOLATIONS = [
    ("jax._src", "from jax._src import core"),
    ("jax._src", "from jax import lax, _src"),
    ("jnp.empty(", "x = jnp.empty((2, 3))"),
    ("jnp.empty(", "x = jax.numpy.empty(2)"),
    ("with mesh:", "    with mesh:"),
    ("with mesh:", "    with self.mesh:"),
    ("with mesh:", "    with mesh, other():"),
    ("nn.ConvTranspose", "    y = nn.ConvTranspose(8, (3, 3, 3))(x)"),
    ("nn.ConvTranspose", "from flax.linen import Conv, ConvTranspose"),
    ("jax.image.resize", "y = jax.image.resize(x, shape, 'linear')"),
    ("jax.image.resize", "from jax import image"),
    ("jax.pmap", "f = jax.pmap(g)"),
    ("jax.pmap", "from jax import jit, pmap"),
    ("tensorflow", "import tensorflow as tf"),
    ("tensorflow", "from tensorflow.io import gfile"),
    ("pickle.load(", "x = pickle.load(f)"),
    ("pickle.load(", "from pickle import loads"),
    ("shell=True", "subprocess.run(c, shell = True)"),
    ("eval(", "x = eval(text)"),
]
ALLOWED = (
    "shape = jax.eval_shape(init, key)",
    "network.eval()",
    "x = np.empty(3)",
    "image.resize((64, 64))",
    "with jax.set_mesh(mesh):",
    "with open(mesh_file):",
    "from tensorboardX import SummaryWriter",
)


def without_prose(text: str) -> list[str]:
    """The lines of a Python file with comments and docstrings blanked, which may name what they warn of."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            for row in range(first.lineno, first.end_lineno + 1):
                after = lines[row - 1].encode()[first.end_col_offset :] if row == first.end_lineno else b""
                lines[row - 1] = after.decode()
    return lines


def test_only_prose_is_blanked():
    text = (
        'def f(x):\n    """Not jax.pmap.\n\n    See above."""; g = jax.pmap(x)\n'
        '    # jax.pmap\n    h = "#"; y = jax.pmap  # jax.pmap\n    "jax.pmap"\n'
    )
    assert without_prose(text) == [
        "def f(x):",
        "",
        "",
        "; g = jax.pmap(x)",
        "    ",
        '    h = "#"; y = jax.pmap  ',
        '    "jax.pmap"',
    ]


@pytest.mark.parametrize(("name", "line"), VIOLATIONS)
def test_each_ban_catches_its_violations(name, line):
    assert re.search(BANNED[name], line)


@pytest.mark.parametrize("line", ALLOWED)
def test_bans_spare_what_is_allowed(line):
    assert not [name for name, pattern in BANNED.items() if re.search(pattern, line)]


@pytest.mark.parametrize("name", BANNED)
def test_banned_name_is_absent(name):
    sources = [path for folder in ("brainldm", "configs") for path in (ROOT / folder).rglob("*.py")]
    assert ROOT / "brainldm/__init__.py" in sources
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources
        for number, line in enumerate(without_prose(path.read_text()), start=1)
        if re.search(BANNED[name], line)
    ]
    assert not found, "\n".join(found)


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
