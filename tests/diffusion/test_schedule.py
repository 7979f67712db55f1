"""The tables against reference values and against their definitions."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.diffusion.schedule import (
    SCHEDULE_KINDS,
    SPACINGS,
    Schedule,
    alpha_bar,
    chain_at_log_snr,
    ddim_timesteps,
    make_chain,
    make_schedule,
)
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

    flow = make_schedule("rectified_flow", num_train_steps=4)
    s = np.array([1, 3, 5, 7]) / 8
    np.testing.assert_allclose(
        flow.one_minus_alphas_cumprod / flow.alphas_cumprod, (s / (1 - s)) ** 2, rtol=1e-6
    )  # sigma^2 / alpha^2 of (1 - s) x_0 + s eps


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
    a, b = alpha_bar(schedule, jnp.array([0, 500, -1]), ndim=4)
    assert a.shape == b.shape == (3, 1, 1, 1)
    np.testing.assert_array_equal(a[:, 0, 0, 0], [*schedule.alphas_cumprod[[0, 500]], 1.0])
    np.testing.assert_array_equal(b[:, 0, 0, 0], [*schedule.one_minus_alphas_cumprod[[0, 500]], 0.0])
    assert alpha_bar(schedule, 3, ndim=4)[0].shape == ()


def test_schedule_is_a_pytree_that_can_be_traced():
    schedule = make_schedule()
    value = jax.jit(lambda s, t: alpha_bar(s, t)[0])(schedule, 250)
    assert isinstance(jax.tree.map(lambda leaf: leaf, schedule), Schedule)
    np.testing.assert_array_equal(value, schedule.alphas_cumprod[250])


def test_the_leading_chain_holds_the_tables_own_numbers():
    schedule = make_schedule()
    chain = make_chain(schedule, 50)
    np.testing.assert_array_equal(chain.t, np.arange(980, -1, -20))
    np.testing.assert_array_equal(chain.a, [*schedule.alphas_cumprod[980::-20], 1.0])
    np.testing.assert_array_equal(chain.b, [*schedule.one_minus_alphas_cumprod[980::-20], 0.0])


@pytest.mark.parametrize("kind", SCHEDULE_KINDS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 25])
def test_a_chain_descends_to_the_clean_latent(kind, spacing, num_steps):
    chain = make_chain(make_schedule(kind), num_steps, spacing)
    assert (chain.t.shape, chain.a.shape, chain.b.shape) == ((num_steps,), (num_steps + 1,), (num_steps + 1,))
    assert {x.dtype for x in jax.tree.leaves(chain)} == {np.dtype(np.float32)}
    assert np.all(np.diff(chain.t) < 0) and np.all(np.diff(chain.a) > 0)
    assert np.all(np.diff(chain.b) <= 0)  # near b = 1 float32 does not tell neighbours apart; a does
    assert chain.a[-1] == 1 and chain.b[-1] == 0
    np.testing.assert_allclose(chain.a.astype(np.float64) + chain.b, 1.0, atol=1e-7)
    if spacing != "leading":
        assert chain.t[0] == 999
    if spacing not in ("leading", "trailing"):
        assert num_steps == 1 or chain.t[-1] == 0


def test_monais_steps_end_where_its_scheduler_says():
    schedule = make_schedule()
    chain = make_chain(schedule, 10, "monai")
    np.testing.assert_array_equal(chain.t, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0])
    np.testing.assert_array_equal(chain.ends[0][:2], schedule.alphas_cumprod[[899, 788]])
    assert (chain.ends[0][-1], chain.ends[1][-1]) == (1, 0)


def test_spacings_by_their_definitions():
    schedule = make_schedule()
    np.testing.assert_array_equal(make_chain(schedule, 50, "trailing").t, np.arange(999, 0, -20))
    chain = make_chain(schedule, 10, "karras")
    sigma = np.sqrt(chain.b[:-1].astype(np.float64) / chain.a[:-1])
    np.testing.assert_allclose(np.diff(sigma ** (1 / 7)), np.diff(sigma ** (1 / 7))[0], rtol=1e-4)
    chain = make_chain(schedule, 10, "log_snr")
    log_snr = 0.5 * np.log(chain.a[:-1].astype(np.float64) / chain.b[:-1])
    np.testing.assert_allclose(np.diff(log_snr), np.diff(log_snr)[0], rtol=1e-4)


def test_fractional_time_steps_agree_with_the_table():
    """At the levels of the table t is whole; halfway between two of them in lambda it is halfway between them."""
    schedule = make_schedule()
    a, b = (table.astype(np.float64) for table in schedule)
    log_snr = 0.5 * np.log(a / b)
    np.testing.assert_allclose(chain_at_log_snr(schedule, log_snr[[900, 500, 3]]).t, [900, 500, 3], atol=1e-4)
    between = chain_at_log_snr(schedule, [0.5 * (log_snr[700] + log_snr[701])])
    np.testing.assert_allclose(between.t, [700.5], atol=1e-4)
    assert a[701] < between.a[0] < a[700]
