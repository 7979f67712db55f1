"""Stage two: the denoising network learns from the latents of a frozen autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from brainldm.data.codec import Codec
from brainldm.data.latents import CachedLatents, SampledLatents
from brainldm.data.pipeline import LatentSource, batches
from brainldm.datasets.demography import fit_demography
from brainldm.diffusion.sampling import Sampling, sample_latents
from brainldm.models.build import build
from brainldm.parallel.distributed import is_primary, whole
from brainldm.parallel.mesh import BATCH, VOLUMES, num_batch_shards, process_shard, replicated, shard_batch
from brainldm.parallel.sharding import Sharding, abstract_like
from brainldm.reports.mosaics import mosaic
from brainldm.runtime.console import log
from brainldm.runtime.errors import UserError
from brainldm.training import diffusion
from brainldm.training.config import covariates_of
from brainldm.training.init_from import InitFrom, said_of_latents, said_of_objective
from brainldm.training.inputs import (
    conditions_of,
    conditions_sha256,
    images_sha256,
    latent_cache,
    padded_batches,
    read_splits,
    scan_info,
)
from brainldm.training.restore import autoencoder_arguments, load_autoencoder
from brainldm.training.stage import (
    IMAGES,
    Eval,
    EvalResult,
    LatentStage,
    LoadedStage,
    Program,
    array_shape,
    whole_batches,
)
from brainldm.weights.power_ema import AVERAGES, write_snapshot


class DiffusionStage(LatentStage):
    """A denoising loss on latents [B, d, h, w, C] with conditions [B, K]. The autoencoder alone splits volumes."""

    name = "diffusion"
    program_names = ("train", "sample", "encode", "decode")
    splits_volumes = False

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        super().__init__(config, mesh)
        self.condition_width = covariates_of(config).width

    # state and step

    @cached_property
    def latent_shape(self) -> tuple[int, ...]:
        """[d, h, w, C] of the latents of a volume."""
        return self.codec.latent_shape

    @cached_property
    def unet(self) -> Any:
        """The denoising network."""
        arguments = diffusion.unet_arguments(self.config, self.latent_shape[-1], self.condition_width)
        return build("unet", arguments, num_devices=self.mesh.size)

    @cached_property
    def _functions(self) -> tuple[Callable, Callable, Callable]:
        return diffusion.build(self.config, self.unet, self.sharding)

    def state_shapes(self) -> Any:
        return diffusion.state_shapes(self.config, self.latent_shape)

    def init(self, latent_scale: float) -> Any:
        batch = {"latent": jnp.zeros((1, *self.latent_shape)), "condition": jnp.zeros((1, self.condition_width))}
        return self._functions[0](jax.random.key(self.config.seed), batch, latent_scale)

    def train_step(self, state: Any, batch: dict, frozen: Any) -> tuple[Any, dict[str, jax.Array]]:
        return self._functions[1](state, batch, frozen)

    def sample(self, params: Any, condition: jax.Array, keys: jax.Array) -> jax.Array:
        """Inside jit: scaled latents [B, d, h, w, C] for `condition` [B, K], as config.sampling says; keys [B]."""
        return sample_latents(
            self.unet,
            self.sharding.gather_params(params),
            diffusion.schedule_of(self.config),
            Sampling(**self.config.sampling),
            condition,
            keys,
            self.latent_shape,
            prediction=self.config.loss.prediction,
            constrain=self.sharding.constrain_batch,
        )

    # data and evals

    def load(self, workdir: Path) -> LoadedStage:
        """What of the dataset the latent cache lacks is encoded with the frozen autoencoder first."""
        config, every = self.config, self.config.every
        trained = load_autoencoder(config.autoencoder)
        if trained.spacing_mm != config.data.spacing_mm:
            raise UserError(
                f"config.data.spacing_mm is {config.data.spacing_mm}, but the autoencoder {config.autoencoder} was "
                f"trained at {trained.spacing_mm} mm. Use the same."
            )
        arguments = diffusion.unet_arguments(config, self.latent_shape[-1], self.condition_width)
        begun = InitFrom(config, workdir, "unet", arguments, self.state_shapes().params)
        frozen = Sharding(config.mesh, self.volume_mesh).put_params(trained.params)
        splits, excluded = read_splits(config, need_images=False)
        cache = latent_cache(
            config,
            workdir,
            splits,
            self.encoder(frozen),
            batch_size=self.codec.batch_size(),
            process_shard=process_shard(self.volume_mesh),
            autoencoder={"autoencoder_sha256": trained.sha256, "dtype": str(trained.arguments["dtype"])},
            latent_shape=self.latent_shape,
        )
        names = {split: [record.name for record in records] for split, records in splits.items()}
        conditions = {split: conditions_of(config, records) for split, records in splits.items()}
        validation = LatentSource(CachedLatents(cache, names["validation"]), conditions["validation"])
        if cache.variants > 1 or config.latents.sample:
            train = SampledLatents(cache, names["train"], conditions["train"], config.latents.sample)
        else:
            train = LatentSource(CachedLatents(cache, names["train"]), conditions["train"])
        scale = config.latent_scale or self._latent_scale(begun, cache.std(names["train"]), trained.sha256)
        process, processes = process_shard(self.mesh)
        snapshot = partial(self.snapshot, workdir / AVERAGES)
        covariates, people = covariates_of(config), [scan.covariates for scan in splits["train"]]
        return LoadedStage(
            init=lambda: self.init(scale),
            frozen=None,
            train=batches(
                train,
                batch_size=config.batch_size,
                seed=config.seed,
                transform=train.sample if isinstance(train, SampledLatents) else None,
                process_index=process,
                process_count=processes,
            ),
            names=names["train"],
            evals={
                "validation": Eval(every.validate, partial(self.validate, validation)),
                "images": Eval(every.images, partial(self.samples, validation, frozen)),
                **({"averages": Eval(every.ema_snapshots, snapshot)} if config.optimizer.power_ema else {}),
            },
            run_info={
                **scan_info(config, splits, workdir),
                "observed": covariates.observed_in(people),
                "demography": fit_demography(people, covariates).to_json(),
                "images_sha256": images_sha256(cache.content_ids(names["train"])),
                "conditions_sha256": conditions_sha256(config, conditions["train"]),
                "latent_scale": scale,
                "latent_shape": list(self.latent_shape),
                "autoencoder_sha256": trained.sha256,
                "latents": str(cache.folder),
                **({"init_from": begun.noted} if begun.noted else {}),
            },
            excluded=excluded,
            begin=begun.begin,
        )

    def _latent_scale(self, begun: InitFrom, deviation: float, autoencoder_sha256: str) -> float:
        """What latents of this standard deviation are multiplied by: to 1, or as the model did that training begins
        with, where its latents are of the same autoencoder."""
        if begun.begins:
            model = begun.point.model
            same = begun.point.autoencoder_sha256 == autoencoder_sha256
            scale = model.spec.latent_scale if same else 1.0 / deviation
            objective = self.config.loss.prediction, self.config.schedule.to_dict(), covariates_of(self.config)
            other = "They are those of another autoencoder, which it has to learn anew."
            begun.compare(
                {"latent_scale": scale, "latents_sd": deviation * model.spec.latent_scale},
                said_of_latents(deviation * model.spec.latent_scale),
                "" if same else other,
                *said_of_objective(model.spec, *objective),
            )
        return begun.noted["latent_scale"] if begun.noted else 1.0 / deviation

    def snapshot(self, folder: Path, state: Any) -> EvalResult:
        """Write the power-function averages as they are now; a full disk is said and stops nothing."""
        averages = jax.tree.map(whole, state.averages)
        if is_primary():
            try:
                write_snapshot(folder, int(state.step), averages)
            except OSError as error:
                log(f"{folder}: no snapshot of the averages at step {int(state.step)} ({error.strerror}).")
        return EvalResult()

    def encoder(self, params: Any) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
        """What encodes the scans that the latent cache lacks, with the autoencoder's parameters."""
        return self.codec.encoder(params)

    def validate(self, source: LatentSource, state: Any) -> EvalResult:
        """The mean validation loss of the moving average over all held-out scans."""
        size, found = num_batch_shards(self.mesh) * max(1, min(8, len(source))), []
        for batch, real in padded_batches(source, size, process_shard=process_shard(self.mesh)):
            losses = self._losses(state.ema, state.latent_scale, shard_batch(batch, self.mesh))
            found.extend(np.asarray(losses, np.float64)[:real])
        return EvalResult({"loss": float(np.mean(found))})

    def samples(self, source: LatentSource, autoencoder: Any, state: Any) -> EvalResult:
        """Some held-out scans, decoded, beside samples of the moving average with the same conditions."""
        process, processes = process_shard(self.mesh)
        numbers = np.arange(whole_batches(IMAGES, self.mesh))
        numbers = np.split(numbers.astype(np.int32), processes)[process]  # of the rows that this process gives
        rows = [source[int(i) % IMAGES % len(source)] for i in numbers]
        batch = {key: np.stack([row[key] for row in rows]) for key in ("latent", "condition")}
        arrays = shard_batch((batch, numbers), self.mesh)
        real, sampled = self._pairs(state.ema, autoencoder, state.latent_scale, *arrays)
        panels = [
            ("held-out scans, reconstructed", list(np.asarray(real))),
            ("generated with the same conditions", list(np.asarray(sampled))),
        ]
        return EvalResult(images={"samples": mosaic(panels)})

    @cached_property
    def _losses(self):
        return jax.jit(self._functions[2], out_shardings=replicated(self.mesh))

    @cached_property
    def _pairs(self):
        @partial(jax.jit, out_shardings=replicated(self.volume_mesh))
        def pairs(params, autoencoder, latent_scale, batch, numbers):
            """Held-out latents decoded, and samples for the same conditions with the noise of `numbers`."""
            keys = jax.random.split(jax.random.key(self.config.seed), IMAGES)[numbers % IMAGES]
            latents = self.sample(params, batch["condition"], keys)
            decode = self.codec.decode
            real, sampled = decode(autoencoder, batch["latent"], 1.0), decode(autoencoder, latents, latent_scale)
            return real[:IMAGES], sampled[:IMAGES]

        return pairs

    # programs, for planning

    @cached_property
    def codec(self) -> Codec:
        return Codec(autoencoder_arguments(self.config), self.config.data.spacing_mm, self.volume_mesh)

    def train_program(self, batch: int | None = None) -> Program:
        batch = batch or self.config.batch_size
        arrays = {
            "latent": array_shape((batch, *self.latent_shape), self.mesh, VOLUMES),
            "condition": array_shape((batch, self.condition_width), self.mesh, BATCH),
        }
        return self.step_program(arrays, None, batch)

    def sample_program(self, batch: int | None = None) -> Program:
        """From conditions to latents."""
        batch = batch or num_batch_shards(self.mesh)
        params = abstract_like(self.state_shapes().params, replicated(self.mesh))
        condition = array_shape((batch, self.condition_width), self.mesh, BATCH)
        keys = array_shape((batch,), self.mesh, BATCH, jax.eval_shape(lambda: jax.random.key(0)).dtype)
        return Program(self.sample, (params, condition, keys), batch, params)
