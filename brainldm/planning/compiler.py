"""The compiling process, seen from the one that asks."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_collections

from brainldm.planning.chips import Topology
from brainldm.planning.gpus import Gpus
from brainldm.runtime.errors import BrainldmError, UserError

WITHOUT_LIBTPU = (
    "Planning for a TPU needs its compiler, libtpu, which runs on a machine without one, and it is not installed here. "
    "Install it with: pip install 'brainldm[plan]' (or pip install 'libtpu==0.0.42.*'). "
    "Without it, --devices N plans for N virtual devices."
)


WITHOUT_CUDA = (
    "Planning for a GPU needs XLA's compiler for it, which runs on a machine without one, and it is not installed "
    "here. Install it with: pip install 'brainldm[plan-gpu]' (the CUDA plug-in of JAX and NVIDIA's assembler, without "
    "the CUDA libraries), or 'brainldm[cuda13]' where there is a GPU. Without it, --devices N alone plans for N "
    "virtual devices."
)

Target = Topology | Gpus | int
"""A slice of TPUs, GPUs, or a number of virtual CPU devices."""

# Nothing can be timed on a GPU that is not there. Without timing Triton's products have no tiling for some of the
# shapes; the library's are taken in their place.
_WITHOUT_GPU = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


class Compiler:
    """Compiles programs of one config for one target. Use as a context manager.

    Raises UserError without the compiler that the target needs, and when the config does not fit the target;
    BrainldmError when the compiling process fails.
    """

    def __init__(self, config: ml_collections.ConfigDict, target: Target):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
        flags = re.sub(r"--\w+host_platform_device_count=\d+", "", environment.pop("XLA_FLAGS", ""))
        description: dict[str, Any] = {}
        if isinstance(target, Gpus):
            if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
                raise UserError(WITHOUT_CUDA)
            flags += f" {_WITHOUT_GPU}"
            environment |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_NUM_CPU_DEVICES": "1"}
            description = {"topology": target.topology, "gpu": target.description}
        elif isinstance(target, Topology):
            if importlib.util.find_spec("libtpu") is None:
                raise UserError(WITHOUT_LIBTPU)
            # libtpu lets one process at a time have the TPUs of a machine; this one only compiles.
            environment |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_NUM_CPU_DEVICES": "1"}
            description = {"topology": target.name, "chips_per_host": list(target.chips_per_host)}
        else:
            environment |= {"JAX_NUM_CPU_DEVICES": str(target)}
        environment |= {"XLA_FLAGS": flags.strip()} if flags.strip() else {}
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "brainldm.planning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            answer = self._ask({"target": description, "config": json.loads(config.to_json())})
        except BaseException:
            self._end()
            raise
        self.devices, self.kind = answer["devices"], answer["kind"]

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def run(
        self,
        program: str,
        batch: int | None = None,
        changes: dict[str, Any] | None = None,
        full: bool = False,
        devices: int | None = None,
    ) -> dict[str, Any]:
        """Compile a program, on the first `devices` of the target; see worker.compile_program for the answer."""
        job = {"program": program, "batch": batch, "changes": changes or {}, "full": full, "devices": devices}
        return self._ask(job)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            last = " ".join(self._log.read()[-600:].split())
            memory = " It probably ran out of memory." if code == -9 else ""
            raise BrainldmError(f"The compiling process ended with code {code}.{memory} Its last words: {last}")
        answer = json.loads(line)
        if "error" in answer:
            raise (UserError if answer["user"] else BrainldmError)(answer["error"])
        return answer
