"""Several training processes on this machine, for tests, and a dataset small enough for them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.population.population import write_population
from brainldm.volumes.grids import training_grid
from brainldm.weights.model_folder import ModelSpec, autoencoder_shapes, save_model, unet_shapes

CONFIG = """
from brainldm.training.config import diffusion_config

def get_config(arg=""):
    config = diffusion_config()
    config.autoencoder = {model!r}
    config.data.path = {data!r}
    config.data.spacing_mm = 4
    config.data.validation_fraction = 0.25
    config.latents.path = {latents!r}
    config.model.channels = (4,)
    config.model.num_res_blocks = 1
    config.model.attention_levels = (False,)
    config.model.num_head_channels = (4,)
    # A norm of single channels takes their biases away: Adam would make updates of what rounding leaves as gradients.
    config.model.norm_num_groups = 2
    config.model.cross_attention = False
    config.model.dtype = "float32"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.ema_decay = 0.9
    config.batch_size = 4
    config.num_steps = 6
    config.every.log = 1
    config.every.validate = 3
    config.every.images = 0
    config.every.checkpoint = 3
    return config
"""


def make_dataset(folder: Path, people: int = 10) -> Path:
    """A dataset, an autoencoder that was never trained, and the config file that uses both, whose path is returned."""
    data, model, latents = folder / "data", folder / "model", folder / "latents"
    write_population(data, people, 4, seed=1)
    covariates = Covariates()
    spec = ModelSpec(
        autoencoder={"channels": (4, 4, 4), "latent_channels": 2, "num_res_blocks": 1, "norm_num_groups": 4}
        | {"norm_eps": 1e-6, "dtype": "float32"},
        unet={"channels": (4,), "num_res_blocks": 1, "attention_levels": (False,), "num_head_channels": (4,)}
        | {"in_channels": 2, "out_channels": 2, "condition_dim": covariates.width, "norm_num_groups": 4}
        | {"cross_attention": False, "dtype": "float32"},
        schedule={"kind": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0205, "num_train_steps": 1000},
        prediction="epsilon",
        latent_scale=1.0,
        sampling=Sampling(2),
        grid=training_grid(4),
        covariates=covariates,
        provenance={},
    )
    rng = np.random.default_rng(0)

    def draw(shapes):
        return jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes)

    autoencoder = draw(autoencoder_shapes(spec.make_autoencoder(), spec.grid))
    unet = draw(unet_shapes(spec.make_unet(), spec.latent_shape, covariates.width))
    save_model(model, spec, autoencoder, unet, "Not trained.\n")
    config = folder / "config.py"
    config.write_text(CONFIG.format(model=str(model), data=str(data), latents=str(latents)))
    return config


REAL = ("-m", "brainldm", "train")
FAKE = (str(Path(__file__).with_name("fake_training.py")),)
ROOT = Path(__file__).resolve().parents[2]


class ProcessGroup:
    """`count` processes of one training run, with one CPU device each. `program` is what Python runs, REAL or FAKE.

    They are told who they are by flags, or with `slurm` by the variables of that launcher.
    """

    def __init__(self, config: Path, workdir: Path, count: int, *flags: str, program=REAL, slurm=False, **environment):
        self.workdir, self.count = Path(workdir), count
        self._logs = config.parent / f"logs_{workdir.name}_{count}_{time.monotonic_ns()}"
        self._logs.mkdir()
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "SLURM_"))},
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
            # Compiling takes most of the time: little of it, and once.
            "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            **environment,
        }
        command = [sys.executable, *program, f"--config={config}", f"--workdir={workdir}", *flags]
        address, job = f"127.0.0.1:{free_port()}", os.getpid()
        self.processes = []
        for index in range(count):
            place = ["--distributed", "--coordinator", address, f"--num-processes={count}", f"--process-id={index}"]
            if slurm:  # as srun tells its tasks
                place = ["--distributed"]
                environment |= {"SLURM_JOB_ID": str(job), "SLURM_NTASKS": str(count), "SLURM_PROCID": str(index)}
                environment |= {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_LOCALID": str(index)}
            with open(self._logs / str(index), "w") as log:
                self.processes.append(
                    subprocess.Popen(
                        command + (place if count > 1 else []),
                        env=environment,
                        cwd=ROOT,
                        stdout=log,
                        stderr=log,
                    )
                )

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, kind, error, trace) -> None:
        workers = [self.worker(index) for index in range(self.count)] if self.count > 1 else []
        for process, worker in zip(self.processes, workers or [None] * self.count, strict=True):
            if process.poll() is None:
                process.kill()
                if worker:
                    try:
                        os.kill(worker, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            process.wait()

    def log(self, index: int) -> str:
        """What a process has written."""
        return (self._logs / str(index)).read_text(errors="replace")

    def last_line(self, index: int) -> str:
        """The last line that a process has written."""
        return self.log(index).strip().splitlines()[-1]

    def worker(self, index: int) -> int | None:
        """The pid of the process that trains, which its supervisor (one of `processes`) looks after."""
        for path in self.workdir.glob(f"processes/*/beat_{index}.json"):
            return json.loads(path.read_text())["pid"]
        return None

    def wait(self, seconds: float = 300) -> list[int]:
        """The exit codes of all."""
        until = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError("\n\n".join(self.log(index)[-3000:] for index in range(self.count))) from None

    def wait_for_step(self, step: int, seconds: float = 300) -> None:
        """Until the metrics of a step are written."""
        until = time.monotonic() + seconds
        path = self.workdir / "metrics.jsonl"
        while time.monotonic() < until and all(process.poll() is None for process in self.processes):
            if path.exists() and f'"step": {step},' in path.read_text():
                return
            time.sleep(0.1)
        raise AssertionError("\n\n".join(self.log(index)[-3000:] for index in range(self.count)))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
