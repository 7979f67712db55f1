"""Folders of JSON and safetensors, checked when they are read: what all released models have in common.

model.json        what the model is, with its `kind`; without one a latent diffusion model
*.safetensors     parameters, names are paths in the parameter tree joined by "/"
SHA256SUMS        of the other files
README.md         model card
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from brainldm import __version__
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import SUMS, read_file, read_json, read_sums, verify_sums, write_atomically, write_sums
from brainldm.runtime.lock import new_folder
from brainldm.runtime.rules import shown

FORMAT_VERSION = 1
SPEC, CARD = "model.json", "README.md"

LATENT_DIFFUSION, BRAIN_AGE = "latent_diffusion", "brain_age"
KINDS = {
    LATENT_DIFFUSION: "a latent diffusion model",
    "lsgan": "an LSGAN, our baseline",
    "vae_gan": "a VAE-GAN, our baseline",
    BRAIN_AGE: "a brain-age network",
}
"""Kinds of models, in words."""

_T = TypeVar("_T")


def write_folder(
    folder: str | Path, spec: Mapping[str, Any], trees: Mapping[str, Any], card: str, half: bool = False
) -> str:
    """Write model.json, a file of parameters for each of `trees` by its name, and the card; return the folder's hash.

    With `half` the parameters of two and more axes are rounded to float16. Raises UserError when the folder holds
    something already, and where float16 cannot hold a parameter.
    """
    if half:
        trees = {name: rounded(tree) for name, tree in trees.items()}
    with new_folder(folder) as folder:
        contents = {
            SPEC: (json.dumps(spec, indent=1) + "\n").encode(),
            **{name: safetensors.numpy.save(flatten(tree)) for name, tree in trees.items()},
            CARD: card.encode(),
        }
        for name, content in contents.items():
            write_atomically(folder / name, content)
        sums = write_sums(folder, list(contents))  # last: a folder without it is not finished
        return hashlib.sha256(sums).hexdigest()


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model folder that was opened: the content of model.json, and the hash of SHA256SUMS, which stands for every
    file of it."""

    path: Path
    kind: str
    content: dict[str, Any]
    sha256: str
    sums: dict[str, str]

    def described(self, read: Callable[[dict[str, Any]], _T]) -> _T:
        """`read(content)`. Raises UserError where the content is not what it wants."""
        try:
            return read(self.content)
        except UserError as error:
            raise UserError(f"{self.path / SPEC}: {error}") from error
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.path / SPEC}: not a description this version understands ({error!r}).") from error

    def params(self, name: str, shapes: Any) -> Any:
        """The parameters of the file `name`. Raises UserError when it was changed, or they do not have `shapes`."""
        _verify(self.path, self.sums, name)
        return _read(self.path / name, shapes)


def open_folder(folder: str | Path, *kinds: str) -> ModelFolder:
    """Open a model folder of one of `kinds` (none: of any).

    Raises UserError when there is none, model.json or the card was changed, or it is of another format version or kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. A model folder is made by `brainldm export` or `brainldm convert`.")
    try:
        sums = read_file(folder / SUMS)
    except UserError as error:
        raise UserError(
            f"{folder}: no readable {SUMS}, so this is no (finished) model folder. Make it with `brainldm export`."
        ) from error
    listed = read_sums(sums)
    for name in (SPEC, CARD) if CARD in listed else (SPEC,):
        _verify(folder, listed, name)
    content = read_json(folder / SPEC)
    form, version = content.get("format"), content.get("format_version")
    if form != "brainldm-model" or version != FORMAT_VERSION:
        raise UserError(
            f"{folder / SPEC}: format {shown(form)} version {shown(version)}; this "
            f"brainldm ({__version__}) reads 'brainldm-model' version {FORMAT_VERSION}. Use a matching version."
        )
    kind = content.get("kind", LATENT_DIFFUSION)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{folder / SPEC}: a model of the kind {shown(kind)}, and this brainldm ({__version__}) knows "
            f"{', '.join(KINDS)}. Use a matching version."
        )
    if kinds and kind not in kinds:
        wanted = " or ".join(KINDS[name] for name in kinds)
        raise UserError(f"{folder}: holds {KINDS[kind]}, and {wanted} is wanted here. Name the folder of one.")
    return ModelFolder(folder, kind, content, hashlib.sha256(sums).hexdigest(), listed)


def _verify(folder: Path, sums: Mapping[str, str], name: str) -> None:
    problem = verify_sums(folder, sums, (name,)).get(name)
    if problem is None:
        return
    path = folder / name
    if problem == "missing":
        raise UserError(f"{path}: missing. Copy the model folder again, whole.")
    raise UserError(
        f"{path}: its SHA-256 is not the one in {SUMS}. The file was changed or damaged after it was written. Copy "
        "the model folder again."
        if problem == "changed"
        else f"{path}: {problem}. Check its permissions."
    )


def flatten(params: Any) -> dict[str, np.ndarray]:
    """A parameter tree as {"path/of/names": contiguous array}."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {name: np.ascontiguousarray(array) for name, array in flat.items()}


def rounded(params: Any) -> Any:
    """A parameter tree with its arrays of two and more axes, which make up its size, in float16.

    Raises UserError where one has a value that float16 cannot hold.
    """

    def round_one(array: np.ndarray) -> np.ndarray:
        array = np.asarray(array)
        if array.ndim < 2:
            return array
        if np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
            raise UserError("A parameter is too large for float16. Keep the parameters in float32.")
        return array.astype(np.float16)

    return jax.tree.map(round_one, params)


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
    return flax.traverse_util.unflatten_dict({name: _widened(array) for name, array in tensors.items()}, sep="/")


def _widened(array: np.ndarray) -> np.ndarray:
    """Networks keep their parameters in float32 and cast what they compute in less themselves."""
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array
