"""MONAI state dicts to parameters and back.

The networks here have MONAI's layout, so a parameter path and a checkpoint key say the same in other words:
`down_blocks_1/resnets_0/conv1/kernel` is `down_blocks.1.resnets.0.conv1.conv.weight`. Kernels are transposed:
PyTorch keeps `[out, in, kD, kH, kW]` and `[out, in]`, Flax `[kD, kH, kW, in, out]` and `[in, out]`.

Both spellings of the keys are read: that of the MONAI Generative package, in which the brain LDM of Pinaya et
al. was released, and that of MONAI 1.4 and later, which is written.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from brainldm.models.autoencoder import AutoencoderKL
from brainldm.models.discriminator import PatchDiscriminator
from brainldm.models.unet import DiffusionUNet
from brainldm.runtime.errors import UserError
from brainldm.runtime.format import format_names

StateDict = Mapping[str, np.ndarray]
Path = tuple[str, ...]

_OLD_TO_NEW = (
    (re.compile(r"^(decoder\.blocks\.\d+)\.conv\.conv\."), r"\1.postconv.conv."),
    (re.compile(r"^(up_blocks\.\d+\.upsampler)\.conv\.conv\."), r"\1.postconv.conv."),
    (re.compile(r"(\.attn[12])\.to_out\.0\."), r"\1.out_proj."),
)
_ATTENTION = re.compile(r"^(encoder|decoder)\.blocks\.\d+\.(attn\.)?to_[qkv]\.")
_LISTS = "blocks|down_blocks|up_blocks|resnets|attentions|transformer_blocks|time_embed|out"
_INDEXED = re.compile(rf"^({_LISTS})_(\d+)$")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _key(path: Path, kernel_ndim: int) -> str:
    """The MONAI name of a parameter; `kernel_ndim` is that of the kernel beside it (5 in a convolution)."""
    *modules, leaf = path
    names = [_INDEXED.sub(r"\1.\2", module) for module in modules]
    if modules[0].startswith("layers_"):  # the discriminator's layers have bare numbers for names
        names = [modules[0].removeprefix("layers_")]
        names += {"conv": [], "norm": ["adn", "N"]}[modules[1]]
    if kernel_ndim == 5:
        names.append("conv")
    return ".".join([*names, _LEAVES[leaf]])


def _keys(leaves: Mapping[Path, Any]) -> dict[Path, str]:
    """MONAI's name for every parameter path."""
    ndims = {path[:-1]: len(leaf.shape) for path, leaf in leaves.items() if path[-1] == "kernel"}
    return {path: _key(path, ndims.get(path[:-1], 0)) for path in leaves}


def _to_torch(path: Path, array: Any) -> np.ndarray:
    array = np.asarray(array)
    if path[-1] == "kernel":
        array = np.transpose(array, (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2)))
    return np.ascontiguousarray(array)


def _to_flax(path: Path, array: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":
        array = np.transpose(array, (*range(2, array.ndim), 1, 0))
    return np.ascontiguousarray(array, dtype=np.float32)


def _torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if path[-1] == "kernel" else tuple(shape)


def _new_names(state_dict: StateDict) -> dict[str, np.ndarray]:
    renamed = {}
    for key, array in state_dict.items():
        for pattern, replacement in _OLD_TO_NEW:
            key = pattern.sub(replacement, key)
        renamed[key] = array
    return renamed


def _fill(template: Mapping, state: StateDict, network: str) -> dict:
    """The template's variables (shapes) with the arrays of a state dict, every name and shape checked."""
    leaves = flatten_dict(template)
    keys = {
        (collection, *path): key
        for collection in template
        for path, key in _keys(flatten_dict(template[collection])).items()
    }
    missing = [key for key in keys.values() if key not in state]
    known = set(keys.values())
    unexpected = [key for key in state if key not in known and not key.endswith("num_batches_tracked")]
    misshapen = []
    for path, key in keys.items():
        expected = _torch_shape(path, leaves[path].shape)
        if key in state and state[key].shape != expected:
            misshapen.append(f"{key} {state[key].shape} where {expected} was expected")
    faults = [
        f"{name}: {format_names(items, 5)}"
        for name, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if items
    ]
    if faults:
        raise UserError(
            f"The state dict does not fit MONAI's {network} as it is supported here ({'; '.join(faults)}). "
            "Check that it is the right file and a 3D network, without attention in the autoencoder and with "
            "cross-attention conditioning in the UNet."
        )
    return unflatten_dict({path: _to_flax(path, state[key]) for path, key in keys.items()})


def _shape(state: StateDict, key: str, network: str) -> tuple[int, ...]:
    if key not in state or state[key].ndim == 0:
        raise UserError(
            f"The state dict is not that of MONAI's {network}: it has no {key}. Its keys begin with "
            f"{format_names(list(state), 5)}."
        )
    return state[key].shape


def _template(module: nn.Module, *shapes: tuple[int, ...], **options: Any) -> dict:
    """The shapes of a module's variables, for float32 inputs of the shapes given."""
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.eval_shape(lambda *given: module.init(jax.random.key(0), *given, **options), *inputs)


def _check_groups(widths: Sequence[int], groups: int) -> None:
    if any(width % groups for width in widths):
        raise UserError(
            f"norm_num_groups={groups} does not divide the widths {tuple(widths)} of the network. State "
            "dicts do not say how many groups their norms have: give the number the network was built with."
        )


def _count(state: StateDict, prefix: str) -> int:
    """How many children 0, 1, 2, ... the list `prefix` has."""
    indices = {key[len(prefix) + 1 :].split(".")[0] for key in state if key.startswith(prefix + ".")}
    return len(indices)


def autoencoder_from_monai(
    state_dict: StateDict, norm_num_groups: int = 32, norm_eps: float = 1e-6
) -> tuple[dict, dict[str, Any]]:
    """Parameters and constructor arguments of `AutoencoderKL` from a state dict of MONAI's class of the name.

    Args:
        norm_num_groups, norm_eps: what the shapes do not tell; the defaults are the paper's.

    Returns:
        `params` (float32 numpy arrays) and the arguments for `AutoencoderKL(**kwargs)`.

    Raises:
        UserError: keys missing, unexpected or of another shape; the message lists the first few.
    """
    name = "AutoencoderKL"
    state = _new_names(state_dict)
    if attention := [key for key in state if _ATTENTION.match(key)]:
        raise UserError(
            f"The autoencoder has attention ({format_names(attention)}), which MONAI's can have and this one cannot. "
            "Only one that was built with attention_levels of False and without non-local attention can be converted."
        )
    widths: list[list[int]] = [[]]
    for index in range(1, _count(state, "encoder.blocks")):
        block = f"encoder.blocks.{index}"
        if f"{block}.conv1.conv.weight" in state:
            widths[-1].append(state[f"{block}.conv1.conv.weight"].shape[0])
        elif f"{block}.conv.conv.weight" in state:
            widths.append([])
    latent, *_ = _shape(state, "quant_conv_mu.conv.weight", name)
    if len({tuple(level) for level in widths if level}) == 0 or len({len(level) for level in widths}) > 1:
        raise UserError(
            f"The state dict has {[len(level) for level in widths]} residual blocks on the levels of its "
            "encoder; this autoencoder has the same number, one or more, on all of them."
        )
    channels = tuple(level[0] for level in widths)
    last = _count(state, "decoder.blocks") - 1
    kwargs = {
        "in_channels": _shape(state, "encoder.blocks.0.conv.weight", name)[1],
        "out_channels": _shape(state, f"decoder.blocks.{last}.conv.weight", name)[0],
        "latent_channels": latent,
        "channels": channels,
        "num_res_blocks": len(widths[0]),
        "norm_num_groups": norm_num_groups,
        "norm_eps": norm_eps,
    }
    _check_groups(channels, norm_num_groups)
    side = 2 ** (len(channels) - 1)
    template = _template(AutoencoderKL(**kwargs), (1, side, side, side, kwargs["in_channels"]))
    return _fill(template, state, name)["params"], kwargs


def unet_from_monai(
    state_dict: StateDict,
    num_head_channels: Sequence[int] | None = None,
    condition_dim: int | None = None,
    norm_num_groups: int = 32,
    norm_eps: float = 1e-6,
) -> tuple[dict, dict[str, Any]]:
    """Parameters and constructor arguments of `DiffusionUNet` from a `DiffusionModelUNet` state dict.

    The network must have been built with `with_conditioning=True`. The conditions count as concatenated too
    where the first convolution has as many channels more than the last as the context has values.

    Args:
        num_head_channels: channels of an attention head at each level; None is one head, as in the paper.
        condition_dim: checked against the network's context where given.
        norm_num_groups, norm_eps: what the shapes do not tell; the defaults are the paper's.

    Returns:
        `params` (float32 numpy arrays) and the arguments for `DiffusionUNet(**kwargs)`.

    Raises:
        UserError: keys missing, unexpected or of another shape; the message lists the first few.
    """
    name = "DiffusionModelUNet with conditioning"
    state = _new_names(state_dict)
    first = _shape(state, "conv_in.conv.weight", name)
    out_channels = _shape(state, "out.2.conv.weight", name)[0]
    transformer = "middle_block.attention.transformer_blocks"
    context = _shape(state, f"{transformer}.0.attn2.to_k.weight", name)[1]
    if condition_dim not in (None, context):
        raise UserError(f"condition_dim={condition_dim} was given; its context has {context}.")
    extra = first[1] - out_channels
    if extra not in (0, context):
        raise UserError(
            f"The first convolution takes {first[1]} channels and the last gives {out_channels}. With "
            f"{context} conditions the first should take {out_channels} (none concatenated) or "
            f"{out_channels + context}."
        )
    levels = range(_count(state, "down_blocks"))
    channels = tuple(_shape(state, f"down_blocks.{i}.resnets.0.conv1.conv.weight", name)[0] for i in levels)
    attention = tuple(f"down_blocks.{i}.attentions.0.norm.weight" in state for i in levels)
    if num_head_channels is None:
        used = [level or i == len(channels) - 1 for i, level in enumerate(attention)]
        num_head_channels = tuple(width if use else 0 for width, use in zip(channels, used, strict=True))
    if len(num_head_channels) != len(channels):
        raise UserError(
            f"num_head_channels has {len(num_head_channels)} values; the network has {len(channels)} levels."
        )
    kwargs = {
        "in_channels": out_channels,
        "out_channels": out_channels,
        "channels": channels,
        "num_res_blocks": _count(state, "down_blocks.0.resnets"),
        "attention_levels": attention,
        "num_head_channels": tuple(num_head_channels),
        "norm_num_groups": norm_num_groups,
        "norm_eps": norm_eps,
        "resblock_updown": "down_blocks.0.downsampler.conv1.conv.weight" in state,
        "transformer_num_layers": _count(state, transformer),
        "condition_dim": context,
        "concat": extra > 0,
        "cross_attention": True,
    }
    _check_groups(channels, norm_num_groups)
    side = 2 ** (len(channels) - 1)
    latent = (1, side, side, side, out_channels)
    template = _template(DiffusionUNet(**kwargs), latent, (1,), (1, context))
    return _fill(template, state, name)["params"], kwargs


def discriminator_from_monai(state_dict: StateDict) -> tuple[dict, dict[str, Any]]:
    """Variables and constructor arguments of `PatchDiscriminator` from a state dict of MONAI's.

    Returns:
        `{"params", "batch_stats"}` (float32 numpy) and the arguments for `PatchDiscriminator(**kwargs)`.

    Raises:
        UserError: keys missing, unexpected or of another shape; the message lists the first few.
    """
    name = "PatchDiscriminator"
    channels, in_channels, *_ = _shape(state_dict, "initial_conv.conv.weight", name)
    kwargs = {
        "channels": channels,
        "num_layers": sum(re.fullmatch(r"\d+\.conv\.weight", key) is not None for key in state_dict),
        "in_channels": in_channels,
        "out_channels": _shape(state_dict, "final_conv.conv.weight", name)[0],
    }
    side = 16 * 2 ** kwargs["num_layers"]
    template = _template(PatchDiscriminator(**kwargs), (1, side, side, side, in_channels), train=False)
    return _fill(template, state_dict, name), kwargs


def _write(leaves: Mapping[Path, Any]) -> dict[str, np.ndarray]:
    return {key: _to_torch(path, leaves[path]) for path, key in _keys(leaves).items()}


def autoencoder_to_monai(params: Mapping) -> dict[str, np.ndarray]:
    """The state dict, under MONAI's present names, of `AutoencoderKL` parameters."""
    return _write(flatten_dict(params))


def unet_to_monai(params: Mapping, leave_out_null_condition: bool = False) -> dict[str, np.ndarray]:
    """The state dict, under MONAI's present names, of `DiffusionUNet` parameters.

    Raises:
        UserError: the network has parts that MONAI's does not: an adaptive norm, no cross-attention, or a
            learned null condition, unless `leave_out_null_condition` says that it is not needed.
    """
    leaves = flatten_dict(params)
    if leaves.pop(("null_condition",), None) is not None and not leave_out_null_condition:
        raise UserError(
            "This UNet has a learned null condition, for which a MONAI network has no place. Ask for it to "
            "be left out if the MONAI network will only be used with real conditions."
        )
    if any("condition_proj" in path for path in leaves):
        raise UserError("This UNet has adaptive norms, which MONAI's DiffusionModelUNet does not have.")
    if not any("attn2" in path for path in leaves):
        raise UserError("This UNet has no cross-attention, without which MONAI's network is built of other blocks.")
    return _write(leaves)


def discriminator_to_monai(variables: Mapping, num_batches_tracked: int = 0) -> dict[str, np.ndarray]:
    """The state dict, under MONAI's names, of `PatchDiscriminator` variables (`params` and `batch_stats`).

    Args:
        num_batches_tracked: what to write for PyTorch's counter of batches, which its averages do not use.
    """
    leaves = flatten_dict(variables["params"])
    statistics = flatten_dict(variables["batch_stats"])
    state = _write(leaves) | _write(statistics)
    for path in statistics:
        if path[-1] == "mean":
            key = _key(path, 0).replace("running_mean", "num_batches_tracked")
            state[key] = np.asarray(num_batches_tracked, np.int64)
    return state
