"""Convolution of three dimensions against XLA's direct one, norms, resampling, time embedding."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from brainldm.models.build import NETWORKS, build
from brainldm.models.layers import (
    Conv,
    GroupNorm,
    average_pool,
    conv3d,
    conv_route,
    timestep_embedding,
    upsample_nearest,
)

SAME = ((1, 1),) * 3
AFTER = ((0, 1),) * 3
CASES = {
    "same": (3, (1, 1, 1), SAME),
    "stride 2, zeros on both ends": (3, (2, 2, 2), SAME),
    "stride 2, zeros after": (3, (2, 2, 2), AFTER),
    "no zeros": (3, (1, 1, 1), ((0, 0),) * 3),
    "uneven": (3, (2, 1, 2), ((2, 0), (0, 1), (1, 1))),
    "size 4, stride 2": (4, (2, 2, 2), SAME),
    "size 4, stride 1": (4, (1, 1, 1), SAME),
    "size 1": (1, (1, 1, 1), ((0, 0),) * 3),
}


def _direct(x, kernel, strides, padding):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=numbers, precision=lax.Precision.HIGHEST
    )


def _data(size):
    x = jax.random.normal(jax.random.key(0), (1, 13, 16, 14, 16))
    return x, 0.05 * jax.random.normal(jax.random.key(1), (size, size, size, 16, 24))


@pytest.mark.parametrize("case", CASES)
def test_same_values_and_gradients_as_the_direct_convolution(case):
    size, strides, padding = CASES[case]
    x, kernel = _data(size)
    results = []
    for function in (_direct, conv3d):

        @jax.jit
        def value_and_gradients(x, kernel, function=function):
            value, pullback = jax.vjp(lambda a, b: function(a, b, strides, padding), x, kernel)
            return value, *pullback(jax.random.normal(jax.random.key(2), value.shape))

        results.append(value_and_gradients(x, kernel))
    for expected, found in zip(*results, strict=True):
        assert expected.shape == found.shape
        assert np.linalg.norm(expected - found) < 2e-6 * np.linalg.norm(expected)


def _convolution_ranks(program: str) -> set[int]:
    layouts = re.findall(r"stablehlo\.convolution.*?dim_numbers = \[([^\]]*)\]", program)
    return {layout.count(",") + 1 for layout in layouts}


@pytest.mark.parametrize(("platform", "rank"), [("cpu", 4), ("tpu", 5), ("cuda", 5)])
def test_the_route_is_chosen_by_the_platform_lowered_for(platform, rank):
    x, kernel = _data(3)
    gradient = jax.jit(jax.grad(lambda a, b: conv3d(a, b, (1, 1, 1), SAME).sum(), argnums=(0, 1)))
    program = gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert _convolution_ranks(program) == {rank}


def test_the_caller_sets_the_route():
    x, kernel = _data(3)
    for route, rank in ((conv_route(1), 4), (conv_route(8), 5)):
        program = jax.jit(lambda a, b, route=route: conv3d(a, b, (1, 1, 1), SAME, route)).trace(x, kernel)
        assert _convolution_ranks(program.lower(lowering_platforms=("cpu",)).as_text()) == {rank}


@pytest.mark.parametrize("name", ["autoencoder", *NETWORKS])
def test_every_convolution_of_a_network_takes_the_route_that_it_was_built_with(name):
    arguments = {
        "autoencoder": {"channels": [32, 32], "num_res_blocks": 1, "norm_num_groups": 8},
        "unet": {
            "channels": [32, 32],
            "num_res_blocks": 1,
            "attention_levels": [False, False],
            "num_head_channels": [32, 32],
            "norm_num_groups": 8,
        },
        "discriminator": {"channels": 32, "num_layers": 2},
        "generator": {"shape": [32, 32, 32], "latent_size": 4, "channels": [32, 32], "norm_num_groups": 8},
        "critic": {"channels": [32, 32], "norm_num_groups": 8},
        "brain_age": {"channels": [32, 32]},
    }[name]
    x = jax.ShapeDtypeStruct((1, 32, 32, 32, {"unet": 3}.get(name, 1)), jnp.float32)
    inputs = {
        "unet": (x, jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1, 4), jnp.float32)),
        "generator": (jax.ShapeDtypeStruct((1, 4), jnp.float32),),
    }.get(name, (x,))
    options = {"train": False} if name in ("discriminator", "brain_age") else {}
    found = {}
    for devices in (1, 8):
        network = build(name, arguments, num_devices=devices)
        variables = jax.eval_shape(partial(network.init, **options), jax.random.key(0), *inputs)
        program = jax.jit(partial(network.apply, **options)).trace(variables, *inputs)
        found[devices] = _convolution_ranks(program.lower(lowering_platforms=("cpu",)).as_text())
    assert 4 in found[1] and found[8] == {5}


def test_small_convolutions_are_direct_everywhere():
    x, kernel = jnp.ones((1, 4, 4, 4, 2)), jnp.ones((3, 3, 3, 2, 2))
    program = jax.jit(lambda a, b: conv3d(a, b, (1, 1, 1), SAME)).lower(x, kernel).as_text()
    assert _convolution_ranks(program) == {5}


def test_works_inside_scan_and_checkpoint():
    x = jax.random.normal(jax.random.key(0), (1, 12, 12, 12, 16))
    kernels = 0.05 * jax.random.normal(jax.random.key(1), (2, 3, 3, 3, 16, 16))

    def scanned(kernels):
        step = jax.checkpoint(lambda h, k: (conv3d(h, k, (1, 1, 1), SAME), None))
        return (lax.scan(step, x, kernels)[0] ** 2).mean()

    def unrolled(kernels):
        h = _direct(_direct(x, kernels[0], (1, 1, 1), SAME), kernels[1], (1, 1, 1), SAME)
        return (h**2).mean()

    found, expected = jax.jit(jax.grad(scanned))(kernels), jax.jit(jax.grad(unrolled))(kernels)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_conv_computes_in_its_dtype_and_keeps_float32_parameters():
    layer = Conv(8, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 6, 4))
    variables = layer.init(jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    bound = (4 * 27) ** -0.5  # PyTorch: U(-1, 1) / sqrt(fan_in)
    largest = float(jnp.abs(variables["params"]["kernel"]).max())
    assert 0.95 * bound < largest <= bound


def test_group_norm_survives_a_large_mean():
    """At 1000 float32 has 14 binary digits after the point; E[x^2] - E[x]^2 has 4 and misses the variance."""
    values = np.random.default_rng(0).standard_normal((1, 4, 4, 4, 4))
    x = jnp.asarray(0.3 * values + 1000.0, jnp.float32)
    exact = np.asarray(x, np.float64).reshape(1, 64, 2, 2)
    exact = (exact - exact.mean((1, 3), keepdims=True)) / np.sqrt(exact.var((1, 3), keepdims=True) + 1e-6)
    errors = {}
    for fast in (False, True):
        layer = GroupNorm(2, use_fast_variance=fast) if fast else GroupNorm(2)
        found = layer.apply(layer.init(jax.random.key(0), x), x)
        errors[fast] = np.abs(np.asarray(found) - exact.reshape(x.shape)).max()
    assert errors[False] < 1e-3 < 1e-2 < errors[True]


def test_upsampling_repeats_and_pooling_undoes_it():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 2))
    up = upsample_nearest(x)
    np.testing.assert_array_equal(up[:, 1::2, ::2, 1::2], x)
    np.testing.assert_allclose(average_pool(up), x, rtol=1e-6)


def test_timestep_embedding():
    """First and last values for t = 537 and 256 channels as MONAI computes them."""
    embedding = timestep_embedding(jnp.array([537]), 256)[0]
    np.testing.assert_allclose(embedding[:3], [-0.97753966, -0.97927183, 0.99774867], atol=1e-4)
    np.testing.assert_allclose(embedding[128:131], [0.21075159, -0.20255047, 0.06706405], atol=1e-4)
    np.testing.assert_allclose(embedding[-1], 0.05767440, atol=1e-6)
    assert timestep_embedding(jnp.array([1.5, 2.5]), 7).shape == (2, 7)
