"""The tables against reference values and against their definitions."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.diffusion.schedule import SCHEDULE_KINDS, Schedule, alpha_bar, ddim_timesteps, make_schedule
from brainldm.runtime.errors import UserError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "schedulers.npz"


def test_alpha_bar_of_the_released_model():
    schedule = make_schedule()
    expected = {
        0: 0.9984999895,
        1: 0.9969941378,
        20: 0.9672883749,
        250: 0.5021317601,
        500: 0.1076767892,
        750: 0.0069516702,
        980: 1.428989e-4,
        999: 9.691088e-5,
    }
    for t, value in expected.items():
        # The reference multiplied a thousand factors in float32; its own error is about 1e-6 relative.
        np.testing.assert_allclose(schedule.alphas_cumprod[t], value, rtol=3e-6)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.load(GOLDEN)["alphas_cumprod"], rtol=3e-6)


def test_kinds_by_their_definitions():
    linear = make_schedule("linear", 1e-4, 0.02, 1000)
    betas = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
    np.testing.assert_allclose(linear.alphas_cumprod, np.exp(np.cumsum(np.log1p(-betas))), rtol=1e-6)

    cosine = make_schedule("cosine", num_train_steps=100)
    f = np.cos((np.arange(101) / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine.alphas_cumprod[:99], f[1:100] / f[0], rtol=1e-6)  # before the clip
    np.testing.assert_allclose(cosine.alphas_cumprod[99], cosine.alphas_cumprod[98] * 0.001, rtol=1e-4)


@pytest.mark.parametrize("kind", SCHEDULE_KINDS)
def test_tables_are_float32_decreasing_and_complementary(kind):
    schedule = make_schedule(kind)
    assert schedule.num_train_steps == 1000
    assert schedule.alphas_cumprod.dtype == schedule.one_minus_alphas_cumprod.dtype == np.float32
    assert np.all(np.diff(schedule.alphas_cumprod) < 0)
    assert 0 < schedule.alphas_cumprod[-1] < schedule.alphas_cumprod[0] < 1
    np.testing.assert_allclose(
        schedule.alphas_cumprod.astype(np.float64) + schedule.one_minus_alphas_cumprod, 1.0, atol=1e-7
    )


def test_small_noise_keeps_its_digits():
    schedule = make_schedule("linear", 1e-6, 1e-5, 10)
    np.testing.assert_allclose(schedule.one_minus_alphas_cumprod[0], 1e-6, rtol=1e-6)


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="scaled_linear, linear, cosine"):
        make_schedule("quadratic")
    with pytest.raises(UserError, match="beta_start"):
        make_schedule(beta_start=0.3, beta_end=0.1)
    with pytest.raises(UserError, match="at least one"):
        make_schedule(num_train_steps=0)
    with pytest.raises(UserError, match="between 1 and the 1000"):
        ddim_timesteps(1000, 1001)
    with pytest.raises(UserError, match="between 1 and the 1000"):
        ddim_timesteps(1000, 0)


def test_ddim_timesteps():
    np.testing.assert_array_equal(ddim_timesteps(1000, 50), np.arange(980, -1, -20))
    np.testing.assert_array_equal(ddim_timesteps(1000, 1000), np.arange(999, -1, -1))
    np.testing.assert_array_equal(ddim_timesteps(1000, 1), [0])
    assert ddim_timesteps(1000, 7)[0] == 6 * 142


def test_alpha_bar_lookup():
    schedule = make_schedule()
    signal, noise = alpha_bar(schedule, jnp.array([0, 500, -1]), ndim=4)
    assert signal.shape == noise.shape == (3, 1, 1, 1)
    np.testing.assert_array_equal(signal[:, 0, 0, 0], [*schedule.alphas_cumprod[[0, 500]], 1.0])
    np.testing.assert_array_equal(noise[:, 0, 0, 0], [*schedule.one_minus_alphas_cumprod[[0, 500]], 0.0])
    assert alpha_bar(schedule, 3, ndim=4)[0].shape == ()


def test_schedule_is_a_pytree_that_can_be_traced():
    schedule = make_schedule()
    value = jax.jit(lambda s, t: alpha_bar(s, t)[0])(schedule, 250)
    assert isinstance(jax.tree.map(lambda leaf: leaf, schedule), Schedule)
    np.testing.assert_array_equal(value, schedule.alphas_cumprod[250])
