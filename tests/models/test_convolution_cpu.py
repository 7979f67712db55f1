"""Each way of a convolution on a CPU against XLA's direct one, and the table from which the ways are chosen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_networks import UNOPTIMISED

from brainldm.models import convolution_cpu, convolution_table, winograd
from brainldm.models.convolution_table import quickest, table

PADDINGS = {
    "same": ((1, 1),) * 3,
    "none": ((0, 0),) * 3,
    "uneven": ((2, 1), (0, 2), (1, 0)),
}
SHAPE = (2, 7, 6, 9, 4)


def _direct(x, kernel, padding):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1, 1), padding, dimension_numbers=numbers, precision=lax.Precision.HIGHEST
    )


def _data(size=3, features=5, shape=SHAPE):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (shape, (size, size, size, shape[-1], features))
    )


def _same(found, expected, tolerance=2e-6):
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


def _ways(ways, size):
    return [name for name in ways if size == 3 or name != "winograd"]


CASES = [(3, "same"), (3, "none"), (3, "uneven"), (2, "same"), (4, "same")]


@pytest.mark.parametrize(("size", "padding"), CASES)
def test_every_way_has_the_values_of_the_direct_convolution(size, padding):
    x, kernel = _data(size)
    expected = _direct(x, kernel, PADDINGS[padding])
    for name in _ways(convolution_cpu.FORWARD, size):
        way = jax.jit(convolution_cpu.FORWARD[name], static_argnums=2, compiler_options=UNOPTIMISED)
        _same(way(x, kernel, PADDINGS[padding]), expected)


@pytest.mark.parametrize(("size", "padding"), CASES)
def test_every_way_of_the_kernels_gradient_has_its_values(size, padding):
    x, kernel = _data(size)
    y, pullback = jax.vjp(lambda kernel: _direct(x, kernel, PADDINGS[padding]), kernel)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    for name in _ways(convolution_cpu.KERNEL_GRADIENT, size):
        way = jax.jit(convolution_cpu.KERNEL_GRADIENT[name], static_argnums=(2, 3), compiler_options=UNOPTIMISED)
        _same(way(x, dy, kernel.shape[:3], PADDINGS[padding]), pullback(dy)[0])


@pytest.mark.parametrize("block", [1, 2**13])
def test_blocks_of_any_size_give_the_same_sums(monkeypatch, block):
    monkeypatch.setattr(winograd, "_BLOCK", block)
    monkeypatch.setattr(winograd, "_FEWEST", 1)
    monkeypatch.setattr(convolution_cpu, "_BLOCK", block)
    x, kernel = _data(shape=(1, 9, 7, 6, 3))
    padding = PADDINGS["uneven"]
    y, pullback = jax.vjp(lambda kernel: _direct(x, kernel, padding), kernel)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    found = jax.jit(lambda x, k: winograd.convolve(x, k, padding), compiler_options=UNOPTIMISED)(x, kernel)
    _same(found, y)
    for name in ("winograd", "products"):
        way = convolution_cpu.KERNEL_GRADIENT[name]
        gradient = jax.jit(lambda x, dy, way=way: way(x, dy, (3, 3, 3), padding), compiler_options=UNOPTIMISED)
        _same(gradient(x, dy), pullback(dy)[0])


def test_at_the_papers_width_winograd_is_as_exact_as_it_has_to_be():
    """Against float64, of which one voxel is enough: the sum of its neighbourhood."""
    x, kernel = _data(features=8, shape=(1, 6, 6, 6, 512))
    exact = np.einsum("dhwc,dhwcf->f", *(np.asarray(a, np.float64) for a in (x[0, 1:4, 2:5, 3:6], kernel)))
    found = jax.jit(winograd.convolve, static_argnums=2)(x, kernel, PADDINGS["none"])[0, 1, 2, 3]
    assert np.linalg.norm(found - exact) < 1e-5 * np.linalg.norm(exact)


def test_only_the_input_and_the_kernel_are_kept_for_the_backward_pass():
    x, kernel = _data()
    _, pullback = jax.vjp(lambda x, k: convolution_cpu.convolve(x, k, (1, 1, 1), PADDINGS["same"]), x, kernel)
    kept = [leaf.shape for leaf in jax.tree.leaves(pullback) if leaf.size > 1]
    assert sorted(kept) == sorted([x.shape, kernel.shape])


def test_it_can_be_mapped_over_volumes_and_kernels():
    x, kernel = _data()
    kernels = jnp.stack([kernel, 2 * kernel])

    def loss(x, kernel):
        return jnp.sum(convolution_cpu.convolve(x[None], kernel, (1, 1, 1), PADDINGS["same"]) ** 2)

    gradient = jax.grad(loss, (0, 1))
    found = jax.jit(jax.vmap(gradient), compiler_options=UNOPTIMISED)(x, kernels)
    alone = jax.jit(gradient, compiler_options=UNOPTIMISED)
    for index in range(2):
        for many, one in zip(found, alone(x[index], kernels[index]), strict=True):
            _same(many[index], one)


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [(4, (2, 2, 2), "same"), (3, (2, 2, 2), "uneven"), (3, (1, 2, 3), "none"), (4, (1, 1, 1), "uneven")],
)
def test_planes_have_the_gradients_of_the_direct_convolution(size, strides, padding):
    x, kernel = _data(size)
    padding = PADDINGS[padding]

    def direct(x, kernel):
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)

    y, pullback = jax.vjp(direct, x, kernel)
    dy = jax.random.normal(jax.random.key(1), y.shape)

    def gradients(x, kernel, dy):
        return jax.vjp(lambda x, kernel: convolution_cpu.planes(x, kernel, padding, strides), x, kernel)[1](dy)

    for found, expected in zip(jax.jit(gradients)(x, kernel, dy), pullback(dy), strict=True):
        _same(found, expected)


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2)])
def test_inside_of_a_condition_every_convolution_is_one_that_has_a_quick_kernel(strides):
    """XLA:CPU has these for one order of the axes, and brings others into it outside of conditions alone."""
    x, kernel = _data(size=4, shape=(1, 12, 30, 24, 3))

    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolution_cpu.planes(x, kernel, ((1, 1),) * 3, strides)))

    def program(active, x, kernel):
        return lax.cond(active, jax.grad(loss, (0, 1)), lambda *a: jax.tree.map(jnp.zeros_like, a), x, kernel)

    text = jax.jit(program).lower(True, x, kernel).compile().as_text()
    orders = re.findall(r" convolution\(.*dim_labels=([^,\s]+)", text)
    assert len(orders) >= 12
    assert set(orders) == {"b01f_01io->b01f"}


def test_large_volumes_take_the_same_way_in_order(monkeypatch):
    """What is done to save memory at full size changes neither values nor gradients."""
    x, kernel = _data()

    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolution_cpu.planes(x, kernel, PADDINGS["same"])))

    small = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)
    monkeypatch.setattr(convolution_cpu, "_LARGE", 0)
    large = jax.jit(jax.value_and_grad(lambda x, kernel: loss(x, kernel), (0, 1)))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), small, large)


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2)])
def test_large_volumes_have_gradients_by_every_stride(monkeypatch, strides):
    x, kernel = _data(size=4, shape=(1, 8, 10, 6, 3))

    def gradients(way):
        return jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(way(x, kernel))), (0, 1)))(x, kernel)

    monkeypatch.setattr(convolution_cpu, "_LARGE", 0)
    found = gradients(lambda x, kernel: convolution_cpu.convolve(x, kernel, strides, ((1, 1),) * 3))
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    expected = gradients(
        lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, strides, ((1, 1),) * 3, dimension_numbers=numbers)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4), found, expected)


def test_the_table_names_ways_that_there_are():
    for kind, ways in (
        ("forward", convolution_cpu.FORWARD),
        ("kernel_gradient", convolution_cpu.KERNEL_GRADIENT),
    ):
        for case in table()[kind]:
            assert set(case["seconds"]) <= set(ways) and "planes" in case["seconds"]
            assert all(seconds > 0 for seconds in case["seconds"].values())


def test_the_nearest_measured_case_decides(monkeypatch):
    def case(voxels, inputs, **seconds):
        return {"voxels": voxels, "inputs": inputs, "features": 8, "seconds": seconds}

    cases = {"forward": [case(1000, 8, a=1.0, b=2.0), case(8000, 8, a=2.0, b=1.0), case(1000, 64, c=1.0, b=3.0)]}
    monkeypatch.setattr(convolution_table, "table", lambda: cases)
    assert quickest("forward", ("a", "b"), 2500, 8, 8) == "a"
    assert quickest("forward", ("a", "b"), 3000, 8, 8) == "b"
    assert quickest("forward", ("a", "b"), 1000, 32, 8) == "b"  # c is not to be had, a was not measured


def test_planes_give_way_to_what_is_quicker_by_a_fifth_and_two_milliseconds(monkeypatch):
    for planes, other, way in ((1.0, 0.85, "planes"), (1.0, 0.8, "other"), (0.003, 0.0015, "planes")):
        case = {"voxels": 1, "inputs": 1, "features": 1, "seconds": {"planes": planes, "other": other}}
        monkeypatch.setattr(convolution_table, "table", lambda case=case: {"forward": [case]})
        assert quickest("forward", ("planes", "other"), 1, 1, 1) == way
