"""A program of its own for tests that need eight devices: give it OUT.json, and JAX_NUM_CPU_DEVICES=8.

It runs one training step of small networks, and a sampler, on one device and on meshes of eight, and writes what it
found.
"""

import contextlib
import io
import json
import re
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from brainldm import cli
from brainldm.diffusion.sampling import Sampling, sample_latents
from brainldm.diffusion.schedule import make_schedule
from brainldm.models.layers import conv_route
from brainldm.models.unet import DiffusionUNet
from brainldm.parallel.mesh import batch_constraint, make_mesh, replicated, shard_batch
from brainldm.parallel.sharding import Sharding
from brainldm.training import autoencoder
from brainldm.training import config as configs
from brainldm.training.config_files import config_file

MIN_SIZE = 64
VOLUME = (32, 32, 16)  # two planes or more on a device at the deepest level
COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SHAPE = re.compile(r"\w+\[([\d,]*)\]")
# Compiling takes most of the time of these tests.
QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": "True"}


def autoencoder_step(mesh, rules, architecture):
    """(shapes of the state, where they lie, step) of stage one with everything that a step can hold."""
    config = configs.autoencoder_config()
    with config.unlocked():
        config.model.architecture = architecture
        config.model.channels, config.model.latent_channels = (4, 8), 2
        config.model.num_res_blocks, config.model.norm_num_groups, config.model.dtype = 1, 2, "float32"
        config.discriminator.channels, config.discriminator.num_layers = 4, 2
        config.loss.perceptual, config.loss.adversarial_start = "discriminator", 0
        config.mesh.rules, config.mesh.min_size = rules, MIN_SIZE
    sharding = Sharding(config.mesh, mesh)
    init, step, _ = autoencoder.build(config, None, sharding)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *VOLUME, 1)))
    return shapes, sharding.state(shapes), step


def numbers(shapes):
    """A state of these shapes. Drawn by numpy: initial values take longer to compile than the step."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not leaf.shape or "opt_state" in name:
            return np.zeros(leaf.shape, leaf.dtype) + ("latent_scale" in name)
        if name.endswith(("scale", "var")):
            return np.ones(leaf.shape, leaf.dtype)
        return (0.2 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def by_path(tree):
    """(path, leaf) of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def run(mesh, rules, batch, architecture="kl"):
    """One step. What the compiled program communicates, where the state lies; metrics and gradients."""
    shapes, shardings, step = autoencoder_step(mesh, rules, architecture)
    state = jax.device_put(numbers(shapes), shardings)
    arrays = shard_batch(batch, mesh)
    lowered = jax.jit(step, out_shardings=(shardings, replicated(mesh))).lower(state, arrays, None)
    compiled = lowered.compile(compiler_options=QUICK)
    found = COLLECTIVE.findall(compiled.as_text())
    gathered = [shape for types, kind in found if kind == "all-gather" for shape in SHAPE.findall(types)]
    state, metrics = compiled(state, arrays, None)
    leaves = [(name, leaf) for name, leaf in by_path(state) if leaf.size >= MIN_SIZE]
    return {
        "collectives": Counter(kind for _, kind in found),
        "gathered": sorted(set(gathered)),
        "kernels": sorted({",".join(map(str, leaf.shape)) for name, leaf in by_path(shapes) if "kernel" in name}),
        "parts": {name: leaf.size // leaf.addressable_shards[0].data.size for name, leaf in leaves},
        "bytes": compiled.memory_analysis().temp_size_in_bytes,
    }, (jax.device_get(metrics), {name: leaf for name, leaf in by_path(jax.device_get(state)) if "/mu/" in name})


def difference(one, two):
    """The largest difference of metrics, of each relative to itself; and of gradients, relative to the largest one."""
    metrics = max(abs(float(one[0][k]) - float(two[0][k])) / max(abs(float(one[0][k])), 1e-6) for k in one[0])
    largest = max(np.abs(g).max() for g in one[1].values())
    return {"metrics": metrics, "gradients": float(max(np.abs(one[1][k] - two[1][k]).max() for k in one[1]) / largest)}


def samples(mesh):
    """Eight samples, guided, with the batch split over a mesh; on how many devices they come out."""
    network = DiffusionUNet(
        *(2, 2, (4, 8), 1, (False, True), (0, 4), 2), adaptive_norm=True, conv_route=conv_route(mesh.size)
    )
    c = np.linspace(0, 1, 32, dtype=np.float32).reshape(8, 4)
    latent = jnp.zeros((8, 4, 4, 4, 2))
    params = numbers(jax.eval_shape(network.init, jax.random.key(0), latent, latent[:, 0, 0, 0, 0], c)["params"])
    sampling = Sampling(2, guidance=3.0, guidance_interval=(0.5, 1.0))  # the first of the two steps

    def draw(params, c, keys):
        return sample_latents(
            *(network, params, make_schedule(), sampling, c, keys, latent.shape[1:]),
            prediction="velocity",
            constrain=batch_constraint(mesh),
        )

    keys = jax.random.split(jax.random.key(0), len(c))
    drawn = jax.jit(draw, compiler_options=QUICK)(jax.device_put(params, replicated(mesh)), c, keys)
    return {"devices": len(drawn.sharding.device_set)}, np.asarray(drawn)


def message_of(*arguments):
    """Exit code and message of a command line."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = cli.main(arguments)
    return [code, stderr.getvalue()]


def main(out):
    batch = {"image": np.random.default_rng(0).random((2, *VOLUME, 1), np.float32)}
    one_device, space = make_mesh({"data": 1}, jax.devices()[:1]), make_mesh({"data": 2, "space": 2, "space_y": 2})
    results = {}
    results["space_to_depth on one device"], truth = run(one_device, "replicate", batch, "space_to_depth")
    results["space_to_depth"], values = run(space, "replicate", batch, "space_to_depth")
    results["space_to_depth"] |= difference(truth, values)
    results["one device"], truth = run(one_device, "replicate", batch)
    for name, sizes, rules in (
        ("space", {"data": 2, "space": 2, "space_y": 2}, "replicate"),
        ("fsdp", {"data": 1, "fsdp": 2, "space": 4}, "fsdp"),
        ("zero1", {"data": 1, "fsdp": 2, "space_y": 4}, "zero1"),
    ):
        results[name], values = run(make_mesh(sizes), rules, batch)
        results[name] |= difference(truth, values)
    train = ("train", "--config", str(config_file("paper_autoencoder")), "--workdir", f"{out}.run")
    train += ("--config.data.path=nowhere",)
    _, whole = samples(make_mesh({"data": 1}, jax.devices()[:1]))
    results["samples"], split = samples(make_mesh({"data": 8}))
    results["samples"]["difference"] = float(np.abs(split - whole).max() / np.abs(whole).max())
    results["messages"] = {
        "volume": message_of(*train, "--config.mesh.space=8"),
        "devices": message_of(*train, "--config.mesh.space=3"),
        "batch": message_of(*train, "--config.batch_size=3"),
    }
    with open(out, "w") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
