"""Which devices a program runs on: said aloud, never changed in silence."""

from __future__ import annotations

import os
import shutil
import subprocess

import jax

from brainldm.runtime.errors import UserError

CUDA_BUILD = "pip install 'brainldm[cuda13]' (driver 580 or newer) or 'brainldm[cuda12]'"


def refuse_silent_cpu() -> None:
    """Raise UserError when the machine has an NVIDIA GPU that JAX does not see and the user did not choose a platform.

    JAX without its CUDA plug-in falls back to the CPU with no more than a warning.
    """
    gpu = unused_gpu()
    if gpu is not None and not os.environ.get("JAX_PLATFORMS"):
        raise UserError(
            f"This machine has {gpu}, but JAX cannot use it. Install the CUDA build: {CUDA_BUILD}. To run on the CPU "
            "all the same, set JAX_PLATFORMS=cpu."
        )


def unused_gpu() -> str | None:
    """The first NVIDIA GPU of the machine, by its driver, where JAX computes on the CPU; None where there is none."""
    found = jax.default_backend()  # looks for the devices: a platform that is not there is refused here
    if found != "cpu" or not shutil.which("nvidia-smi"):
        return None
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.stdout.splitlines()[0] if listed.returncode == 0 and "GPU" in listed.stdout else None
