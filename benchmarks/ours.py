"""The cases through brainldm, as its own commands compile them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cases import AUTOENCODER_RATE, KL_WEIGHT, NUM_TRAIN_STEPS, UNET_DECAY, UNET_RATE, Case, inputs
from brainldm.diffusion.objectives import diffusion_loss
from brainldm.diffusion.samplers import initial_noise
from brainldm.diffusion.sampling import Sampling, decode_latents, sample_latents
from brainldm.diffusion.schedule import make_schedule
from brainldm.models.build import build
from brainldm.planning.arithmetic import operations
from brainldm.runtime.errors import UserError
from brainldm.training.autoencoder import kl_divergence
from brainldm.training.optimizer import make_optimizer
from brainldm.weights.monai import autoencoder_from_monai, autoencoder_to_monai, unet_from_monai, unet_to_monai
from brainldm.weights.torch_file import read_torch_state_dict

_FROM_MONAI = {"autoencoder": autoencoder_from_monai, "unet": unet_from_monai}
_TO_MONAI = {"autoencoder": autoencoder_to_monai, "unet": unet_to_monai}


def start(device: str, threads: int, tuned: bool) -> Brainldm:
    """Open the device. Raises UserError when JAX has no such device."""
    try:
        return Brainldm(jax.devices(device)[0])
    except RuntimeError as error:
        raise UserError(
            f"JAX sees no {device.upper()} here ({error}). Install the CUDA build (pip install 'brainldm[cuda13]'), "
            "or choose --device cpu."
        ) from error


class Brainldm:
    """What the worker asks of a library."""

    def __init__(self, device: jax.Device):
        self._device = device

    def describe(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
        return {"versions": versions, "device": self._device.device_kind}

    def product(self) -> tuple[Callable[[], None], float]:
        """A matrix product, and its FLOPs."""
        side, dtype = (2048, jnp.float32) if self._device.platform == "cpu" else (8192, jnp.bfloat16)
        matrix = jnp.ones((side, side), dtype, device=self._device)
        dot = jax.jit(jnp.dot)
        return lambda: dot(matrix, matrix).block_until_ready(), 2.0 * side**3

    def peak_bytes(self) -> int | None:
        """Highest memory of the device where it has its own."""
        return (self._device.memory_stats() or {}).get("peak_bytes_in_use")

    def prepare(self, case: Case, folder: Path) -> Program:
        networks = {
            name: build(name, {**arguments, "dtype": case.dtype}, num_devices=1)
            for name, arguments in (("autoencoder", case.autoencoder), ("unet", case.unet))
            if arguments
        }
        params = {name: jax.device_put(_params(name, network, case, folder)) for name, network in networks.items()}
        keys = jax.random.split(jax.random.key(0), case.batch)
        np.save(folder / "drawn.npy", initial_noise(keys, case.latent_shape[1:]))
        arrays = {name: jnp.asarray(array) for name, array in inputs(case).items()}
        return _PROGRAMS[case.work](case, networks, params, {**arrays, "keys": keys})


def _params(name: str, network: nn.Module, case: Case, folder: Path) -> Any:
    """Those that MONAI wrote, or random ones where it did not."""
    path = folder / f"{name}.pt"
    if path.exists():
        groups = (case.autoencoder if name == "autoencoder" else case.unet)["norm_num_groups"]
        return _FROM_MONAI[name](read_torch_state_dict(path), norm_num_groups=groups)[0]
    given = jnp.zeros(case.shape), jnp.zeros(case.batch), jnp.zeros((case.batch, 4))
    given = given[:1] if name == "autoencoder" else (jnp.zeros(case.latent_shape), *given[1:])
    shapes = jax.eval_shape(network.init, jax.random.key(0), *given)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes)


class Program:
    """A jitted function and what it is called with. With `state` it is a training step (state, ...) -> (state, loss)
    that gives its state back, in place of the first argument."""

    def __init__(self, case: Case, function: Callable, arguments: tuple[Any, ...], training: str = ""):
        self._case, self._function, self._arguments, self._training = case, function, arguments, training

    def first(self) -> None:
        donate = (0,) if self._training else ()
        self._shapes = jax.eval_shape(lambda *arguments: arguments, *self._arguments)
        self._compiled = jax.jit(self._function, donate_argnums=donate).lower(*self._arguments).compile()
        self.again()

    def again(self) -> None:
        self._output = jax.block_until_ready(self._compiled(*self._arguments))
        if self._training:
            self._arguments = (self._output[0], *self._arguments[1:])

    def results(self) -> dict[str, np.ndarray]:
        if not self._training:
            outputs = jax.tree.leaves(self._output)
            return {f"output_{index}": np.asarray(output) for index, output in enumerate(outputs)}
        (_, opt_state), loss = self._output
        # After one step Adam's first moment is a tenth of the gradient.
        moment = _TO_MONAI[self._training](optax.tree.get(opt_state, "mu"))
        return {"loss": np.asarray(loss), **{f"gradient/{name}": array for name, array in moment.items()}}

    def costs(self) -> dict[str, float | None]:
        platform = jax.tree.leaves(self._output)[0].device.platform
        found = self._compiled.cost_analysis() or {}
        size = found.get("bytes accessed")
        if self._case.work == "generate":
            size = None  # the compiler counts a loop once, and here not everything is in one
        elif size and self._case.work == "ddim":
            size *= self._case.num_steps
        return {"flops": operations(self._function, *self._shapes, platform=platform), "bytes": size}


def _encode(case: Case, networks: dict, params: dict, arrays: dict) -> Program:
    def encode(params, image):
        return networks["autoencoder"].apply({"params": params}, image, method="encode")

    return Program(case, encode, (params["autoencoder"], arrays["image"]))


def _decode(case: Case, networks: dict, params: dict, arrays: dict) -> Program:
    def decode(params, latent):
        return networks["autoencoder"].apply({"params": params}, latent, method="decode")

    return Program(case, decode, (params["autoencoder"], arrays["latent"]))


def _unet(case: Case, networks: dict, params: dict, arrays: dict) -> Program:
    def predict(params, latent, t, condition):
        return networks["unet"].apply({"params": params}, latent, t, condition)

    return Program(case, predict, (params["unet"], arrays["latent"], arrays["t"], arrays["condition"]))


def _drawn(case: Case, unet: nn.Module, params: Any, condition: jax.Array, keys: jax.Array) -> jax.Array:
    sampling = Sampling(case.num_steps, guidance=case.guidance)
    shape = case.latent_shape[1:]
    return sample_latents(unet, params, make_schedule(), sampling, condition, keys, shape, prediction="epsilon")


def _ddim(case: Case, networks: dict, params: dict, arrays: dict) -> Program:
    def sample(params, condition, keys):
        return _drawn(case, networks["unet"], params, condition, keys)

    return Program(case, sample, (params["unet"], arrays["condition"], arrays["keys"]))


def _generate(case: Case, networks: dict, params: dict, arrays: dict) -> Program:
    def generate(params, condition, keys):
        latents = _drawn(case, networks["unet"], params["unet"], condition, keys)
        return decode_latents(networks["autoencoder"], params["autoencoder"], latents, 1.0)

    return Program(case, generate, (params, arrays["condition"], arrays["keys"]))


def _training(case: Case, name: str, loss: Callable, params: Any, rate: float, decay: float, batch: tuple) -> Program:
    optimizer = make_optimizer(rate, num_steps=NUM_TRAIN_STEPS, weight_decay=decay)

    def step(state, *batch):
        params, opt_state = state
        value, gradients = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return Program(case, step, ((params, optimizer.init(params)), *batch), training=name)


def _autoencoder_step(case: Case, networks: dict, params: dict, arrays: dict) -> Program:
    autoencoder = networks["autoencoder"]

    def loss(params, image, noise):
        mu, sigma = autoencoder.apply({"params": params}, image, method="encode")
        reconstruction = autoencoder.apply({"params": params}, mu + sigma * noise, method="decode")
        return jnp.mean(jnp.abs(reconstruction - image)) + KL_WEIGHT * kl_divergence(mu, sigma)

    batch = arrays["image"], arrays["noise"]
    return _training(case, "autoencoder", loss, params["autoencoder"], AUTOENCODER_RATE, 0.0, batch)


def _unet_step(case: Case, networks: dict, params: dict, arrays: dict) -> Program:
    schedule = make_schedule(num_train_steps=NUM_TRAIN_STEPS)

    def loss(params, latent, noise, t, condition):
        def network(x, t):
            return networks["unet"].apply({"params": params}, x, t, condition)

        return jnp.mean(diffusion_loss(schedule, "epsilon", network, latent, noise, t))

    batch = tuple(arrays[name] for name in ("latent", "noise", "t", "condition"))
    return _training(case, "unet", loss, params["unet"], UNET_RATE, UNET_DECAY, batch)


_PROGRAMS = {
    "encode": _encode,
    "decode": _decode,
    "unet": _unet,
    "ddim": _ddim,
    "generate": _generate,
    "autoencoder_step": _autoencoder_step,
    "unet_step": _unet_step,
}
