"""Small networks for tests: random numbers as parameters, and each program compiled once, however often it is run."""

import functools

import jax
import numpy as np

# The programs are compiled without optimising them: they run a few times, on a few voxels.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


def random_variables(network, *inputs):
    """Random numbers in place of every parameter, zero kernels too, so that all paths are open."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


@functools.cache
def _program(network, method):
    return jax.jit(
        lambda variables, *inputs: network.apply(variables, *inputs, method=method), compiler_options=UNOPTIMISED
    )


def apply(network, variables, *inputs, method=None):
    """network.apply as a compiled program, the same one for equal networks."""
    return _program(network, method)(variables, *inputs)
