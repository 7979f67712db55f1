"""Upsampling as one transposed convolution, in all its forms, against repetition and a convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_networks import UNOPTIMISED

from brainldm.models import layers, upsampling
from brainldm.models.autoencoder import AutoencoderKL
from brainldm.models.layers import upsample_nearest
from brainldm.models.upsampling import upsample_conv3d

FORMS = ("_spread", "_as_backward_input", "_in_phases", "_on_cpu")
SHAPES = [(1, 4, 6, 4, 3), (2, 3, 5, 1, 4)]


def _repeat_and_convolve(x, kernel, route=None):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    y = lax.conv_general_dilated(
        upsample_nearest(x),
        kernel.astype(x.dtype),
        (1, 1, 1),
        ((1, 1),) * 3,
        dimension_numbers=numbers,
        precision=lax.Precision.HIGHEST,
    )
    return y.astype(x.dtype)


def _form(name):
    function = getattr(upsampling, name)
    return lambda x, kernel: function(x, upsampling._summed_over_repeats(kernel).astype(x.dtype))


def _data(shape, features=6):
    x = jax.random.normal(jax.random.key(0), shape)
    return x, jax.random.normal(jax.random.key(1), (3, 3, 3, shape[-1], features))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_values_and_gradients_of_repetition_and_convolution(form, shape):
    x, kernel = _data(shape)
    results = []
    for function in (_repeat_and_convolve, _form(form)):

        def value_and_gradients(x, kernel, function=function):
            value, pullback = jax.vjp(function, x, kernel)
            return value, *pullback(jax.random.normal(jax.random.key(2), value.shape))

        results.append(jax.jit(value_and_gradients, compiler_options=UNOPTIMISED)(x, kernel))
    for expected, found in zip(*results, strict=True):
        assert expected.shape == found.shape
        assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16_every_form_is_as_near_as_the_type_allows(form):
    x, kernel = _data((2, 4, 5, 6, 16))
    x = x.astype(jnp.bfloat16)
    exact = _repeat_and_convolve(x.astype(jnp.float32), kernel)

    found = jax.jit(_form(form), compiler_options=UNOPTIMISED)(x, kernel)
    assert found.dtype == jnp.bfloat16
    assert np.linalg.norm(found.astype(jnp.float32) - exact) < 2**-8 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("platform", "route", "dilated", "barrier"),
    [
        ("cpu", "planes_on_cpu", False, False),
        ("cuda", "planes_on_cpu", True, True),
        ("tpu", "planes_on_cpu", True, False),
        ("cuda", "direct", False, False),
    ],
)
def test_the_form_is_chosen_by_the_platform_lowered_for_and_the_route(platform, route, dilated, barrier):
    data = _data((1, 16, 16, 16, 16), 16)
    program = jax.jit(lambda x, kernel: upsample_conv3d(x, kernel, route)).trace(*data)
    text = program.lower(lowering_platforms=(platform,)).as_text()
    assert ("lhs_dilate = [2, 2, 2]" in text) == dilated
    assert ("optimization_barrier" in text) == barrier


def test_the_decoder_does_without_nineteen_of_27_multiplications_of_its_upsampling(monkeypatch):
    network = AutoencoderKL(channels=(16, 16), num_res_blocks=1, norm_num_groups=2)
    z = jax.ShapeDtypeStruct((1, 12, 12, 12, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 24, 24, 24, 1), jnp.float32))

    def operations():
        program = jax.jit(lambda v, z: network.apply(v, z, method="decode"))
        return program.lower(variables, z).compile(compiler_options=UNOPTIMISED).cost_analysis()["flops"]

    found = operations()
    monkeypatch.setattr(layers, "upsample_conv3d", _repeat_and_convolve)
    before = operations()
    # Taps that meet a voxel, along an axis: three of each of 24 less two at the borders; two for each of 2 x 12 (less
    # two, where the zeros are not part of the array).
    assert before - found == pytest.approx(2 * 16 * 16 * ((3 * 24 - 2) ** 3 - 48 * 46**2), rel=0.01)
