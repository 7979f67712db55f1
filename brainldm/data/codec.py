"""The autoencoder as a codec: from volumes to latents and back, on devices that may share volumes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from brainldm.diffusion.sampling import decode_latents
from brainldm.models.build import build
from brainldm.parallel.mesh import batch_constraint, check_volume, num_batch_shards, replicated, shard_batch
from brainldm.volumes.grids import training_grid

VOXELS_PER_DEVICE = 160 * 224 * 160
"""Voxels that a device encodes at once: one full-size volume (or its shard of one), or more small ones."""


class Codec:
    """What an autoencoder of constructor `arguments` (dtype by name) does on `mesh` with volumes at a spacing.

    The network's parameters are an argument of every method: on the devices they are whole or sharded, as they come.
    Raises UserError when the mesh cannot split its volumes.
    """

    def __init__(self, arguments: dict[str, Any], spacing_mm: float, mesh: Mesh):
        self.mesh = mesh
        self.network = build("autoencoder", arguments, num_devices=mesh.size)
        self.volume_shape = training_grid(spacing_mm).shape
        check_volume(self.volume_shape, self.network.halvings, mesh)
        self._image = jax.ShapeDtypeStruct((1, *self.volume_shape, self.network.in_channels), jnp.float32)

    @cached_property
    def params_shapes(self) -> Any:
        """The shapes and types of the network's parameters."""
        return jax.eval_shape(self.network.init, jax.random.key(0), self._image)["params"]

    @cached_property
    def latent_shape(self) -> tuple[int, ...]:
        """[d, h, w, C] of the latents of a volume."""
        encode = partial(self.network.apply, method="encode")
        return jax.eval_shape(encode, {"params": self.params_shapes}, self._image)[0].shape[1:]

    def encode(self, params: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inside jit: posterior mean and standard deviation, [B, d, h, w, C] each, of images [B, D, H, W, 1]."""
        params, constrain = self._gathered(params), batch_constraint(self.mesh)
        return tuple(map(constrain, self.network.apply({"params": params}, constrain(image), method="encode")))

    def decode(self, params: Any, latents: jax.Array, latent_scale: float | jax.Array = 1.0) -> jax.Array:
        """Inside jit: images [B, D, H, W] in [0, 1] of latents [B, d, h, w, C] times `latent_scale`."""
        return decode_latents(
            self.network,
            self._gathered(params),
            latents,
            latent_scale,
            at_once=num_batch_shards(self.mesh),
            constrain=batch_constraint(self.mesh),
        )

    def encoder(self, params: Any) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
        """`encode` as a function of host arrays, with these parameters.

        With several processes each gives its own rows of the images and gets all rows of the result.
        """
        function = partial(jax.jit, out_shardings=replicated(self.mesh))(self.encode)
        return lambda images: jax.device_get(function(params, shard_batch(images, self.mesh)))

    def batch_size(self) -> int:
        """How many volumes are encoded at once, over all devices."""
        shards = num_batch_shards(self.mesh)
        volumes = VOXELS_PER_DEVICE * (self.mesh.size // shards) // np.prod(self.volume_shape)
        return shards * int(np.clip(volumes, 1, 8))

    def _gathered(self, params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, replicated(self.mesh))
