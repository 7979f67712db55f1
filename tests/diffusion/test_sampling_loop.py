"""What is computed before the loop of a sampler changes no sample, and the loop does not compute it again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from brainldm.diffusion.guidance import guided
from brainldm.diffusion.objectives import denoiser
from brainldm.diffusion.samplers import initial_noise, step_noise
from brainldm.diffusion.sampling import SAMPLERS, Sampling, sample_latents
from brainldm.diffusion.schedule import make_chain, make_schedule
from brainldm.models.unet import DiffusionUNet

LATENT = (4, 6, 4, 2)
NETWORK = {
    "in_channels": 2,
    "out_channels": 2,
    "channels": (4, 8),
    "num_res_blocks": 1,
    "attention_levels": (False, True),
    "num_head_channels": (0, 4),
    "norm_num_groups": 2,
    "adaptive_norm": True,
    "null_condition": "learned",
}
# Compiled without optimising: these programs run once, on a few voxels.
QUICK = {"xla_backend_optimization_level": 0}
WAYS = ("concat", "cross_attention", "adaptive_norm")
SCHEDULE = make_schedule()
CONDITIONS = jnp.array([[0.0, 0.2, 0.4, 0.6], [1.0, 0.8, 0.6, 0.4]])
KEYS = jax.random.split(jax.random.key(5), 2)


def network_of(**options):
    """A small network, and random numbers as its parameters."""
    network = DiffusionUNet(**{**NETWORK, **options})
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, *LATENT)), jnp.zeros(2), CONDITIONS)
    rng = np.random.default_rng(0)
    return network, jax.tree.map(lambda s: (0.2 * rng.standard_normal(s.shape)).astype(s.dtype), shapes["params"])


def sampler_of(network, sampling):
    def draw(params, c, keys):
        return sample_latents(network, params, SCHEDULE, sampling, c, keys, LATENT, prediction="velocity")

    return draw


def plain_sampler_of(network, sampling):
    """The same sampler by a loop that calls the whole network in every step."""
    chain = make_chain(SCHEDULE, sampling.num_steps, sampling.spacing)

    def draw(params, c, keys):
        null = network.apply({"params": params}, method="null_conditions")
        function = guided(lambda x, t, c: network.apply({"params": params}, x, t, c), null, sampling.guidance)
        denoise = denoiser(lambda x, t: function(x, t, c), chain, "velocity")
        noise = functools.partial(step_noise, keys, shape=LATENT)
        return SAMPLERS[sampling.sampler](denoise, chain, initial_noise(keys, LATENT), noise, sampling.eta)

    return draw


def assert_same_samples(sampling, **options):
    network, params = network_of(**options)
    found, expected = (
        jax.jit(make(network, sampling), compiler_options=QUICK)(params, CONDITIONS, KEYS)
        for make in (sampler_of, plain_sampler_of)
    )
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("sampler, guidance", [("ddim", 1.0), ("ddpm", 4.0), ("dpmpp_2m", 4.0)])
def test_what_is_computed_before_the_loop_changes_no_sample(sampler, guidance):
    assert_same_samples(Sampling(3, guidance=guidance, sampler=sampler, spacing="log_snr"))


HALF = Sampling(4, guidance=4.0, guidance_interval=(0.5, 0.9))


def test_outside_of_the_interval_the_plain_model_is_evaluated_alone():
    network, params = network_of()
    chain = make_chain(SCHEDULE, HALF.num_steps, HALF.spacing)
    scales = np.where([0.5 <= level <= 0.9 for level in np.sqrt(chain.b[:-1])], 4.0, 1.0).astype(np.float32)
    assert set(scales) == {1.0, 4.0}

    def expected(params, c, keys):
        null = network.apply({"params": params}, method="null_conditions")

        def denoise(x, i):
            function = guided(lambda x, t, c: network.apply({"params": params}, x, t, c), null, jnp.asarray(scales)[i])
            return denoiser(lambda x, t: function(x, t, c), chain, "velocity")(x, i)

        noise = functools.partial(step_noise, keys, shape=LATENT)
        return SAMPLERS["ddim"](denoise, chain, initial_noise(keys, LATENT), noise, 0.0)

    found, wanted = (
        jax.jit(draw, compiler_options=QUICK)(params, CONDITIONS, KEYS)
        for draw in (sampler_of(network, HALF), expected)
    )
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    (scan,) = scans(jax.make_jaxpr(sampler_of(network, HALF))(params, CONDITIONS, KEYS).jaxpr)
    (choice,) = (e for e in scan.params["jaxpr"].jaxpr.eqns if e.primitive.name == "cond")
    batches = [first_batch(branch.jaxpr) for branch in choice.params["branches"]]
    assert batches == [2, 4]  # false: conditions alone; true: beside the null condition


def first_batch(jaxpr):
    """The batch of the first convolution of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return equation.invars[0].aval.shape[0]
        for value in equation.params.values():
            if hasattr(value, "jaxpr") and (found := first_batch(value.jaxpr)):
                return found
    return None


def test_an_interval_of_all_levels_is_the_program_without_one():
    network, params = network_of()

    def program(sampling):
        return str(jax.make_jaxpr(sampler_of(network, sampling))(params, CONDITIONS, KEYS))

    whole = program(Sampling(3, guidance=4.0))
    assert program(Sampling(3, guidance=4.0, guidance_interval=(0.001, 1.0))) == whole
    assert program(Sampling(3, guidance=4.0, guidance_interval=(0.5, 1.0))) != whole


@pytest.mark.parametrize("way", ["cross_attention", None])
def test_nor_does_it_with_one_way_of_conditioning_or_none(way):
    assert_same_samples(Sampling(2), **{name: name == way for name in WAYS}, resblock_updown=False)


def test_parameters_cast_before_the_loop_give_the_same_bits():
    one_level = {"channels": (4,), "attention_levels": (True,), "num_head_channels": (4,)}
    network, params = network_of(dtype=jnp.bfloat16, **one_level)
    cast = network.cast_params(params)
    x, t = jax.random.normal(jax.random.key(1), (2, *LATENT)), jnp.array([3, 700])
    program = jax.jit(lambda params: network.apply({"params": params}, x, t, CONDITIONS))
    np.testing.assert_array_equal(program(cast), program(params))
    whole = network.clone(dtype=jnp.float32).cast_params(params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(whole))


def test_what_layers_read_in_float32_is_not_cast():
    network, params = network_of(dtype=jnp.bfloat16)
    cast = flatten_dict(network.cast_params(params))
    kept = {path for path, leaf in cast.items() if leaf.dtype == jnp.float32}
    norms = {path for path in kept if path[-2:][0].startswith("norm")}
    ends = {"conv_in", "out_0", "out_2"}
    embeddings = {"time_embed_0", "time_embed_2", "condition_embed_0", "condition_embed_2"}
    upsampling = {path for path in kept if path[1:-1] == ("upsampler", "conv1")}
    assert len(norms) > 20 and len(upsampling) == 2
    assert {path[0] for path in kept - norms - upsampling} == {*ends, *embeddings, "null_condition"}


def test_the_loop_reads_parameters_as_they_are_used_and_none_that_it_need_not():
    network, params = network_of(dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(sampler_of(network, Sampling(3, guidance=2.0)))(params, CONDITIONS, KEYS)
    (scan,) = scans(jaxpr.jaxpr)
    read = [leaf.aval for leaf in scan.invars[: scan.params["num_consts"]]]
    kernels = [array for array in read if array.ndim == 5 and array.shape[:3] in ((1, 1, 1), (3, 3, 3))]
    assert len(kernels) > 20
    # The first convolution, the last one, and the one that upsamples.
    expected = [(3, 3, 3, 4, 2), (3, 3, 3, 6, 4), (3, 3, 3, 8, 8)]
    assert sorted(k.shape for k in kernels if k.dtype == jnp.float32) == expected
    hidden, conditions = 4 * network.channels[0], network.condition_dim
    met_by_times_or_conditions = [a.shape for a in read if a.ndim == 2 and a.shape[0] in (hidden, conditions)]
    assert met_by_times_or_conditions == []


def scans(jaxpr):
    """The outermost scans of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        else:
            for value in equation.params.values():
                yield from scans(value.jaxpr) if hasattr(value, "jaxpr") else ()
