"""The optimizer of both stages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from brainldm.training.optimizer import _matrix_axes, make_optimizer


def test_muon_is_optax_muon_and_keeps_its_state():
    params = {"a": {"kernel": jnp.ones((3, 3, 3, 4, 8)), "bias": jnp.ones(8)}}
    plain = optax.contrib.muon(0.1, adam_learning_rate=0.01, muon_weight_dimension_numbers=_matrix_axes)
    ours = make_optimizer(0.01, num_steps=9, muon_learning_rate=0.1)
    states = [plain.init(params), ours.init(params)]
    for step in range(2):
        gradients = jax.tree.map(lambda x, k=step: jax.random.normal(jax.random.key(k), x.shape), params)
        for number, optimizer in enumerate((plain, ours)):
            updates, states[number] = jax.jit(optimizer.update)(gradients, states[number], params)
            if number == 0:
                expected = updates
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), updates, expected)
        assert optax.tree.get(states[1], "ns_coeffs").shape == (3,)


def test_muon_is_compiled_as_a_loop():
    params = {"kernel": jnp.zeros((1, 1, 1, 4, 8))}
    optimizer = make_optimizer(0.01, num_steps=9, muon_learning_rate=0.1)
    lowered = jax.jit(optimizer.update).lower(params, optimizer.init(params), params)
    assert lowered.as_text().count("dot_general") == 3
    assert "stablehlo.while" in lowered.as_text()
