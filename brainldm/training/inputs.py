"""What the stages are fed: volumes read from the dataset, latents from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from brainldm.data.augmentation import Augmentation
from brainldm.data.latents import LatentCache, content_id
from brainldm.data.pipeline import VolumeSource, load_image, read_ahead
from brainldm.datasets.bids import read_dataset
from brainldm.datasets.scans import Excluded, Scan
from brainldm.datasets.splits import SPLITS, split_three
from brainldm.runtime.console import Progress, log
from brainldm.runtime.errors import UserError
from brainldm.training.config import covariates_of
from brainldm.training.run_info import read_run_info
from brainldm.volumes.grids import training_grid

LATENTS = "latents"
"""Folder of the latent cache inside a work dir."""

_LOOKED_AT, _ZERO_SHARE = 8, 0.3
"""Scans that tell whether all are stripped of their skulls, and the share of their voxels that is 0 then: some 0.7."""

CONTENT_BYTES, CONTENT_THREADS = 4096, 8
"""Bytes of an image that tell it from another, and files looked into at once: on a file server most is waiting."""


def read_splits(
    config: ml_collections.ConfigDict, need_images: bool = True
) -> tuple[dict[str, list[Scan]], tuple[Excluded, ...]]:
    """The records of the dataset by split ("train", "validation" and "test"), and what of it is left out.

    Without `need_images` a record whose image is gone stays, with the path None.
    """
    covariates = covariates_of(config)
    records = read_dataset(config.data.path, covariates, config.data.max_excluded, need_images)
    if records.excluded:
        log(f"{len(records.excluded)} scans are left out (excluded.tsv); the first: {records.excluded[0].reason}")
    outside = [f"{r.name}: {', '.join(o)}" for r in records if (o := covariates.outside(r.covariates))]
    if outside:
        log(
            f"{len(outside)} of {len(records)} scans lie outside the range of a condition and are kept; their "
            f"normalised values leave [0, 1] ({outside[0]}). config.covariates.ranges sets the ranges."
        )
    return split_three(records, config.data.validation_fraction, config.data.test_fraction), records.excluded


def scan_info(config: ml_collections.ConfigDict, splits: dict[str, list[Scan]], workdir: str | Path) -> dict[str, Any]:
    """What run.json says of the scans: how many, and a hash of the names of those to train on, in their order, which
    is what besides the seed decides which scans a batch holds; and whether there is nothing around their brains, which
    where images are gone is what the run said of them before (None: it did not)."""
    return {
        "scans_training": len(splits["train"]),
        "scans_validation": len(splits["validation"]),
        "scans_sha256": _sha256("\n".join(record.name for record in splits["train"]).encode()),
        "zero_background": _zero_background(config, splits["train"], Path(workdir)),
    }


def _zero_background(config: ml_collections.ConfigDict, scans: list[Scan], workdir: Path) -> bool | None:
    there = [scan for scan in scans if scan.path][:_LOOKED_AT]
    if not there:
        return read_run_info(workdir).get("zero_background") if (workdir / "run.json").exists() else None
    grid = training_grid(config.data.spacing_mm)
    images = [load_image(scan, grid, config.data.scaling, config.data.cache_dir) for scan in there]
    return bool(np.median([(image == 0).mean() for image in images]) > _ZERO_SHARE)


def images_sha256(content_ids: Iterable[str | None]) -> str:
    """A hash of the content of images, by the content id of each, in the order of the scans."""
    return _sha256("\n".join(map(str, content_ids)).encode())


def content_ids(records: list[Scan]) -> list[str | None]:
    """The content id of the image of every record: its size, 4 KiB of its middle and its end, which in a .nii.gz holds
    the checksum of the whole.

    A block of each file, because it is read at every start: all bytes would be the whole dataset.
    """
    with ThreadPoolExecutor(CONTENT_THREADS) as pool:
        return list(pool.map(lambda record: content_id(record.path, CONTENT_BYTES), records))


def conditions_sha256(config: ml_collections.ConfigDict, conditions: np.ndarray) -> str:
    """A hash of the conditions [N, C] of scans, in their order, and of the names of the conditions."""
    names = "\n".join(covariates_of(config).names).encode()
    return _sha256(names + b"\n" + np.ascontiguousarray(conditions, "<f4").tobytes())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def conditions_of(config: ml_collections.ConfigDict, records: list[Scan]) -> np.ndarray:
    """Condition vectors, float32 [N, C]."""
    return covariates_of(config).encode([record.covariates for record in records])


def volume_sources(config: ml_collections.ConfigDict, splits: dict[str, list[Scan]]) -> list[VolumeSource]:
    """Training and validation volumes, read into memory where they fit."""
    data = config.data
    chosen = {name: splits[name] for name in SPLITS[:2]}
    total = sum(map(len, chosen.values()))
    sources = []
    for records in chosen.values():
        memory = data.cache_gib * len(records) / total
        grid, conditions = training_grid(data.spacing_mm), conditions_of(config, records)
        sources.append(VolumeSource(records, conditions, grid, data.scaling, memory, data.cache_dir))
    unpacked = sum(source.unpacks_in_every_epoch for source in sources)
    if unpacked:
        log(
            f"{unpacked} of {total} scans are compressed (.nii.gz) and do not fit into config.data.cache_gib="
            f"{data.cache_gib:g}: they are unpacked whenever they are drawn, some tenths of a second each at 1 mm. "
            "`brainldm prepare` writes volumes that need no unpacking; or name a folder for unpacked copies by "
            "--config.data.cache_dir=FOLDER (12 MB a scan at 1 mm)."
        )
    for what, source in zip(("reading scans to train on", "reading held-out scans"), sources, strict=True):
        if source.fits:
            with Progress(what, len(source)) as progress:
                source.preload(data.threads, progress)
    return sources


def augmentation_of(config: ml_collections.ConfigDict) -> Augmentation:
    """The random changes that a config asks for."""
    return Augmentation(**config.data.augment.to_dict())


def augment_elements(
    config: ml_collections.ConfigDict,
) -> Callable[[dict[str, Any], np.random.Generator], dict[str, Any]] | None:
    """The transform for `batches` that changes images [D, H, W, 1], or None when nothing is to be changed."""
    augment, spacing = augmentation_of(config), config.data.spacing_mm
    if not augment.active:
        return None

    def transform(element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**element, "image": augment(element["image"][..., 0], rng, spacing)[..., None]}

    return transform


def padded_batches(
    source: Any, size: int, threads: int = 0, process_shard: tuple[int, int] = (0, 1)
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of one fixed size over the whole source, and how many rows of each are real; threads read ahead.

    With `process_shard` (number, of how many) only that part of the rows of every batch is read and given.
    """
    number, shards = process_shard
    own = range(number * size // shards, (number + 1) * size // shards)
    # The last scan fills up the last batch.
    indices = [min(start + row, len(source) - 1) for start in range(0, len(source), size) for row in own]
    rows = read_ahead(source.__getitem__, indices, threads, len(own))
    for start in range(0, len(source), size):
        batch = [next(rows) for _ in own]
        yield {key: np.stack([row[key] for row in batch]) for key in batch[0]}, min(size, len(source) - start)


def latent_cache(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    splits: dict[str, list[Scan]],
    encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int,
    process_shard: tuple[int, int],
    autoencoder: dict[str, Any],
    latent_shape: tuple[int, ...],
) -> LatentCache:
    """The encoded scans of all splits, encoding what is missing.

    `autoencoder` is what identifies the networks that encode (JSON). `encode(images [batch_size, D, H, W, 1])` gives
    posterior means and standard deviations; with several processes each gives its rows, those of `process_shard`
    (number, of how many), and gets the whole result. Raises UserError when the cache there is of another autoencoder or
    of other images, or a scan that is missing in it has no image.
    """
    augment, grid = augmentation_of(config), training_grid(config.data.spacing_mm)
    variants = config.latents.variants
    if variants < 1:
        raise UserError(f"config.latents.variants is {variants}; at least 1 (the scan as it is) is wanted.")
    if variants > 1 and not augment.active:
        raise UserError(
            f"config.latents.variants is {variants}, but nothing in config.data.augment is switched on, so all "
            "variants would be the same. Set a probability, for example --config.data.augment.affine_probability=1."
        )
    identity = {
        **autoencoder,
        "spacing_mm": config.data.spacing_mm,
        "scaling": config.data.scaling,
        "latent_shape": latent_shape,
        "variants": variants,
        "augment": {**config.data.augment.to_dict(), "seed": config.seed} if variants > 1 else None,
    }
    cache = LatentCache(config.latents.path or Path(workdir) / LATENTS, identity)
    missing = cache.missing(record for name in SPLITS for record in splits[name])
    _wait("latents read")  # before any process adds to them: all must find the same ones missing
    if missing:
        _require_images(config, missing, len(cache))
        cache.encode_missing(
            sorted(missing, key=lambda record: record.name),
            lambda record: load_image(record, grid, config.data.scaling),
            encode,
            batch_size=batch_size,
            threads=config.data.threads,
            vary=lambda image, rng: augment(image, rng, config.data.spacing_mm),
            seed=config.seed,
            process_shard=process_shard,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    _wait("latents encoded")
    return cache


def _require_images(config: ml_collections.ConfigDict, records: list[Scan], encoded: int) -> None:
    """Raise UserError when scans that have to be encoded have no image."""
    gone = [record.name for record in records if record.path is None]
    if gone:
        raise UserError(
            f"{config.data.path}: {len(gone)} scans have no T1w image and are not among the {encoded} encoded ones "
            f"({', '.join(gone[:5])}). Bring the images back, or take the rows out of participants.tsv."
        )


def _wait(name: str) -> None:
    """Until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
