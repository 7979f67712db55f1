"""A stage with a network of one number, which compiles in no time.

The variable FAKE makes process 1 misbehave after some steps: "stuck" waits for ever, "bad" meets a scan that it cannot
read, "bug" raises KeyError.
"""

import os
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from brainldm.data.pipeline import LatentSource, batches
from brainldm.parallel.mesh import replicated
from brainldm.runtime.errors import UserError
from brainldm.training import stages


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    ema: dict


class Source(LatentSource):
    """Eight latents, one of which may be a trap."""

    def __init__(self):
        super().__init__(np.arange(8, dtype=np.float32)[:, None], np.zeros((8, 1)))
        self.drawn = 0

    def __getitem__(self, index):
        self.drawn += 1
        time.sleep(0.005)
        if jax.process_index() == 1 and self.drawn > 40:
            match os.environ.get("FAKE"):
                case "stuck":
                    time.sleep(3600)
                case "bad":
                    raise UserError("sub-7: cannot be read.")
                case "bug":
                    raise KeyError("a bug")
        return super().__getitem__(index)


def train_step(state, batch, frozen):
    loss = jnp.mean((state.params["w"] - batch["latent"]) ** 2)
    params = {"w": state.params["w"] - 0.01 * jnp.mean(state.params["w"] - batch["latent"], 0)}
    return State(state.step + 1, params, params), {"loss": loss}


def make_stage(config, mesh, workdir):
    return stages.Stage(
        mesh=mesh,
        shardings=lambda shapes: jax.tree.map(lambda _: replicated(mesh), shapes),
        init=lambda: State(jnp.zeros((), jnp.int32), {"w": jnp.zeros(1)}, {"w": jnp.zeros(1)}),
        train_step=train_step,
        frozen=None,
        train=batches(
            Source(),
            batch_size=config.batch_size,
            seed=0,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        names=[f"sub-{i}" for i in range(8)],
        validate=lambda state: {"loss": 1.0},
        pictures=lambda state: {},
        facts={"scans_training": 8, "scans_validation": 1},
    )
