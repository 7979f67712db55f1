"""Random weights of SynthSeg's network in both published layouts, and the network written out from its description."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from brainldm.models.features.synthseg import expected_shapes

NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def random_weights(num_labels, features=2, levels=3, seed=0):
    """By LAYER/WEIGHT of Keras, with a variance of activations near 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(num_labels, features, levels).items():
        values = rng.normal(size=shape)
        if name.endswith("kernel"):
            values *= (2 / np.prod(shape[:-1])) ** 0.5
        elif name.endswith(("gamma", "moving_variance")):
            values = 0.5 + rng.random(shape)
        else:
            values *= 0.2
        weights[name] = values.astype(np.float32)
    return weights


def in_torch_names(weights):
    """The same weights as the PyTorch copy names and lays them out."""
    levels = sum(name.startswith("unet_bn_down") and name.endswith("gamma") for name in weights)
    out = {}

    def convolution(layer, target):
        out[f"{target}.weight"] = weights[f"{layer}/kernel"].transpose(4, 3, 0, 1, 2)
        out[f"{target}.bias"] = weights[f"{layer}/bias"]

    def block(number, way, norm, first):
        for k in range(2):
            target = f"block_list.{number}.layer_list.{first + k}.conv"
            convolution(f"unet_conv_{way}arm_{number}_{k}", target)
        target = f"block_list.{number}.layer_list.{first + 2}"
        for theirs, ours in zip(("weight", "bias", "running_mean", "running_var"), NORM, strict=True):
            out[f"{target}.{theirs}"] = weights[f"{norm}/{ours}"]
        out[f"{target}.num_batches_tracked"] = np.array(0)

    for level in range(levels):
        block(level, "down", f"unet_bn_down_{level}", 0)
    for step in range(levels - 1):
        block(levels + step, "up", f"unet_bn_up_{step}", 1)
    convolution("unet_likelihood", "conv_pred")
    return out


def write_keras_h5(path, weights, whole_model=False):
    """Write weights as Keras does: a group per layer, and in it one of the same name with the arrays."""
    import h5py

    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        for name, value in weights.items():
            layer, weight = name.split("/")
            root.create_dataset(f"{layer}/{layer}/{weight}:0", data=value)
        root.create_group("unet_input")
        if whole_model:
            file.create_dataset("optimizer_weights/Adam/iterations:0", data=3)


def network(weights, x):
    """Scores [B, D, H, W, L] of x [B, D, H, W, 1], layer by layer."""
    levels = sum(name.startswith("unet_bn_down") and name.endswith("gamma") for name in weights)

    def convolve(x, layer):
        kernel = weights[f"{layer}/kernel"]
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return (
            lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=numbers) + weights[f"{layer}/bias"]
        )

    def normalise(x, layer):
        gamma, beta, mean, variance = (weights[f"{layer}/{part}"] for part in NORM)
        return gamma * (x - mean) / np.sqrt(variance + 0.001) + beta

    passed = []
    for level in range(levels):
        for k in range(2):
            x = jax.nn.elu(convolve(x, f"unet_conv_downarm_{level}_{k}"))
        passed.append(x)
        x = normalise(x, f"unet_bn_down_{level}")
        if level < levels - 1:
            b, d, h, w, c = x.shape
            x = x.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, c).max(axis=(2, 4, 6))
    for step in range(levels - 1):
        for axis in (1, 2, 3):
            x = np.repeat(x, 2, axis=axis)
        x = jnp.concatenate([passed[levels - 2 - step], x], axis=-1)
        for k in range(2):
            x = jax.nn.elu(convolve(x, f"unet_conv_uparm_{levels + step}_{k}"))
        x = normalise(x, f"unet_bn_up_{step}")
    return np.asarray(convolve(x, "unet_likelihood"))
