"""What this machine and this installation can do, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from packaging.version import Version

from brainldm import __version__
from brainldm.parallel.devices import CUDA_BUILD, unused_gpu
from brainldm.planning.advice import device_memory
from brainldm.planning.ladder import first_fitting, kept_ladder
from brainldm.planning.ladder_report import preset_text
from brainldm.runtime.compiled_programs import cache_home, private_folder
from brainldm.runtime.errors import BrainldmError
from brainldm.runtime.format import format_bytes

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "nibabel", "ml-collections", "clu", "numpy")

KNOWN_BAD = {"jax": {"0.10.1": "gives wrong results"}}
"""Versions that do not work, and why."""

_EXTRAS = {
    "SimpleITK": ("`prepare` of scans that are not in MNI152 space", "pip install 'brainldm[prepare]'"),
    "h5py": ("`measure` with SynthSeg's Keras weights", "pip install 'brainldm[synthseg]'"),
}
_WORKS = {
    "generate": "generate",
    "train_autoencoder": "train the autoencoder",
    "train_diffusion": "train the diffusion model",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do where that is wrong ("" where it is not)."""

    what: str
    found: str
    to_do: str = ""


def examine() -> list[Finding]:
    """Everything that `brainldm doctor` says."""
    findings = [
        Finding("brainldm", __version__),
        _python(),
        *map(_package, PACKAGES),
        *_extras(),
        *_devices(),
        Finding("memory of the machine", format_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))),
        Finding("processors", f"{os.cpu_count()} ({platform.machine()})"),
        _cache(),
    ]
    return findings + _full_size(device_memory())


def _python() -> Finding:
    old = sys.version_info < (3, 11)
    return Finding("python", platform.python_version(), "Python 3.11 or newer is needed." if old else "")


def _package(name: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", "Install brainldm again, with its pinned packages: launch/setup.sh")
    bad = KNOWN_BAD.get(name, {}).get(version)
    if bad:
        return Finding(name, version, f"This version {bad}. Install another: launch/setup.sh")
    wanted = _wanted(name)
    if wanted is not None and not wanted(version):
        return Finding(name, version, "Outside the range that brainldm is made for. Install it with launch/setup.sh")
    return Finding(name, version)


def _wanted(name: str) -> Callable[[str], bool] | None:
    """Whether a version is in the range that this package asks for."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("brainldm") or []:
        requirement = Requirement(text)
        if requirement.name == name and requirement.marker is None:
            return lambda version: requirement.specifier.contains(Version(version), prereleases=True)
    return None


def _extras() -> list[Finding]:
    return [
        Finding(name, "installed" if importlib.util.find_spec(name) else f"not installed: only {what} needs it ({how})")
        for name, (what, how) in _EXTRAS.items()
    ]


def _devices() -> list[Finding]:
    try:
        devices = jax.devices()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS")
        hint = f"JAX_PLATFORMS is {asked!r}: unset it, or install what it names." if asked else "Install JAX again."
        return [Finding("devices", str(error).splitlines()[0], hint)]
    kinds = sorted({device.device_kind for device in devices})
    findings = [Finding("devices", f"{len(devices)} x {', '.join(kinds)} ({jax.default_backend()})")]
    if (gpu := unused_gpu()) is not None:
        findings.append(Finding("NVIDIA GPU", f"{gpu}, which JAX does not use", CUDA_BUILD))
    if (memory := device_memory()) is not None:
        findings.append(Finding("memory of the first GPU", format_bytes(memory)))
    return findings


def _cache() -> Finding:
    try:
        folder = private_folder(cache_home() / "brainldm" / "programs")
    except OSError as error:
        text = f"{error.filename}: {error.strerror}; every start compiles anew"
        return Finding("compiled programs", text, "Make the folder yours alone, or set JAX_COMPILATION_CACHE_DIR.")
    size = sum(path.stat().st_size for path in Path(folder).glob("*"))
    return Finding("compiled programs", f"{folder}, {format_bytes(size)}")


def _full_size(memory: float | None) -> list[Finding]:
    """What of the paper's networks at 160x224x160 fits the GPU."""
    if memory is None:
        return [Finding("full size, 160x224x160", "no GPU here; `brainldm plan --ladder` shows what one needs")]
    works = kept_ladder()["works"]
    fitting = {name: first_fitting(work["presets"], memory) for name, work in works.items()}
    return [
        Finding(f"full size: {_WORKS.get(name, name)}", preset_text(preset) if preset else "does not fit this GPU")
        for name, preset in fitting.items()
    ]


def require_sound(findings: list[Finding]) -> None:
    """Raise BrainldmError when something of them is wrong."""
    wrong = [finding.what for finding in findings if finding.to_do]
    if wrong:
        raise BrainldmError(f"Not as it should be: {', '.join(wrong)}. What to do stands beside each.")
