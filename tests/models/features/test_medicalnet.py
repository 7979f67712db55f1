"""Med3D networks against the same networks written in PyTorch (tests/golden/make_perceptual.py made the
numbers)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perceptual_weights import draw, images

from brainldm.models.features.medicalnet import (
    expected_shapes,
    features,
    load_medicalnet,
    perceptual_distance,
    pooled_features,
    z_score,
)
from brainldm.runtime.errors import UserError

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "perceptual.npz"
# At least five positions along two axes of the last map, so that the dilation of 4 reaches other positions.
SHAPE = (2, 40, 33, 48, 1)

# Compiled once for each shape, without optimising: the convolutions are a library's.
UNOPTIMISED = {"xla_backend_optimization_level": 0}
distance_of = jax.jit(perceptual_distance, compiler_options=UNOPTIMISED)
pooled_of = jax.jit(pooled_features, static_argnames="normalise", compiler_options=UNOPTIMISED)


def random_weights(depth):
    return {name: draw(name, shape) for name, shape in expected_shapes(depth).items()}


def volumes(seed, shape=SHAPE):
    return images(seed, shape)


@pytest.fixture(scope="module")
def resnet10():
    return load_medicalnet(random_weights(10))[0]


def check_against_pytorch(params, depth):
    golden = np.load(GOLDEN)
    x, y = volumes(1), volumes(2)
    pooled = np.asarray(pooled_of(params, x))
    assert pooled.shape == (2, 2048 if depth == 50 else 512)
    expected = golden[f"resnet{depth}_pooled"]
    np.testing.assert_allclose(pooled[:, :: pooled.shape[1] // 64], expected, rtol=1e-5, atol=1e-5 * expected.max())
    np.testing.assert_allclose(distance_of(params, x, y), golden[f"resnet{depth}_distance"], rtol=1e-5)


def test_resnet10_agrees_with_pytorch(resnet10):
    check_against_pytorch(resnet10, 10)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_deeper_networks_agree_with_pytorch(depth):
    params, found = load_medicalnet({f"module.{name}": value for name, value in random_weights(depth).items()})
    assert found == depth
    check_against_pytorch(params, depth)


def test_output_stride_is_eight(resnet10):
    shape = jax.eval_shape(features, resnet10, jax.ShapeDtypeStruct((1, 160, 224, 160, 1), jnp.float32)).shape
    assert shape == (1, 20, 28, 20, 512)


@pytest.mark.parametrize("depth", [10, 18, 34, 50])
def test_number_of_parameters(depth):
    """Running statistics are not counted, as in PyTorch."""
    shapes = {name: shape for name, shape in expected_shapes(depth).items() if "running" not in name}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    assert count == np.load(GOLDEN)[f"resnet{depth}_parameters"]


def test_distance_is_zero_for_equal_volumes_and_ignores_brightness_and_contrast(resnet10):
    x, y = volumes(1, (1, 16, 16, 16, 1)), volumes(2, (1, 16, 16, 16, 1))
    np.testing.assert_allclose(distance_of(resnet10, x, x), [0.0], atol=1e-10)
    distance = distance_of(resnet10, x, y)
    assert distance.shape == (1,) and distance.dtype == jnp.float32 and distance[0] > 0
    np.testing.assert_allclose(distance_of(resnet10, 3.0 * x + 2.0, y), distance, rtol=1e-3)


def test_gradient_is_finite_even_for_a_constant_volume(resnet10):
    y = volumes(2, (1, 16, 16, 16, 1))
    gradient = jax.jit(
        jax.grad(lambda x, params: perceptual_distance(params, x, y).sum()), compiler_options=UNOPTIMISED
    )
    for x in (volumes(1, (1, 16, 16, 16, 1)), np.full((1, 16, 16, 16, 1), 0.5, np.float32)):
        assert np.all(np.isfinite(gradient(x, resnet10)))


def test_pooled_features_are_of_each_volume(resnet10):
    x = volumes(1, (2, 16, 16, 16, 1))
    together = pooled_of(resnet10, x)
    np.testing.assert_allclose(pooled_of(resnet10, x[::-1]), together[::-1], rtol=1e-4, atol=1e-5)
    changed = np.stack([x[0], 2.0 * x[1]])
    np.testing.assert_allclose(pooled_of(resnet10, changed), together, rtol=1e-4, atol=1e-5)
    assert not np.allclose(pooled_of(resnet10, x, normalise=False), together)


def test_z_score():
    x = volumes(1, (2, 4, 4, 4, 1))
    np.testing.assert_allclose(z_score(x, False, 1), (x - x.mean()) / x.std(ddof=1), rtol=1e-5, atol=1e-6)
    each = np.stack([(v - v.mean()) / v.std() for v in x])
    np.testing.assert_allclose(z_score(x, True, 0), each, rtol=1e-5, atol=1e-6)


def test_mistakes_are_explained():
    shapes = expected_shapes(10)
    complete = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}
    with pytest.raises(UserError, match=r"1 of \d+ tensors are missing, namely layer2\.0\.bn2\.bias"):
        load_medicalnet({name: value for name, value in complete.items() if name != "layer2.0.bn2.bias"})
    with pytest.raises(UserError, match="type A"):
        load_medicalnet({name: value for name, value in complete.items() if "downsample" not in name})
    with pytest.raises(UserError, match="conv1.weight .* instead of"):
        load_medicalnet(complete | {"conv1.weight": np.zeros((64, 3, 7, 7, 7), np.float32)})
    deeper = complete | {f"layer{k}.{i}.conv1.weight": np.zeros(1) for k in range(1, 5) for i in (1, 2)}
    with pytest.raises(UserError, match="depth 10, 18, 34 or 50; this one has 3, 3, 3, 3 basic"):
        load_medicalnet(deeper)
