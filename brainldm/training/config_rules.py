"""What every key of a config may be: its kind, its range, and what is said when it is something else.

Looked at before any data is read, so that an impossible value costs seconds and leaves nothing behind.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from brainldm.diffusion.objectives import PREDICTIONS, TIMES
from brainldm.diffusion.sampling import MAX_GUIDANCE, SAMPLERS
from brainldm.diffusion.schedule import SCHEDULE_KINDS, SPACINGS
from brainldm.models.build import AUTOENCODERS
from brainldm.parallel.sharding import rules_of
from brainldm.runtime.errors import UserError
from brainldm.runtime.rules import (
    BLOCKS,
    BOOL,
    COUNT,
    FRACTION,
    NOT_ALL,
    PATH,
    RANGE,
    RATE,
    REMAT,
    TEXT,
    TEXTS,
    WEIGHT,
    WIDTH,
    WIDTHS,
    Rule,
    either,
    is_list,
    list_of,
    number,
    one_of,
    rises,
    shown,
    whole,
)
from brainldm.volumes.grids import training_grid
from brainldm.weights.perceptual import KINDS

_NULL_CONDITION = Rule("'learned' or a number such as '-1'", lambda v: v == "learned" or _is_float(v))


def _is_float(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        return False


_BLOCKS = either(BLOCKS, list_of(BLOCKS, 1))
_AXIS = either(one_of(-1), whole(1, 10**6))

MAX_SEED = 2**32 - 1
"""JAX makes its keys of 32 bits: a larger seed would be another name of a smaller one."""

_COMMON = {
    "stage": TEXT,
    "seed": whole(0, MAX_SEED),
    "data.path": PATH,
    "data.spacing_mm": one_of(1, 2, 4),
    "data.scaling": one_of("minmax", "none"),
    "data.max_excluded": FRACTION,
    "data.validation_fraction": NOT_ALL,
    "data.test_fraction": NOT_ALL,
    "data.cache_gib": number(0, 1e6),
    "data.cache_dir": PATH,
    "data.threads": whole(1, 1024),
    "data.prefetch": whole(0, 1024),
    "data.augment.flip_probability": FRACTION,
    "data.augment.affine_probability": FRACTION,
    "data.augment.rotation_degrees": number(0, 180),
    "data.augment.translation_mm": number(0, 1000),
    "data.augment.scale": NOT_ALL,
    "data.augment.shift_probability": FRACTION,
    "data.augment.shift": number(0, 10),
    "data.augment.contrast_probability": FRACTION,
    "data.augment.gamma": Rule(
        "a pair of powers from 0.01 to 100, the lower one first",
        lambda v: list_of(number(0.01, 100), 2, 2).allows(v) and v[0] <= v[1],
    ),
    "covariates.names": list_of(TEXT),
    "covariates.extra": TEXTS,
    "batch_size": whole(1, 2**20),
    "accumulation_steps": whole(1, 2**20),
    "num_steps": whole(1, 10**9),
    "every.log": COUNT,
    "every.validate": COUNT,
    "every.images": COUNT,
    "every.checkpoint": COUNT,
    **{f"mesh.{axis}": _AXIS for axis in ("data", "fsdp", "space", "space_y")},
    "mesh.min_size": COUNT,
    "mesh.rules": either(TEXT, list_of(either(TEXT, list_of(TEXT, 2, 2)), 1)),
    "checkpoints.keep_last": whole(1, 10**6),
    "checkpoints.keep_every": COUNT,
    "profile.first_step": COUNT,
    "profile.num_steps": whole(1, 10**6),
    "watchdog_seconds": number(0, 1e8),
    "heartbeat_seconds": number(0, 1e8),
    "model.channels": WIDTHS,
    "model.dtype": one_of("bfloat16", "float32"),
    "model.remat": REMAT,
    "optimizer.learning_rate": WEIGHT,
    "optimizer.warmup_steps": COUNT,
    "optimizer.decay": BOOL,
    "optimizer.gradient_clip": number(0, 1e30, above=True),
}

_GROUP_NORM = {"model.norm_num_groups": WIDTH, "model.norm_eps": RATE}

_AUTOENCODER = {
    "init_from": PATH,
    **_GROUP_NORM,
    "every.fidelity": COUNT,
    "model.architecture": one_of(*AUTOENCODERS),
    "model.num_res_blocks": _BLOCKS,
    "model.latent_channels": WIDTH,
    "discriminator.channels": WIDTH,
    "discriminator.num_layers": whole(1, 6),
    "loss.kl_weight": WEIGHT,
    "loss.adversarial_weight": WEIGHT,
    "loss.adversarial_start": COUNT,
    "loss.perceptual": one_of(*KINDS),
    "loss.perceptual_weight": WEIGHT,
    "loss.equivariance": FRACTION,
    "loss.perceptual_ratio": RATE,
    "loss.perceptual_files": TEXTS,
    "optimizer.muon_learning_rate": WEIGHT,
    "optimizer.discriminator_learning_rate": WEIGHT,
}

_DIFFUSION = {
    "init_from": PATH,
    **_GROUP_NORM,
    "model.num_res_blocks": BLOCKS,
    "autoencoder": PATH,
    "latents.path": PATH,
    "latents.variants": whole(1, 10_000),
    "latents.sample": BOOL,
    "model.attention_levels": list_of(BOOL, 1),
    "model.num_head_channels": list_of(COUNT, 1),
    "model.resblock_updown": BOOL,
    "model.transformer_num_layers": BLOCKS,
    "model.concat": BOOL,
    "model.cross_attention": BOOL,
    "model.adaptive_norm": BOOL,
    "model.null_condition": _NULL_CONDITION,
    "schedule.kind": one_of(*SCHEDULE_KINDS),
    "schedule.beta_start": number(0, 1, above=True, below=True),
    "schedule.beta_end": number(0, 1, above=True, below=True),
    "schedule.num_train_steps": whole(1, 1_000_000),
    "loss.prediction": one_of(*PREDICTIONS),
    "loss.times": one_of(*TIMES),
    "loss.min_snr_gamma": WEIGHT,
    "loss.condition_dropout": FRACTION,
    "loss.covariate_dropout": NOT_ALL,
    "latent_scale": WEIGHT,
    "optimizer.muon_learning_rate": WEIGHT,
    "optimizer.weight_decay": WEIGHT,
    "optimizer.ema_decay": NOT_ALL,
    "optimizer.power_ema": BOOL,
    "every.ema_snapshots": COUNT,
    "sampling.num_steps": whole(1, 1_000_000),
    "sampling.eta": FRACTION,
    "sampling.sampler": one_of(*SAMPLERS),
    "sampling.spacing": one_of(*SPACINGS),
    "sampling.guidance": number(0, MAX_GUIDANCE),
    "sampling.guidance_interval": Rule(
        "a pair of noise levels from 0 to 1, the lower one first",
        lambda v: list_of(FRACTION).allows(v) and rises(v),
    ),
}

_GAN = {
    **_GROUP_NORM,
    "model.latent_size": WIDTH,
    "discriminator.channels": WIDTHS,
    "optimizer.discriminator_learning_rate": WEIGHT,
    "optimizer.beta1": NOT_ALL,
}

_VAE_GAN = {
    "loss.prior_weight": WEIGHT,
    "loss.reconstruction_weight": WEIGHT,
    "loss.discriminator_rest": WEIGHT,
}

_BRAIN_AGE = {"optimizer.weight_decay": WEIGHT}

RULES: Mapping[str, Mapping[str, Rule]] = {
    "autoencoder": {**_COMMON, **_AUTOENCODER},
    "diffusion": {**_COMMON, **_DIFFUSION},
    "lsgan": {**_COMMON, **_GAN},
    "vae_gan": {**_COMMON, **_GAN, **_VAE_GAN},
    "brain_age": {**_COMMON, **_BRAIN_AGE},
}
"""By stage and key: every key has a rule but covariates.ranges, which may be of any condition."""


def check_values(stage: str, values: Mapping[str, Any]) -> None:
    """Raise UserError for the first of `values` (by dotted key) that its rule does not allow, or that does not fit
    another one."""
    for key, value in values.items():
        rule = RANGE if key.startswith("covariates.ranges.") else RULES[stage].get(key)
        if rule is not None and not rule.allows(value):
            raise UserError(f"config.{key} is {shown(value)}; {rule.wanted} is wanted.{_nearest(rule, value)}")
    rules_of(values["mesh.rules"])
    _check_model(values)
    if stage == "diffusion":
        _check_diffusion(values)
    elif stage == "autoencoder":
        _check_autoencoder(values)
    elif stage == "brain_age":
        _check_brain_age(values)
    else:
        _check_gan(values)


def _nearest(rule: Rule, value: Any) -> str:
    near = difflib.get_close_matches(value, rule.wanted.split(" or "), 1) if isinstance(value, str) else ()
    return f" Did you mean {near[0]!r}?" if near else ""


def _check_model(values: Mapping[str, Any]) -> None:
    groups = values.get("model.norm_num_groups", 1)
    odd = [width for width in values["model.channels"] if width % groups]
    if odd:
        raise UserError(f"config.model.channels: {odd[0]} is not a multiple of norm_num_groups {groups}.")
    last, remat = len(values["model.channels"]) - 1, values["model.remat"]
    if not isinstance(remat, bool) and any(level > last for level in remat):
        raise UserError(f"config.model.remat is {shown(remat)}; levels from 0 to {last} are wanted.")


def _check_autoencoder(values: Mapping[str, Any]) -> None:
    blocks, levels = values["model.num_res_blocks"], len(values["model.channels"])
    if not is_list(blocks):
        return
    if values["model.architecture"] != "space_to_depth":
        raise UserError(
            f"config.model.num_res_blocks is {shown(blocks)}; a count for each level is for the architecture "
            "space_to_depth. For the paper's a whole number is wanted."
        )
    if len(blocks) != levels:
        raise UserError(
            f"config.model.num_res_blocks is {shown(blocks)}; one value for each of {levels} levels is wanted."
        )


def _check_brain_age(values: Mapping[str, Any]) -> None:
    if tuple(values["covariates.names"]) != ("age",) or values["covariates.extra"]:
        raise UserError(
            "config.covariates names other conditions than age; the brain-age network learns age alone. Leave "
            "config.covariates.names at ('age',) and config.covariates.extra empty."
        )
    blocks, least = len(values["model.channels"]), min(training_grid(values["data.spacing_mm"]).shape)
    if least < 2**blocks:
        raise UserError(
            f"config.model.channels has {blocks} blocks, which leave nothing of {least} voxels at "
            f"{values['data.spacing_mm']} mm; at most {least.bit_length() - 1} are wanted."
        )


def _check_gan(values: Mapping[str, Any]) -> None:
    channels, groups = values["discriminator.channels"], values["model.norm_num_groups"]
    odd = [width for width in channels if width % groups]
    if odd:
        raise UserError(f"config.discriminator.channels: {odd[0]} is not a multiple of norm_num_groups {groups}.")
    shape = training_grid(values["data.spacing_mm"]).shape
    for key, halvings in (("model", len(values["model.channels"]) - 1), ("discriminator", len(channels) - 1)):
        odd = [side for side in shape if side % 2**halvings]
        if not halvings or odd:
            what = f"halve {odd[0]} voxels {halvings} times" if odd else "leave nothing to halve"
            most = max(n for n in range(1, 9) if all(side % 2**n == 0 for side in shape))
            raise UserError(
                f"config.{key}.channels has {halvings + 1} levels, which {what}; 2 to {most + 1} are wanted for "
                f"volumes of {values['data.spacing_mm']} mm."
            )
    if values["covariates.names"] or values["covariates.extra"]:
        raise UserError(
            "config.covariates names conditions, and this baseline has none, as in the paper. Leave "
            "config.covariates.names and config.covariates.extra empty."
        )


def _check_diffusion(values: Mapping[str, Any]) -> None:
    levels = len(values["model.channels"])
    for key in ("attention_levels", "num_head_channels"):
        found = values[f"model.{key}"]
        if len(found) != levels:
            raise UserError(f"config.model.{key} is {shown(found)}; one value for each of {levels} levels is wanted.")
    for level, (attends, head) in enumerate(
        zip(values["model.attention_levels"], values["model.num_head_channels"], strict=True)
    ):
        width = values["model.channels"][level]
        if attends and (head < 1 or width % head):
            raise UserError(
                f"config.model.num_head_channels: {head} at level {level}, which attends; a divisor of its {width} "
                "channels is wanted."
            )
    if (
        values["schedule.kind"] in ("linear", "scaled_linear")
        and values["schedule.beta_start"] > values["schedule.beta_end"]
    ):
        raise UserError(
            f"config.schedule: beta_start is {values['schedule.beta_start']:g} and beta_end "
            f"{values['schedule.beta_end']:g}; beta_start may not be the larger one."
        )
    if values["sampling.num_steps"] > values["schedule.num_train_steps"]:
        raise UserError(
            f"config.sampling.num_steps is {values['sampling.num_steps']}; at most config.schedule.num_train_steps, "
            f"{values['schedule.num_train_steps']}, is wanted."
        )
