"""The released form of a model: a folder of JSON and safetensors, never code or pickles.

model.json                 architectures, schedule, prediction, latent scale, image grid, conditions and whose they
                           were, provenance
autoencoder.safetensors    parameters, names are paths in the parameter tree joined by "/"
unet.safetensors
SHA256SUMS                 of the three files above and README.md
README.md                  model card
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from brainldm import __version__
from brainldm.datasets.covariates import Covariates
from brainldm.datasets.demography import Demography
from brainldm.diffusion.sampling import Sampling
from brainldm.models.autoencoder import AutoencoderKL
from brainldm.models.build import build
from brainldm.models.unet import DiffusionUNet
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import SUMS, read_json, read_sums, verify_sums, write_atomically, write_sums
from brainldm.runtime.lock import new_folder
from brainldm.volumes.grids import Grid

FORMAT_VERSION = 1
AUTOENCODER, UNET, SPEC, CARD = (
    "autoencoder.safetensors",
    "unet.safetensors",
    "model.json",
    "README.md",
)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything about a model but its weights; what model.json holds.

    `autoencoder` and `unet` are constructor arguments (dtype by name), `schedule` those of make_schedule,
    `sampling` how samples are drawn by default, `demography` whose conditions it was trained on (None: not known).
    """

    autoencoder: dict[str, Any]
    unet: dict[str, Any]
    schedule: dict[str, Any]
    prediction: str
    latent_scale: float
    sampling: Sampling
    grid: Grid
    covariates: Covariates
    provenance: dict[str, Any]
    demography: Demography | None = None

    def make_autoencoder(self, num_devices: int = 1) -> AutoencoderKL:
        """The Linen module, for programs whose arrays are sharded over `num_devices`."""
        return build("autoencoder", self.autoencoder, num_devices=num_devices)

    def make_unet(self, num_devices: int = 1) -> DiffusionUNet:
        """The Linen module, for programs whose arrays are sharded over `num_devices`."""
        return build("unet", self.unet, num_devices=num_devices)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, [d, h, w, C]."""
        factor = 2 ** self.make_autoencoder().halvings
        return (*(side // factor for side in self.grid.shape), self.autoencoder["latent_channels"])

    def to_json(self) -> dict[str, Any]:
        """The content of model.json."""
        return {
            "format": "brainldm-model",
            "format_version": FORMAT_VERSION,
            "autoencoder": self.autoencoder,
            "unet": self.unet,
            "schedule": self.schedule,
            "prediction": self.prediction,
            "latent_scale": self.latent_scale,
            "latent_shape": self.latent_shape,
            "sampling": self.sampling.to_json(),
            "image": {"shape": self.grid.shape, "affine": self.grid.affine.tolist(), "orientation": "RAS"},
            "covariates": self.covariates.to_json(),
            "provenance": self.provenance,
            **({} if self.demography is None else {"demography": self.demography.to_json()}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelSpec:
        """The reverse of `to_json`."""
        covariates, demography = Covariates.from_json(content["covariates"]), content.get("demography")
        grid = Grid(tuple(content["image"]["shape"]), np.asarray(content["image"]["affine"], np.float64))
        return cls(
            grid=grid,
            covariates=covariates,
            demography=None if demography is None else Demography.from_json(demography, covariates),
            sampling=Sampling(**content["sampling"]),
            **{
                field.name: content[field.name]
                for field in dataclasses.fields(cls)
                if field.name not in ("grid", "covariates", "sampling", "demography")
            },
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. `sha256` is the hash of its SHA256SUMS, so it stands for every file of the folder."""

    spec: ModelSpec
    autoencoder: Any
    unet: Any
    sha256: str


def save_model(folder: str | Path, spec: ModelSpec, autoencoder: Any, unet: Any, card: str) -> str:
    """Write a model folder and return its hash. Raises UserError when the folder holds something already."""
    with new_folder(folder) as folder:
        contents = {
            SPEC: (json.dumps(spec.to_json(), indent=1) + "\n").encode(),
            AUTOENCODER: safetensors.numpy.save(flatten(autoencoder)),
            UNET: safetensors.numpy.save(flatten(unet)),
            CARD: card.encode(),
        }
        for name, content in contents.items():
            write_atomically(folder / name, content)
        sums = write_sums(folder, list(contents))  # last: a folder without it is not finished
        return hashlib.sha256(sums).hexdigest()


def load_model(folder: str | Path) -> Model:
    """Read a model folder, every file checked against SHA256SUMS and every parameter against its architecture.

    Raises UserError when something is missing, changed, of another format version, or does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. A model folder is made by `brainldm export` or `brainldm convert`.")
    try:
        sums = (folder / SUMS).read_bytes()
    except OSError as error:
        raise UserError(
            f"{folder}: no readable {SUMS}, so this is no (finished) model folder. Make it with `brainldm export`."
        ) from error
    for name, problem in verify_sums(folder, read_sums(sums), (SPEC, AUTOENCODER, UNET)).items():
        path = folder / name
        if problem == "missing":
            raise UserError(f"{path}: missing. Copy the model folder again, whole.")
        raise UserError(
            f"{path}: its SHA-256 is not the one in {SUMS}. The file was changed or damaged after it was written. Copy "
            "the model folder again."
            if problem == "changed"
            else f"{path}: {problem}. Check its permissions."
        )
    content = read_json(folder / SPEC)
    if content.get("format") != "brainldm-model" or content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder / SPEC}: format {content.get('format')!r} version {content.get('format_version')!r}; this "
            f"brainldm ({__version__}) reads 'brainldm-model' version {FORMAT_VERSION}. Use a matching version."
        )
    try:
        spec = ModelSpec.from_json(content)
        autoencoder, unet = spec.make_autoencoder(), spec.make_unet()
    except UserError as error:
        raise UserError(f"{folder / SPEC}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / SPEC}: not a description this version understands ({error!r}).") from error
    return Model(
        spec=spec,
        autoencoder=_read(folder / AUTOENCODER, autoencoder_shapes(autoencoder, spec.grid)),
        unet=_read(folder / UNET, unet_shapes(unet, spec.latent_shape, spec.covariates.width)),
        sha256=hashlib.sha256(sums).hexdigest(),
    )


def autoencoder_shapes(autoencoder: AutoencoderKL, grid: Grid) -> Any:
    """The parameter tree of the autoencoder as shapes."""
    image = jax.ShapeDtypeStruct((1, *grid.shape, 1), jnp.float32)
    return jax.eval_shape(autoencoder.init, jax.random.key(0), image)["params"]


def unet_shapes(unet: DiffusionUNet, latent_shape: tuple[int, ...], condition_dim: int) -> Any:
    """The parameter tree of the denoising network as shapes."""
    return jax.eval_shape(
        unet.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, *latent_shape), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, condition_dim), jnp.float32),
    )["params"]


def flatten(params: Any) -> dict[str, np.ndarray]:
    """A parameter tree as {"path/of/names": contiguous array}."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {name: np.ascontiguousarray(array) for name, array in flat.items()}


def check_params(params: Any, shapes: Any, where: str) -> None:
    """Raise UserError naming the first parameters that are absent, unknown or of another shape."""
    have, want = flatten_shapes(params), flatten_shapes(shapes)
    absent, unknown = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    wrong = sorted(name for name in want.keys() & have.keys() if want[name] != have[name])
    if absent or unknown or wrong:
        raise UserError(
            f"{where}: the parameters do not fit the network: {len(absent)} missing {absent[:3]}, {len(unknown)} "
            f"unknown {unknown[:3]}, {len(wrong)} of another shape {[(n, have[n], want[n]) for n in wrong[:3]]}."
        )


def flatten_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"path/of/names": shape} of a parameter tree."""
    return {name: tuple(x.shape) for name, x in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def params_sha256(params: Any) -> str:
    """A hash of a parameter tree: names, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(params).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: Path, shapes: Any) -> Any:
    try:
        tensors = safetensors.numpy.load_file(path)
    except Exception as error:  # the safetensors package raises its own kinds
        raise UserError(f"{path}: not a readable safetensors file ({error}).") from error
    check_params(tensors, shapes, str(path))
    wrong = sorted(name for name, array in tensors.items() if not jnp.issubdtype(array.dtype, jnp.floating))
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} parameters are no floating-point numbers, {wrong[0]} is {tensors[wrong[0]].dtype}. "
            "These are not the weights of this model."
        )
    return flax.traverse_util.unflatten_dict(tensors, sep="/")
