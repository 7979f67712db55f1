"""What every key of a config may be: its kind, its range, and what is said when it is something else.

Looked at before any data is read, so that an impossible value costs seconds and leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from brainldm.diffusion.objectives import PREDICTIONS, TIMES
from brainldm.diffusion.schedule import SCHEDULE_KINDS
from brainldm.models.build import AUTOENCODERS
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid


@dataclasses.dataclass(frozen=True)
class Rule:
    """`wanted` says in words what `allows` accepts."""

    wanted: str
    allows: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _whole(low: int, high: int | None = None) -> Rule:
    """A whole number from `low` to `high`, both allowed."""
    top = f" to {high}" if high is not None else " on"
    return Rule(f"a whole number from {low}{top}", lambda v: _is_whole(v) and v >= low and (high is None or v <= high))


def _number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
    """A finite number from `low` to `high`; `above` leaves out `low` itself, and `below` leaves out `high`."""
    text = f"above {low:g}" if above else f"of at least {low:g}"
    if high < math.inf:
        text += f" and {'below' if below else 'at most'} {high:g}"
    return Rule(
        f"a number {text}",
        lambda v: _is_number(v) and (v > low if above else v >= low) and (v < high if below else v <= high),
    )


def _one_of(*choices: Any) -> Rule:
    return Rule(" or ".join(map(str, choices)), lambda v: not isinstance(v, bool) and v in choices)


def _list_of(rule: Rule, at_least: int = 0) -> Rule:
    """A tuple or list of `at_least` or more values that `rule` allows."""
    count = f" of at least {at_least}" if at_least else ""
    return Rule(
        f"a tuple{count}, each {rule.wanted}",
        lambda v: _is_list(v) and len(v) >= at_least and all(map(rule.allows, v)),
    )


_BOOL = Rule("True or False", lambda v: isinstance(v, bool))
_REMAT = Rule(
    "True, False, or a tuple of levels such as (0, 1)", lambda v: _BOOL.allows(v) or _list_of(_COUNT).allows(v)
)
_TEXT = Rule("a text", lambda v: isinstance(v, str))
_TEXTS = Rule("a text, or a tuple of texts", lambda v: _TEXT.allows(v) or _list_of(_TEXT).allows(v))
_FRACTION = _number(0, 1)
_NOT_ALL = _number(0, 1, below=True)
_RATE = _number(0, 1, above=True)
_COUNT = _whole(0)
_RANGE = Rule(
    "a pair of numbers (low, high) with low below high", lambda v: _list_of(_number(-math.inf)).allows(v) and _rises(v)
)
_NULL_CONDITION = Rule("'learned' or a number such as '-1'", lambda v: v == "learned" or _is_float(v))


def _rises(value: Sequence[float]) -> bool:
    return len(value) == 2 and value[0] < value[1]


def _is_float(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and not isinstance(value, bool)
    except (TypeError, ValueError):
        return False


_BLOCKS = Rule(
    "a whole number from 1 to 100, or a tuple of such",
    lambda v: _whole(1, 100).allows(v) or _list_of(_whole(1, 100), 1).allows(v),
)
_AXIS = Rule("-1 or a whole number from 1 on", lambda v: _is_whole(v) and (v == -1 or v >= 1))

MAX_SEED = 2**32 - 1
"""JAX makes its keys of 32 bits: a larger seed would be another name of a smaller one."""

_COMMON = {
    "stage": _TEXT,
    "seed": _whole(0, MAX_SEED),
    "data.path": _TEXT,
    "data.spacing_mm": _one_of(1, 2, 4),
    "data.scaling": _one_of("minmax", "none"),
    "data.max_excluded": _FRACTION,
    "data.validation_fraction": _NOT_ALL,
    "data.test_fraction": _NOT_ALL,
    "data.cache_gib": _number(0),
    "data.cache_dir": _TEXT,
    "data.threads": _whole(1, 1024),
    "data.prefetch": _COUNT,
    "data.augment.flip_probability": _FRACTION,
    "data.augment.affine_probability": _FRACTION,
    "data.augment.rotation_degrees": _number(0, 180),
    "data.augment.translation_mm": _number(0),
    "data.augment.scale": _NOT_ALL,
    "data.augment.shift_probability": _FRACTION,
    "data.augment.shift": _number(0),
    "data.augment.contrast_probability": _FRACTION,
    "data.augment.gamma": Rule(
        "a pair of powers above 0, the lower one first",
        lambda v: _list_of(_number(0, above=True)).allows(v) and len(v) == 2 and v[0] <= v[1],
    ),
    "covariates.names": _list_of(_TEXT),
    "covariates.extra": _TEXTS,
    "batch_size": _whole(1),
    "accumulation_steps": _whole(1),
    "num_steps": _whole(1),
    "every.log": _COUNT,
    "every.validate": _COUNT,
    "every.images": _COUNT,
    "every.checkpoint": _COUNT,
    **{f"mesh.{axis}": _AXIS for axis in ("data", "fsdp", "space", "space_y")},
    "checkpoints.keep_last": _whole(1),
    "checkpoints.keep_every": _COUNT,
    "profile.first_step": _COUNT,
    "profile.num_steps": _whole(1),
    "watchdog_seconds": _number(0),
    "heartbeat_seconds": _number(0),
    "model.channels": _list_of(_whole(1), 1),
    "model.dtype": _one_of("bfloat16", "float32"),
    "model.remat": _REMAT,
    "optimizer.learning_rate": _number(0),
    "optimizer.warmup_steps": _COUNT,
    "optimizer.decay": _BOOL,
    "optimizer.gradient_clip": _number(0, above=True),
}

_GROUP_NORM = {"model.norm_num_groups": _whole(1), "model.norm_eps": _RATE}

_AUTOENCODER = {
    "init_from": _TEXT,
    **_GROUP_NORM,
    "every.fidelity": _COUNT,
    "model.architecture": _one_of(*AUTOENCODERS),
    "model.num_res_blocks": _BLOCKS,
    "model.latent_channels": _whole(1),
    "discriminator.channels": _whole(1),
    "discriminator.num_layers": _whole(1, 6),
    "loss.kl_weight": _number(0),
    "loss.adversarial_weight": _number(0),
    "loss.adversarial_start": _COUNT,
    "loss.perceptual_weight": _number(0),
    "loss.perceptual_ratio": _RATE,
    "loss.perceptual_files": _TEXTS,
    "optimizer.muon_learning_rate": _number(0),
    "optimizer.discriminator_learning_rate": _number(0),
}

_DIFFUSION = {
    "init_from": _TEXT,
    **_GROUP_NORM,
    "model.num_res_blocks": _whole(1, 100),
    "autoencoder": _TEXT,
    "latents.path": _TEXT,
    "latents.variants": _whole(1),
    "latents.sample": _BOOL,
    "model.attention_levels": _list_of(_BOOL, 1),
    "model.num_head_channels": _list_of(_COUNT, 1),
    "model.resblock_updown": _BOOL,
    "model.transformer_num_layers": _whole(1, 100),
    "model.concat": _BOOL,
    "model.cross_attention": _BOOL,
    "model.adaptive_norm": _BOOL,
    "model.null_condition": _NULL_CONDITION,
    "schedule.kind": _one_of(*SCHEDULE_KINDS),
    "schedule.beta_start": _number(0, 1, above=True, below=True),
    "schedule.beta_end": _number(0, 1, above=True, below=True),
    "schedule.num_train_steps": _whole(1, 1_000_000),
    "loss.prediction": _one_of(*PREDICTIONS),
    "loss.times": _one_of(*TIMES),
    "loss.min_snr_gamma": _number(0),
    "loss.condition_dropout": _FRACTION,
    "loss.covariate_dropout": _NOT_ALL,
    "latent_scale": _number(0),
    "optimizer.muon_learning_rate": _number(0),
    "optimizer.weight_decay": _number(0),
    "optimizer.ema_decay": _NOT_ALL,
    "optimizer.power_ema": _BOOL,
    "every.ema_snapshots": _COUNT,
    "sampling.num_steps": _whole(1),
    "sampling.eta": _FRACTION,
    "sampling.guidance": _number(0),
    "sampling.guidance_interval": Rule(
        "a pair of noise levels from 0 to 1, the lower one first",
        lambda v: _list_of(_FRACTION).allows(v) and _rises(v),
    ),
}

_GAN = {
    **_GROUP_NORM,
    "model.latent_size": _whole(1),
    "discriminator.channels": _list_of(_whole(1), 1),
    "optimizer.discriminator_learning_rate": _number(0),
    "optimizer.beta1": _NOT_ALL,
}

_VAE_GAN = {
    "loss.prior_weight": _number(0),
    "loss.reconstruction_weight": _number(0),
    "loss.discriminator_rest": _number(0),
}

_BRAIN_AGE = {"optimizer.weight_decay": _number(0)}

RULES: Mapping[str, Mapping[str, Rule]] = {
    "autoencoder": {**_COMMON, **_AUTOENCODER},
    "diffusion": {**_COMMON, **_DIFFUSION},
    "lsgan": {**_COMMON, **_GAN},
    "vae_gan": {**_COMMON, **_GAN, **_VAE_GAN},
    "brain_age": {**_COMMON, **_BRAIN_AGE},
}
"""By stage and key. Keys without a rule (loss.perceptual, mesh.rules, the sampler) are checked where they are used."""


def check_values(stage: str, values: Mapping[str, Any]) -> None:
    """Raise UserError for the first of `values` (by dotted key) that its rule does not allow, or that does not fit
    another one."""
    for key, value in values.items():
        rule = _RANGE if key.startswith("covariates.ranges.") else RULES[stage].get(key)
        if rule is not None and not rule.allows(value):
            raise UserError(f"config.{key} is {value!r}; {rule.wanted} is wanted.{_nearest(rule, value)}")
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
        raise UserError(f"config.model.remat is {remat!r}; levels from 0 to {last} are wanted.")


def _check_autoencoder(values: Mapping[str, Any]) -> None:
    blocks, levels = values["model.num_res_blocks"], len(values["model.channels"])
    if not _is_list(blocks):
        return
    if values["model.architecture"] != "space_to_depth":
        raise UserError(
            f"config.model.num_res_blocks is {blocks!r}; a count for each level is for the architecture "
            "space_to_depth. For the paper's a whole number is wanted."
        )
    if len(blocks) != levels:
        raise UserError(
            f"config.model.num_res_blocks is {blocks!r}; one value for each of the {levels} channels is wanted."
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
            raise UserError(f"config.model.{key} is {found!r}; one value for each of the {levels} channels is wanted.")
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
