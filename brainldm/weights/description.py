"""What a model.json may say. Looked at before anything is made of it: a description comes from strangers.

Every number is finite and every size bounded, so that a description alone can ask for no memory. What the weights need
is bounded by the files that hold them, because their shapes have to be those that are described.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from brainldm.datasets.covariates import NOT_CONDITIONS
from brainldm.diffusion.objectives import PREDICTIONS
from brainldm.diffusion.sampling import Sampling
from brainldm.diffusion.schedule import SCHEDULE_KINDS, make_schedule
from brainldm.models.build import AUTOENCODERS, DTYPES
from brainldm.runtime.errors import UserError
from brainldm.runtime.rules import (
    BLOCKS,
    BOOL,
    COUNT,
    RATE,
    REMAT,
    WIDTH,
    WIDTHS,
    Rule,
    check,
    either,
    is_list,
    is_number,
    list_of,
    number,
    one_of,
    rises,
    shown,
    whole,
)

ZERO_BACKGROUND = "zero_background"
"""Key of model.json: true where there is nothing around the brains that a model learnt from."""

MAX_VOXELS = 2**26
"""Of one volume: more than the training box at 0.5 mm."""
_MAX_CONDITIONS, _MAX_LEVELS = 64, 256
_MAX_DEPTH, _MAX_LEAVES = 8, 10_000

_NETWORK = {"dtype": one_of(*DTYPES), "remat": REMAT}
_GROUP_NORM = {"norm_num_groups": WIDTH, "norm_eps": RATE}
_VOLUMES = {"in_channels": one_of(1), "out_channels": one_of(1)}
_LEVELS = {"channels": WIDTHS}

_AUTOENCODER = {
    **_NETWORK,
    **_GROUP_NORM,
    **_VOLUMES,
    "architecture": one_of(*AUTOENCODERS),
    "num_res_blocks": either(BLOCKS, list_of(BLOCKS, 1, 10)),
    "mirrored": BOOL,
}
_UNET = {
    **_NETWORK,
    **_GROUP_NORM,
    "num_res_blocks": BLOCKS,
    "resblock_updown": BOOL,
    "transformer_num_layers": BLOCKS,
    "concat": BOOL,
    "cross_attention": BOOL,
    "adaptive_norm": BOOL,
    "null_condition": Rule("'learned' or a number", lambda v: v == "learned" or is_number(v)),
    "condition_flags": BOOL,
}
_UNET_NEEDS = {
    **_LEVELS,
    "attention_levels": list_of(BOOL, 1, 10),
    "num_head_channels": list_of(COUNT, 1, 10),
    "condition_dim": whole(0, _MAX_CONDITIONS * _MAX_LEVELS),
    "in_channels": WIDTH,
    "out_channels": WIDTH,
}
_SCHEDULE = {
    "kind": one_of(*SCHEDULE_KINDS),
    "beta_start": number(0, 1, above=True, below=True),
    "beta_end": number(0, 1, above=True, below=True),
    "num_train_steps": whole(1, 1_000_000),
}
_COLUMN = re.compile(r"[^\s=|:\[\]]{1,100}")


def _plain(most: int, least: int = 0) -> Rule:
    """A text that fits into a cell of a table."""
    return Rule(
        f"a text of {least} to {most} characters in one line",
        lambda v: isinstance(v, str) and least <= len(v) <= most and (v.isprintable() or not v),
    )


_CONDITION = {
    "name": Rule("the name of a column, without spaces", lambda v: isinstance(v, str) and bool(_COLUMN.fullmatch(v))),
    "unit": _plain(100),
    "description": _plain(1000),
}
_CONDITION_MAY = {
    "low": number(),
    "high": number(),
    "levels": Rule(
        f"2 to {_MAX_LEVELS} different texts",
        lambda v: v is None or (list_of(_plain(100, 1), 2, _MAX_LEVELS).allows(v) and len(set(v)) == len(v)),
    ),
    "observed": Rule(
        "two numbers, the lower one first", lambda v: v is None or (list_of(number(), 2, 2).allows(v) and v[0] <= v[1])
    ),
}


def check_latent_diffusion(content: Any) -> None:
    """Raise UserError naming what is wrong with the description of a latent diffusion model."""
    _check_keys(content, "autoencoder unet schedule prediction latent_scale sampling image covariates provenance")
    _check_grid(content["image"])
    _check_covariates(content["covariates"])
    _check_provenance(content["provenance"])
    _check_background(content)
    autoencoder, unet = content["autoencoder"], content["unet"]
    check("autoencoder", autoencoder, {**_LEVELS, "latent_channels": WIDTH}, _AUTOENCODER)
    _check_levels("autoencoder", autoencoder)
    blocks = autoencoder.get("num_res_blocks", 1)
    if is_list(blocks) and (
        autoencoder.get("architecture", "kl") == "kl" or len(blocks) != len(autoencoder["channels"])
    ):
        raise UserError(f"autoencoder: num_res_blocks is {shown(blocks)}, which does not fit its levels.")
    check("unet", unet, _UNET_NEEDS, _UNET)
    _check_levels("unet", unet)
    levels, channels = len(unet["channels"]), autoencoder["latent_channels"]
    for key in ("attention_levels", "num_head_channels"):
        if len(unet[key]) != levels:
            raise UserError(f"unet: {key} is {shown(unet[key])}; one value for each of {levels} levels is wanted.")
    if not unet["in_channels"] == unet["out_channels"] == channels:
        raise UserError(
            f"unet: in_channels {unet['in_channels']} and out_channels {unet['out_channels']} are not the "
            f"{channels} latent_channels of the autoencoder."
        )
    check("schedule", content["schedule"], {}, _SCHEDULE)
    make_schedule(**{**content["schedule"], "num_train_steps": 1})  # do the betas belong together?
    check(
        "the description",
        {key: content[key] for key in ("prediction", "latent_scale")},
        {"prediction": one_of(*PREDICTIONS), "latent_scale": number(0, above=True)},
    )
    anything = Rule("anything", lambda v: True)  # `Sampling` looks at the values
    check("sampling", content["sampling"], {}, {field.name: anything for field in dataclasses.fields(Sampling)})


def check_gan(content: Any) -> None:
    """Raise UserError naming what is wrong with the description of an adversarial baseline."""
    _check_keys(content, "kind generator encoder image provenance")
    _check_grid(content["image"])
    _check_provenance(content["provenance"])
    _check_background(content)
    generator, encoder = content["generator"], content["encoder"]
    side = whole(1, MAX_VOXELS)
    check(
        "generator",
        generator,
        {**_LEVELS, "shape": list_of(side, 3, 3), "latent_size": WIDTH},
        {**_NETWORK, **_GROUP_NORM},
    )
    _check_levels("generator", generator)
    shape, halvings = list(content["image"]["shape"]), len(generator["channels"]) - 1
    if list(generator["shape"]) != shape or any(side % 2**halvings for side in shape):
        raise UserError(
            f"generator: its shape {shown(generator['shape'])} is not the image's {shown(shape)}, or cannot be halved "
            f"{halvings} times."
        )
    if content["kind"] not in ("lsgan", "vae_gan"):
        raise UserError(f"a baseline of the kind {shown(content['kind'])}; lsgan or vae_gan is wanted.")
    if (encoder is None) != (content["kind"] == "lsgan"):
        raise UserError("encoder: a VAE-GAN has one, and an LSGAN none (null).")
    if encoder is not None:
        check("encoder", encoder, {**_LEVELS, "outputs": whole(1)}, {**_NETWORK, **_GROUP_NORM})
        _check_levels("encoder", encoder)
        if encoder["outputs"] != 2 * generator["latent_size"]:
            raise UserError(f"encoder: outputs is {encoder['outputs']}; twice the generator's latent_size is wanted.")
        if min(shape) < 2 ** (len(encoder["channels"]) - 1):
            raise UserError(f"encoder: {len(encoder['channels'])} levels leave nothing of {shown(shape)} voxels.")


def check_brain_age(content: Any) -> None:
    """Raise UserError naming what is wrong with the description of a brain-age network."""
    _check_keys(content, "network years held_out image provenance")
    _check_grid(content["image"])
    _check_provenance(content["provenance"])
    check("network", content["network"], _LEVELS, _NETWORK)
    blocks = len(content["network"]["channels"])
    if min(content["image"]["shape"]) < 2**blocks:
        raise UserError(f"network: {blocks} blocks leave nothing of {shown(content['image']['shape'])} voxels.")
    if not list_of(number(), 2, 2).allows(content["years"]) or not rises(content["years"]):
        raise UserError(f"years is {shown(content['years'])}; two ages, the lower one first, are wanted.")
    check("held_out", content["held_out"], {"mae": number(0), "n": number(0)}, {"r": number(-1, 1)})


def _check_keys(content: Any, wanted: str) -> None:
    if not isinstance(content, Mapping):
        raise UserError(f"is {shown(content)}; a table of names and values is wanted.")
    if absent := [key for key in wanted.split() if key not in content]:
        raise UserError(f"not a description this version understands: it has no {absent[0]}.")


def _check_levels(where: str, network: Mapping[str, Any]) -> None:
    groups, channels = network.get("norm_num_groups", 1), network["channels"]
    if odd := [width for width in channels if width % groups]:
        raise UserError(f"{where}: {odd[0]} channels are not a multiple of norm_num_groups {groups}.")
    remat = network.get("remat", False)
    if is_list(remat) and any(level >= len(channels) for level in remat):
        raise UserError(f"{where}: remat is {shown(remat)}; levels from 0 to {len(channels) - 1} are wanted.")


def _check_grid(image: Any) -> None:
    sides, row = list_of(whole(1, MAX_VOXELS), 3, 3), list_of(number(-1e5, 1e5), 4, 4)
    check("image", image, {"shape": sides, "affine": list_of(row, 4, 4)}, {"orientation": one_of("RAS")})
    if (voxels := math.prod(image["shape"])) > MAX_VOXELS:
        raise UserError(f"image: shape {shown(image['shape'])} is {voxels} voxels; at most {MAX_VOXELS} are wanted.")
    affine = np.asarray(image["affine"], np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    upright = spacing.min() >= 0.01 and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-3
    if not upright or list(affine[3]) != [0, 0, 0, 1]:
        raise UserError(f"image: affine {shown(image['affine'])} describes no grid of voxels in mm.")


def _check_covariates(covariates: Any) -> None:
    if not is_list(covariates) or len(covariates) > _MAX_CONDITIONS:
        raise UserError(f"covariates is {shown(covariates)}; a list of at most {_MAX_CONDITIONS} is wanted.")
    for place, item in enumerate(covariates):
        check(f"covariates[{place}]", item, _CONDITION, _CONDITION_MAY)
        if item["name"] in NOT_CONDITIONS:
            raise UserError(f"covariates[{place}]: {item['name']} says whose scan it is; it cannot be a condition.")
        low, high = item.get("low", 0.0), item.get("high", 1.0)
        if not low < high or not math.isfinite(float(high) - float(low)):
            raise UserError(f"covariates[{place}]: its range {low!r} to {high!r} has no width.")


def _check_background(content: Mapping[str, Any]) -> None:
    if not isinstance(content.get(ZERO_BACKGROUND, False), bool):
        raise UserError(f"{ZERO_BACKGROUND} is {shown(content[ZERO_BACKGROUND])}; true or false is wanted.")


def _check_provenance(provenance: Any) -> None:
    if not isinstance(provenance, Mapping):
        raise UserError(f"provenance is {shown(provenance)}; a table of names and values is wanted.")
    leaves, level = 0, list(provenance.items())
    for _ in range(_MAX_DEPTH):
        deeper: list[Any] = []
        for key, value in level:
            leaves += 1
            if isinstance(value, Mapping):
                deeper += value.items()
            elif is_list(value):
                deeper += [("", part) for part in value]
            elif not (value is None or isinstance(value, str | bool) or is_number(value)):
                raise UserError(f"provenance: {shown(key)} is {shown(value)}; texts and finite numbers are wanted.")
        level = deeper
    if level or leaves > _MAX_LEAVES:
        raise UserError("provenance holds more than where a model comes from: it is too deep or too long.")
