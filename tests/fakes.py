"""What stands in for a stage of training in tests of everything around it: few numbers, which compile in no time."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from brainldm.data.pipeline import LatentSource, batches
from brainldm.parallel.mesh import process_shard
from brainldm.training.stage import Eval, EvalResult, LoadedStage, Stage

SCANS = 16


@flax.struct.dataclass
class State:
    """As that of a stage, with a moving average of its own."""

    step: jax.Array
    params: dict
    ema: dict


class FakeStage(Stage):
    """A stage whose state depends on every batch and its order.

    A subclass may give another `source`, the `losses` that the steps report (the default: what is minimised), or other
    `run_info`.
    """

    name = "autoencoder"
    program_names = ("train",)
    splits_volumes = True
    losses = None
    run_info = {"scans_training": SCANS, "scans_validation": 1, "scans_sha256": "0123"}

    def source(self):
        return LatentSource(np.random.default_rng(0).normal(size=(SCANS, 5)).astype(np.float32), np.zeros((SCANS, 1)))

    def init(self):
        return State(jnp.zeros((), jnp.int32), {"w": jnp.zeros(5)}, {"w": jnp.zeros(5)})

    def state_shapes(self):
        return jax.eval_shape(self.init)

    def train_step(self, state, batch, frozen):
        pull = state.params["w"] - jnp.mean(batch["latent"], 0)
        params = {"w": state.params["w"] - 0.1 * pull}
        ema = {"w": 0.9 * state.ema["w"] + 0.1 * params["w"]}
        loss = jnp.mean(pull**2) if self.losses is None else jnp.asarray(self.losses)[state.step]
        return State(state.step + 1, params, ema), {"loss": loss, "w": params["w"][0]}

    def load(self, workdir):
        process, processes = process_shard(self.mesh)
        source = self.source()
        return LoadedStage(
            init=self.init,
            frozen=None,
            train=batches(
                source,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                process_index=process,
                process_count=processes,
            ),
            names=[f"sub-{i}" for i in range(len(source))],
            evals={"validation": Eval(self.config.every.validate, self.validate)},
            run_info=dict(self.run_info),
        )

    def validate(self, state):
        return EvalResult({"loss": float(jnp.sum(state.ema["w"] ** 2))})

    def codec(self):
        raise NotImplementedError("a fake stage has no autoencoder")

    def train_program(self, batch=None):
        raise NotImplementedError("a fake stage is not planned for")
