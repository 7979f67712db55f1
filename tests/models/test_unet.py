"""Size, shapes, types and the ways of conditioning of the UNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from small_networks import UNOPTIMISED, apply, random_variables

from brainldm.models.unet import DiffusionUNet
from brainldm.runtime.errors import UserError

SMALL = {
    "in_channels": 2,
    "out_channels": 2,
    "channels": (4, 8),
    "num_res_blocks": 1,
    "attention_levels": (False, True),
    "num_head_channels": (0, 4),
    "norm_num_groups": 2,
}
X = jax.random.normal(jax.random.key(1), (2, 4, 6, 4, 2))
T = jnp.array([3, 700])
CONDITION = jnp.array([[0.0, 0.2, 0.4, 0.6], [1.0, 0.8, 0.6, 0.4]])
WAYS = ("concat", "cross_attention", "adaptive_norm")


def _network(**kwargs):
    """A small network with random numbers in place of every zero kernel, so that all paths are open."""
    network = DiffusionUNet(**SMALL, **kwargs)
    return network, random_variables(network, X, T, CONDITION)


def test_the_papers_unet_has_its_number_of_parameters():
    network = DiffusionUNet()
    latent = jax.ShapeDtypeStruct((1, 20, 28, 20, 3), jnp.float32)
    time, condition = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1, 4), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), latent, time, condition)
    leaves = jax.tree.leaves(variables)
    assert (len(leaves), sum(leaf.size for leaf in leaves)) == (528, 553_168_899)
    assert jax.eval_shape(network.apply, variables, latent, time, condition).shape == latent.shape


def test_a_new_network_predicts_zero():
    network = DiffusionUNet(**SMALL, adaptive_norm=True)
    variables = jax.jit(network.init, compiler_options=UNOPTIMISED)(jax.random.key(0), X, T, CONDITION)
    assert not np.any(apply(network, variables, X, T, CONDITION))


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_conditioning_alone_reaches_the_output(way):
    network, variables = _network(**{name: name == way for name in WAYS})
    first = apply(network, variables, X, T, CONDITION)
    second = apply(network, variables, X, T, CONDITION.at[0, 1].add(0.5))
    assert np.abs(first - second)[0].max() > 1e-5
    np.testing.assert_array_equal(first[1], second[1])


def test_without_conditioning_none_is_needed_and_attn2_is_left_out():
    network, variables = _network(**dict.fromkeys(WAYS, False))
    names = {name for path in flatten_dict(variables["params"]) for name in path}
    assert "attn1" in names and not names & {"attn2", "condition_proj"}
    assert apply(network, variables, X, T, None).shape == X.shape


def test_queries_and_keys_of_one_token_do_not_matter():
    """Stored for checkpoints: they get no gradient."""
    network, variables = _network()
    loss = jax.grad(lambda v: (network.apply(v, X, T, CONDITION) ** 2).mean())
    gradient = jax.jit(loss, compiler_options=UNOPTIMISED)(variables)
    for path, leaf in flatten_dict(gradient["params"]).items():
        idle = "attn2" in path and ("to_q" in path or "to_k" in path)
        idle = idle or ("transformer_blocks_0" in path and "norm2" in path)
        assert np.any(leaf) != idle, path


@pytest.mark.parametrize("null", [-1.0, "learned"])
def test_the_network_gives_its_null_conditions(null):
    network, variables = _network(adaptive_norm=True, null_condition=null)
    value = variables["params"]["null_condition"] if null == "learned" else jnp.full(4, null)
    found = network.apply(variables, method="null_conditions")
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, value)
    assert ("null_condition" in variables["params"]) == (null == "learned")


def test_bfloat16_is_close_and_returns_float32():
    network, variables = _network(adaptive_norm=True)
    exact = apply(network, variables, X, T, CONDITION)
    found = apply(network.clone(dtype=jnp.bfloat16), variables, X, T, CONDITION)
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - exact) < 5e-2 * np.linalg.norm(exact)


@pytest.mark.parametrize("levels", [True, (1,)])
def test_remat_changes_neither_parameters_nor_result(levels):
    network, variables = _network()
    found = apply(network.clone(remat=levels), variables, X, T, CONDITION)
    np.testing.assert_allclose(found, apply(network, variables, X, T, CONDITION), rtol=1e-5, atol=1e-6)


def test_mistakes_are_named():
    network, variables = _network()
    with pytest.raises(UserError, match="none was given"):
        network.apply(variables, X, T, None)
    with pytest.raises(UserError, match=r"\(2, 3\) was given"):
        network.apply(variables, X, T, CONDITION[:, :3])
    with pytest.raises(UserError, match="multiples of 2"):
        network.apply(variables, X[:, :3], T, CONDITION)
    with pytest.raises(UserError, match="num_head_channels"):
        network.clone(num_head_channels=(0, 3)).apply(variables, X, T, CONDITION)


@pytest.mark.parametrize("null", ["learned", -1.0])
@pytest.mark.parametrize("way", WAYS)
def test_a_condition_that_is_not_given_is_no_value(way, null):
    ways = {name: name == way for name in WAYS}
    network, variables = _network(**ways, null_condition=null, condition_flags=True)
    if null == "learned":  # 0.2 is the second condition of the first row: the value alone tells nothing
        variables["params"]["null_condition"] = jnp.full(4, 0.2)
    else:
        network = network.clone(null_condition=0.2)
    given = apply(network, variables, X, T, CONDITION)
    absent = apply(network, variables, X, T, CONDITION.at[0, 1].set(jnp.nan))
    assert np.isfinite(absent).all() and np.abs(given - absent)[0].max() > 1e-5
    np.testing.assert_array_equal(given[1], absent[1])
    none = network.apply(variables, method="null_conditions")
    assert none.shape == (4,) and np.isnan(none).all()


def test_flags_widen_what_the_conditions_meet_and_nothing_else():
    shapes = [
        {path: leaf.shape for path, leaf in flatten_dict(_network(adaptive_norm=True, **flags)[1]["params"]).items()}
        for flags in ({}, {"condition_flags": True})
    ]
    changed = {path: (one, shapes[1][path]) for path, one in shapes[0].items() if one != shapes[1][path]}
    assert {path[0] for path in changed} >= {"conv_in", "condition_embed_0", "middle_block"}
    assert all(sum(b) - sum(a) == 4 for a, b in changed.values())
    assert {path[-2] for path in changed if path[0] not in ("conv_in", "condition_embed_0")} == {"to_k", "to_v"}


def test_gradients_reach_the_learned_value_of_what_is_not_given_and_no_other():
    network, variables = _network(cross_attention=False, null_condition="learned", condition_flags=True)
    condition = CONDITION.at[:, 1].set(jnp.nan)

    def size(params):
        return jnp.sum(jnp.square(network.apply({"params": params}, X, T, condition)))

    gradients = jax.jit(jax.grad(size), compiler_options=UNOPTIMISED)(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(gradients["null_condition"] != 0, [False, True, False, False])
