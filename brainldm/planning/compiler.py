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
from brainldm.runtime.errors import BrainldmError, UserError

WITHOUT_LIBTPU = (
    "Planning for a TPU needs its compiler, libtpu, which runs on a machine without one, and it is not installed here. "
    "Install it with: pip install 'brainldm[plan]' (or pip install 'libtpu==0.0.42.*'). "
    "Without it, --devices N plans for N virtual devices."
)


class Compiler:
    """Compiles programs of one config for one target. Use as a context manager.

    `target` is a slice of TPUs or a number of virtual CPU devices. Raises UserError without libtpu where it is needed,
    and when the config does not fit the target; BrainldmError when the compiling process fails.
    """

    def __init__(self, config: ml_collections.ConfigDict, target: Topology | int):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
        flags = re.sub(r"--\w+host_platform_device_count=\d+", "", environment.pop("XLA_FLAGS", ""))
        environment |= {"XLA_FLAGS": flags} if flags.strip() else {}
        description: dict[str, Any] = {}
        if isinstance(target, Topology):
            if importlib.util.find_spec("libtpu") is None:
                raise UserError(WITHOUT_LIBTPU)
            # libtpu lets one process at a time have the TPUs of a machine; this one only compiles.
            environment |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_NUM_CPU_DEVICES": "1"}
            description = {"topology": target.name, "chips_per_host": list(target.chips_per_host)}
        else:
            environment |= {"JAX_NUM_CPU_DEVICES": str(target)}
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
        self, program: str, batch: int | None = None, changes: dict[str, Any] | None = None, full: bool = False
    ) -> dict[str, Any]:
        """Compile a program; see worker.compile_program for the answer."""
        return self._ask({"program": program, "batch": batch, "changes": changes or {}, "full": full})

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
