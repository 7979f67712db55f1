"""Generation with a stand-in for the networks, so that what is tested is the files, in killed processes too."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.generation import dataset, regenerate
from brainldm.generation.conditions import draw_conditions
from brainldm.generation.dataset import Settings, generate
from brainldm.runtime.shards import WHOLE
from brainldm.volumes.grids import Grid

SHAPE = (8, 9, 10)
SHA256 = "ab" * 32


SMALL = Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))


def fake_model(grid=SMALL):
    """What `generate` looks at of a model."""
    spec = SimpleNamespace(
        covariates=Covariates(),
        grid=grid,
        provenance={"dataset": "nobody"},
        schedule={},
        kind="latent_diffusion",
        takes_subsets=False,
        sampling=Sampling(2),
        demography=None,
        zero_background=False,
    )
    return SimpleNamespace(spec=spec, sha256=SHA256)


def fake_sampler(shape=SHAPE, seconds=0.0, bad=()):
    """Volumes that depend on seed, index and conditions; those of the indices `bad` are not finite."""

    def make_sampler(model, sampling, *, batch_size, finish=True):
        def sample(seed, indices, conditions):
            time.sleep(seconds)
            volumes = [np.random.default_rng([seed, int(index)]).random(shape, np.float32) for index in indices]
            volumes = [volume * (0.5 + 0.4 * c[0]) for volume, c in zip(volumes, conditions, strict=True)]
            return np.stack([v * np.nan if i in bad else v for i, v in zip(indices, volumes, strict=True)])

        return sample

    return make_sampler


def use_fake_sampler(**options) -> None:
    """Let this process draw with the stand-in."""
    dataset.make_sampler = regenerate.make_sampler = fake_sampler(**options)


def draw(out: Path, count: int = 10, shard=WHOLE, seconds: float = 0.0, **options) -> None:
    """`count` brains of seed 3 in batches of 2, with conditions that are drawn."""
    use_fake_sampler(seconds=seconds)
    model = fake_model()
    verify = options.pop("verify", False)
    settings = Settings(Sampling(2), seed=3, batch_size=2, **options)
    rows = draw_conditions(model.spec.covariates, count, 3, {})
    generate(model, out, rows, settings, shard=shard, verify=verify)


def draw_or_stop(out: Path, count: int, shard, seconds: float) -> None:
    """`draw` as a process of its own."""
    draw(out, count, shard, seconds)


def draw_archive(out: Path, shard, seconds: float) -> None:
    """`draw` of ten brains into tars, as a process of its own."""
    draw(out, 10, shard, seconds, archive="tar")
