"""Which devices a program runs on: said aloud, never changed in silence."""

from __future__ import annotations

import os
import shutil
import subprocess

import jax

from brainldm.runtime.errors import UserError


def refuse_silent_cpu() -> None:
    """Raise UserError when the machine has an NVIDIA GPU that JAX does not see and the user did not choose a platform.

    JAX without its CUDA plug-in falls back to the CPU with no more than a warning.
    """
    found = jax.default_backend()  # looks for the devices: a platform that is not there is refused here
    if os.environ.get("JAX_PLATFORMS") or found != "cpu" or not shutil.which("nvidia-smi"):
        return
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    if listed.returncode == 0 and "GPU" in listed.stdout:
        raise UserError(
            f"This machine has {listed.stdout.splitlines()[0]}, but JAX cannot use it. Install the CUDA build: "
            "pip install 'brainldm[cuda13]' (driver 580 or newer) or 'brainldm[cuda12]'. To run on the CPU all the "
            "same, set JAX_PLATFORMS=cpu."
        )
