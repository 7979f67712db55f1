"""What a training stage is to the loop, to planning and to whoever restores its state."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import grain.python as grain
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from brainldm.data.codec import Codec
from brainldm.datasets.bids import Excluded
from brainldm.parallel.mesh import (
    AXES,
    VOLUMES,
    check_batch_size,
    data_only_mesh,
    make_mesh,
    num_batch_shards,
    replicated,
)
from brainldm.parallel.sharding import Sharding, abstract_like
from brainldm.volumes.grids import training_grid

IMAGES = 4
"""Brains in the images that a run writes."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to compile, the shapes that it is given (with shardings), and how many rows its batch has.

    `state` is the part of the arguments that stays on the devices between calls: training state or parameters.
    """

    function: Callable
    arguments: tuple
    batch: int
    state: Any
    out_shardings: Any = None
    donate: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Figures by name ("loss" of the eval "validation" decides which checkpoint is the best), and images by name."""

    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    images: dict[str, Image.Image] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Eval:
    """A look at a state, every `every` steps and at the end (0: never)."""

    every: int
    run: Callable[[Any], EvalResult]


@dataclasses.dataclass(frozen=True)
class LoadedStage:
    """A stage with its data, ready to train.

    `init()` makes a fresh state, and `begin(state)`, outside of programs, of it what training begins with. `frozen` are
    the arrays that train_step(state, batch, frozen) does not train. `train` gives batches; `names` are the scans that a
    batch's "index" points to; `excluded` is what of the dataset was left out. `run_info` goes into run.json, the evals'
    figures into metrics.jsonl under their names.
    """

    init: Callable[[], Any]
    frozen: Any
    train: grain.MapDataset
    names: list[str]
    evals: dict[str, Eval]
    run_info: dict[str, Any]
    excluded: tuple[Excluded, ...] = ()
    begin: Callable[[Any], Any] = lambda state: state


class Stage(abc.ABC):
    """A stage of training. All but `load` follows from the config and the mesh alone: nothing is read, no array made.

    `mesh` holds the state and the batches; `volume_mesh` holds volumes and may split them. Raises UserError for rules
    of sharding that cannot be understood.
    """

    name: ClassVar[str]
    program_names: ClassVar[tuple[str, ...]]
    """The programs of the stage, its training step first."""
    splits_volumes: ClassVar[bool]
    """Whether the training step can split volumes in space. One that cannot takes all devices for its batch."""

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        self.config, self.volume_mesh = config, mesh
        self.mesh = mesh if self.splits_volumes else data_only_mesh(mesh)
        self.sharding = Sharding(config.mesh, self.mesh)

    # checks

    def check(self) -> None:
        """Raise UserError when a batch cannot be split evenly over the mesh."""
        check_batch_size(self.config.batch_size // self.config.accumulation_steps, self.mesh)

    # state and step

    @abc.abstractmethod
    def state_shapes(self) -> Any:
        """The shapes and types of a training state."""

    @abc.abstractmethod
    def train_step(self, state: Any, batch: dict, frozen: Any) -> tuple[Any, dict[str, jax.Array]]:
        """The next state, and metrics (scalars) with "loss" among them; pure."""

    def state_shardings(self, shapes: Any) -> Any:
        """Where the arrays of a state lie. Raises UserError for a rule that decides about none of them."""
        return self.sharding.state(shapes)

    # data and evals

    @abc.abstractmethod
    def load(self, workdir: Path) -> LoadedStage:
        """Read the dataset and what else training needs. Raises UserError when something of it cannot be used."""

    # programs, for planning

    def program(self, name: str, batch: int | None = None) -> Program:
        """One of `program_names`, with `batch` rows in all.

        None: the batch size of the config for "train", elsewhere one row for each shard of a batch.
        """
        return getattr(self, f"{name}_program")(batch)

    @abc.abstractmethod
    def train_program(self, batch: int | None = None) -> Program:
        """The training step."""

    def step_program(self, arrays: dict[str, Any], frozen: Any, batch: int) -> Program:
        """The training step on a batch of these shapes."""
        shapes = self.state_shapes()
        shardings = self.state_shardings(shapes)
        state = abstract_like(shapes, shardings)
        return Program(self.train_step, (state, arrays, frozen), batch, state, (shardings, None), donate=(0,))

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """Voxels of the volumes of a run."""
        return training_grid(self.config.data.spacing_mm).shape


class LatentStage(Stage):
    """A stage with an autoencoder, which it trains or takes its latents from."""

    @property
    @abc.abstractmethod
    def codec(self) -> Codec:
        """The autoencoder of the run, on `volume_mesh`."""

    def encode_program(self, batch: int | None = None) -> Program:
        """From volumes to latents."""
        codec, batch = self.codec, batch or num_batch_shards(self.volume_mesh)
        params = abstract_like(codec.params_shapes, replicated(self.volume_mesh))
        image = array_shape((batch, *codec.volume_shape, 1), self.volume_mesh, VOLUMES)
        return Program(codec.encode, (params, image), batch, params)

    def decode_program(self, batch: int | None = None) -> Program:
        """From latents to volumes."""
        codec, batch = self.codec, batch or num_batch_shards(self.volume_mesh)
        params = abstract_like(codec.params_shapes, replicated(self.volume_mesh))
        latents = array_shape((batch, *codec.latent_shape), self.volume_mesh, VOLUMES)
        return Program(codec.decode, (params, latents), batch, params)


def mesh_of(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `config.mesh` asks for on `devices` (default: all of the run). Raises UserError as make_mesh."""
    return make_mesh({axis: config.mesh[axis] for axis in AXES}, devices)


def array_shape(shape: tuple[int, ...], mesh: Mesh, spec: P, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """The shape of an array on a mesh."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def whole_batches(rows: int, mesh: Mesh) -> int:
    """The smallest batch of `rows` rows or more that can be split over a mesh."""
    shards = num_batch_shards(mesh)
    return -(-rows // shards) * shards
