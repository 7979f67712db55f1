"""Features of 3D medical images: the Med3D residual networks (Chen et al. 2019, arXiv 1904.00625), depth 10 to 50.

Used twice: as a perceptual distance in the autoencoder's loss, and as the feature space of the Frechet distance. The
networks are DILATED: stages 3 and 4 keep stride 1 and use dilation 2 and 4, so the output stride is 8, not 32. The
weights come from a checkpoint that the user names. Batch normalisation is in its inference form and folded into the
convolutions when loading. Pure functions on a tree of float32 arrays; convolutions run in the type of the volumes. On
accelerators that shorten float32 products by default, wrap the call in `jax.default_matmul_precision("highest")` where
figures are compared with published ones.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from brainldm.models.features.lpips import unit_channels
from brainldm.models.layers import conv3d
from brainldm.runtime.errors import UserError

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Residual blocks in each stage, by depth."""
PROJECTED = (10, 50)
"""Depths whose shortcuts are projections ("type B"). Those of the others have no weights ("type A"): every stride-th
voxel, and zeros for the channels that come in."""
STAGE_WIDTHS = (64, 128, 256, 512)
STAGE_STRIDES = (1, 2, 1, 1)
STAGE_DILATIONS = (1, 1, 2, 4)
BOTTLENECK_EXPANSION = 4
BATCH_NORM_EPS = 1e-5

Params = dict[str, Any]


def load_medicalnet(tensors: Mapping[str, np.ndarray]) -> tuple[Params, int]:
    """Parameters (float32) and depth (10, 18, 34 or 50) from the tensors of a Med3D checkpoint.

    tensors: the state dict by name, with or without the `module.` prefix; the segmentation head and the batch counters
    are left alone. Raises UserError for another depth or kind of shortcut, and for missing tensors or tensors of the
    wrong shape, which it lists.
    """
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    depth = _depth(tensors)
    shapes = expected_shapes(depth)
    missing = [name for name in shapes if name not in tensors]
    if missing:
        shortcuts = [name for name in missing if ".downsample." in name]
        hint = (
            f" Its shortcuts have no weights (type A), where the published ResNet-{depth} has projections."
            if len(shortcuts) == len(missing)
            else ""
        )
        raise UserError(
            f"This is no complete Med3D ResNet-{depth} checkpoint: {len(missing)} of {len(shapes)} tensors "
            f"are missing, namely {', '.join(missing[:12])}{', ...' if len(missing) > 12 else ''}.{hint}"
        )
    wrong = [
        f"{name} {tuple(np.shape(tensors[name]))} instead of {shape}"
        for name, shape in shapes.items()
        if tuple(np.shape(tensors[name])) != shape
    ]
    if wrong:
        raise UserError(f"The tensors do not fit a Med3D ResNet-{depth}: {'; '.join(wrong[:12])}.")

    def convolution(weight: str, norm: str) -> Params:
        """Convolution without bias and the batch normalisation after it, as one convolution with bias."""
        scale = np.asarray(tensors[f"{norm}.weight"], np.float64) / np.sqrt(
            np.asarray(tensors[f"{norm}.running_var"], np.float64) + BATCH_NORM_EPS
        )
        bias = tensors[f"{norm}.bias"] - np.asarray(tensors[f"{norm}.running_mean"], np.float64) * scale
        kernel = np.asarray(tensors[f"{weight}.weight"], np.float32).transpose(2, 3, 4, 1, 0)
        return {"kernel": (kernel * scale).astype(np.float32), "bias": bias.astype(np.float32)}

    stages = []
    for stage, count in enumerate(BLOCKS[depth], start=1):
        blocks = []
        for i in range(count):
            name = f"layer{stage}.{i}"
            block = {f"conv{k}": convolution(f"{name}.conv{k}", f"{name}.bn{k}") for k in _convolutions(depth)}
            if f"{name}.downsample.0.weight" in shapes:
                block["shortcut"] = convolution(f"{name}.downsample.0", f"{name}.downsample.1")
            blocks.append(block)
        stages.append(blocks)
    return {"stem": convolution("conv1", "bn1"), "stages": stages}, depth


def _convolutions(depth: int) -> tuple[int, ...]:
    return (1, 2, 3) if depth == 50 else (1, 2)


def _depth(tensors: Mapping[str, Any]) -> int:
    """The depth that the names of the blocks tell; UserError if it is not one that can be read."""
    counts = tuple(
        len({name.split(".")[1] for name in tensors if name.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in tensors
    for depth, blocks in BLOCKS.items():
        if counts == blocks and bottleneck == (depth == 50):
            return depth
    kind = "bottleneck" if bottleneck else "basic"
    *others, last = map(str, BLOCKS)
    raise UserError(
        f"Med3D features are read from checkpoints of depth {', '.join(others)} or {last}; this one has "
        f"{', '.join(map(str, counts))} {kind} blocks in its four stages."
    )


def expected_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor read from a checkpoint of this depth, without the `module.` prefix."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(weight: str, norm: str, c_in: int, c_out: int, size: int) -> None:
        shapes[f"{weight}.weight"] = (c_out, c_in, size, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (c_out,)

    add("conv1", "bn1", 1, 64, 7)
    expansion = BOTTLENECK_EXPANSION if depth == 50 else 1
    channels = 64
    for stage, (count, width) in enumerate(zip(BLOCKS[depth], STAGE_WIDTHS, strict=True), start=1):
        for i in range(count):
            name = f"layer{stage}.{i}"
            if depth == 50:
                plan = [(channels, width, 1), (width, width, 3), (width, width * expansion, 1)]
            else:
                plan = [(channels, width, 3), (width, width, 3)]
            for k, (c_in, c_out, size) in enumerate(plan, start=1):
                add(f"{name}.conv{k}", f"{name}.bn{k}", c_in, c_out, size)
            if depth in PROJECTED and i == 0 and (STAGE_STRIDES[stage - 1] != 1 or channels != width * expansion):
                add(f"{name}.downsample.0", f"{name}.downsample.1", channels, width * expansion, 1)
            channels = width * expansion
    return shapes


def _convolve(x: jax.Array, params: Params, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolution with the padding that keeps the size at stride 1."""
    kernel = jnp.asarray(params["kernel"], x.dtype)
    size = kernel.shape[0]
    pad = dilation * (size // 2)
    if dilation == 1 or size == 1:
        y = conv3d(x, kernel, (stride,) * 3, ((pad, pad),) * 3)
    else:
        y = lax.conv_general_dilated(
            x,
            kernel,
            (stride,) * 3,
            [(pad, pad)] * 3,
            rhs_dilation=(dilation,) * 3,
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    return y + jnp.asarray(params["bias"], x.dtype)


def _block(x: jax.Array, block: Params, stride: int, dilation: int) -> jax.Array:
    """A residual block: 3-3 (basic) or 1-3-1 (bottleneck), stride and dilation in the 3 x 3 x 3 convolutions."""
    if "conv3" in block:
        y = jax.nn.relu(_convolve(x, block["conv1"]))
        y = jax.nn.relu(_convolve(y, block["conv2"], stride, dilation))
        y = _convolve(y, block["conv3"])
    else:
        y = jax.nn.relu(_convolve(x, block["conv1"], stride, dilation))
        y = _convolve(y, block["conv2"], 1, dilation)
    if "shortcut" in block:
        shortcut = _convolve(x, block["shortcut"], stride)
    else:
        more = y.shape[-1] - x.shape[-1]
        shortcut = jnp.pad(x[:, ::stride, ::stride, ::stride], ((0, 0),) * 4 + ((0, more),))
    return jax.nn.relu(y + shortcut)


def features(params: Params, x: jax.Array) -> jax.Array:
    """The last feature map of volumes [B, D, H, W, 1]: [B, D/8, H/8, W/8, C], C = 512 (depth 10 to 34) or 2048 (50).

    Sizes that 8 does not divide are rounded up. The volumes are taken as they are; see `z_score`.
    """
    x = jax.nn.relu(_convolve(x, params["stem"], stride=2))
    x = nn.max_pool(x, (3, 3, 3), (2, 2, 2), ((1, 1),) * 3)
    for blocks, stride, dilation in zip(params["stages"], STAGE_STRIDES, STAGE_DILATIONS, strict=True):
        for i, block in enumerate(blocks):
            x = _block(x, block, stride if i == 0 else 1, dilation)
    return x


def z_score(x: jax.Array, per_volume: bool, ddof: int) -> jax.Array:
    """(x - mean) / standard deviation in float32, zeros included, over each volume or over the whole batch.

    ddof 1 divides the sum of squares by n - 1 (PyTorch's `std`), 0 by n (numpy's). A constant gives zeros.
    """
    axes = tuple(range(1, x.ndim)) if per_volume else tuple(range(x.ndim))
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.var(x, axes, ddof=ddof, keepdims=True)
    # Far below the variance of any image; keeps value and gradient finite where there is none.
    return centred * lax.rsqrt(variance + 1e-12)


def perceptual_distance(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Distance of the features of volumes: [B, D, H, W, 1] twice -> [B] float32.

    As MONAI's PerceptualLoss with MedicalNet, but on the dilated network that the weights were trained as: z-score
    over the whole batch of each argument, last feature map divided by its length over the channels (eps 1e-10),
    squared difference summed over channels, mean over positions. Convolutions run in the type of x.
    """
    first = unit_channels(features(params, z_score(x, per_volume=False, ddof=1).astype(x.dtype)))
    second = unit_channels(features(params, z_score(y, per_volume=False, ddof=1).astype(y.dtype)))
    return jnp.mean(jnp.sum(jnp.square(first - second), axis=-1), axis=(1, 2, 3))


def pooled_features(params: Params, x: jax.Array, normalise: bool = True) -> jax.Array:
    """One feature vector a volume, for the Frechet distance: [B, D, H, W, 1] -> [B, C] float32, C = 512 or 2048.

    The last feature map averaged over all positions. normalise: z-score each volume first, zeros included, as in the
    evaluation of Pinaya et al. 2022; False takes the volumes as they are.
    """
    if normalise:
        x = z_score(x, per_volume=True, ddof=0).astype(x.dtype)
    return jnp.mean(features(params, x).astype(jnp.float32), axis=(1, 2, 3))
