"""Encoded scans on disk: posterior means and standard deviations in shards, bound to the autoencoder that made them.

A folder holds `index.json` (what every latent depends on: the autoencoder's weights, the grid, the variants) and
shards of a few scans each: `NAME_mean.npy` and `NAME_std.npy`, float32 [scans, variants, d, h, w, C], and `NAME.json`
with the scans, a content id of each image, the sums that the latent scale needs and the checksums of the arrays. The
json is written last, so a shard is there whole or not at all, and any process may write shards beside the others.

float32, not float16: what is trained on is what was encoded, at 134 kB a scan for the paper's latents. Rows are read
from the files as they are sampled; nothing but the page cache of the system holds them, so memory does not grow with
the dataset, and no file stays open.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from brainldm.data.pipeline import read_ahead
from brainldm.datasets.scans import Scan
from brainldm.runtime.console import Progress, log
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json, write_atomically, write_json

INDEX = "index.json"
SHARD_SCANS = 64
"""Scans in a shard: what an interrupted encoding has to do again at most."""

_CONTENT_BYTES = 65536
_KINDS = ("mean", "std")
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where the latents of a scan lie, and what is known of it; `content_id` is that of its image."""

    shard: str
    row: int
    offsets: dict[str, int]
    content_id: str
    total: float
    total_squares: float


class LatentCache:
    """The latents in `folder` for `identity`, what they depend on (JSON; "latent_shape" and "variants" among it).

    Every shard is checked on the way in; one that is damaged counts as not there. Nothing is written before
    `encode_missing`. Raises UserError when the folder holds latents of another identity.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any], threads: int = _THREADS):
        self.folder = Path(folder)
        self.identity = json.loads(json.dumps(identity))  # tuples as the lists that they are once written
        self.shape = tuple(identity["latent_shape"])
        self.variants = int(identity["variants"])
        self._bytes = 4 * math.prod(self.shape)
        self._entries: dict[str, _Entry] = {}
        self._damaged: list[Path] = []
        if (self.folder / INDEX).exists():
            self._check_identity(read_json(self.folder / INDEX))
            paths = sorted(path for path in self.folder.glob("*.json") if path.name != INDEX)
            with Progress("checking the latent cache", len(paths)) as progress:
                for done, _ in enumerate(read_ahead(self._take_in, paths, threads, 2 * threads), 1):
                    progress(done)
        if self._damaged:
            log(
                f"{self.folder}: {len(self._damaged)} damaged or cut off, first {self._damaged[0].name}; encoded again."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def _check_identity(self, found: dict[str, Any]) -> None:
        wanted = self.identity
        different = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
        if different:
            changes = "; ".join(f"{key}: {found.get(key)} there, {wanted.get(key)} wanted" for key in different)
            raise UserError(
                f"{self.folder}: these latents are not of this run ({changes}). Training on them would be wrong; "
                "give another folder by config.latents.path, or remove this one to have the scans encoded again."
            )

    def _take_in(self, path: Path) -> None:
        """Add the scans of a shard when its files are what was written."""
        try:
            shard = read_json(path)
            for kind in _KINDS:
                content = self._file(path.stem, kind).read_bytes()
                if hashlib.sha256(content).hexdigest() != shard["files"][kind]["sha256"]:
                    raise ValueError("checksum")
            offsets = {kind: int(shard["files"][kind]["offset"]) for kind in _KINDS}
            entries = {
                entry["name"]: _Entry(path.stem, row, offsets, entry["image"], entry["sum"], entry["sum_squares"])
                for row, entry in enumerate(shard["scans"])
            }
        except (UserError, OSError, ValueError, KeyError, TypeError):
            self._damaged.append(path)
            return
        self._entries.update(entries)

    def _file(self, shard: str, kind: str) -> Path:
        return self.folder / f"{shard}_{kind}.npy"

    def missing(self, scans: Iterable[Scan]) -> list[Scan]:
        """The scans that are not encoded yet.

        Raises UserError when the image of an encoded one is there and is not the one that was encoded. Images that
        are missing do no harm: the latents are all that training needs.
        """
        scans = list(scans)
        encoded = [scan for scan in scans if scan.name in self]
        with ThreadPoolExecutor(_THREADS) as pool:
            ids = list(pool.map(lambda scan: content_id(scan.path), encoded))
        changed = [
            scan
            for scan, found in zip(encoded, ids, strict=True)
            if found is not None and found != self._entries[scan.name].content_id
        ]
        if changed:
            raise UserError(
                f"{self.folder}: {len(changed)} images are not those that were encoded, first {changed[0].path}. "
                "Give another folder by config.latents.path, or remove this one to have the scans encoded again."
            )
        return [scan for scan in scans if scan.name not in self]

    def read(self, name: str, variant: int = 0, kind: str = "mean") -> np.ndarray:
        """The posterior "mean" or "std" of a variant of a scan, float32 [d, h, w, C]; variant 0 is the scan as it is.

        Raises UserError when the file is missing or has become too short.
        """
        entry = self._entries[name]
        path = self._file(entry.shard, kind)
        start = entry.offsets[kind] + (entry.row * self.variants + variant) * self._bytes
        try:
            values = np.fromfile(path, "<f4", self._bytes // 4, offset=start)
        except OSError as error:
            raise UserError(f"{path}: cannot be read any more ({error.strerror}). Start again to encode it.") from error
        if values.nbytes != self._bytes:
            raise UserError(f"{path}: has become too short. Start again to have its scans encoded again.")
        return values.reshape(self.shape)

    def content_ids(self, names: Iterable[str]) -> list[str | None]:
        """What told the images of these scans from others when they were encoded (see `content_id`)."""
        return [self._entries[name].content_id for name in names]

    def std(self, names: Sequence[str]) -> float:
        """Standard deviation over all values of the means (variant 0) of these scans, without reading them."""
        count = len(names) * math.prod(self.shape)
        mean = math.fsum(self._entries[name].total for name in names) / count
        return math.sqrt(math.fsum(self._entries[name].total_squares for name in names) / count - mean**2)

    def encode_missing(
        self,
        scans: Sequence[Scan],
        load: Callable[[Scan], np.ndarray],
        encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        *,
        batch_size: int,
        threads: int = 2,
        vary: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        seed: int = 0,
        process_shard: tuple[int, int] = (0, 1),
        process_index: int = 0,
        process_count: int = 1,
        shard_scans: int = SHARD_SCANS,
    ) -> None:
        """Encode `scans` (of `missing`) into new shards.

        `load(scan)` gives the image [D, H, W]; `encode(images [batch_size, D, H, W, 1])` the mean and the standard
        deviation, [batch_size, d, h, w, C] each; `vary(image, rng)` makes the further variants, its generator
        depending on the seed, the scan's name and the variant alone. Threads read ahead.

        Several processes work in step: each reads its `process_shard` (number, of how many) of the rows of every batch
        and gives these to `encode`, which returns the whole batch to all; each writes every `process_count`-th shard.
        """
        shards = [list(scans[i : i + shard_scans]) for i in range(0, len(scans), shard_scans)]
        self.folder.mkdir(parents=True, exist_ok=True)
        if process_index == 0:
            if not (self.folder / INDEX).exists():
                write_json(self.folder / INDEX, self.identity)
            for path in self._damaged:
                path.unlink(missing_ok=True)
        self._damaged.clear()
        items = [(scan, variant) for shard in shards for scan in shard for variant in range(self.variants)]

        def image(item: tuple[Scan, int]) -> np.ndarray:
            scan, variant = item
            plain = load(scan)
            return vary(plain, variant_rng(seed, scan.name, variant)) if variant else plain

        process, processes = process_shard
        own = range(process * batch_size // processes, (process + 1) * batch_size // processes)
        starts = range(0, len(items), batch_size)
        # The last item fills up the last batch.
        chosen = [items[min(start + row, len(items) - 1)] for start in starts for row in own]
        rows: dict[str, list[np.ndarray]] = {kind: [] for kind in _KINDS}
        done, written, images = 0, 0, read_ahead(image, chosen, threads, max(2 * threads, len(own)))
        with Progress("encoding", len(items)) as progress:
            for start in starts:
                real = min(batch_size, len(items) - start)
                batch = np.stack([next(images) for _ in own])[..., None]
                for kind, values in zip(_KINDS, encode(batch), strict=True):
                    rows[kind].extend(np.asarray(values, np.float32)[:real])
                while written < len(shards) and len(rows["mean"]) >= len(shards[written]) * self.variants:
                    shard = shards[written]
                    count = len(shard) * self.variants
                    latents = {kind: np.stack(found[:count]) for kind, found in rows.items()}
                    self._write(shard, latents, written % process_count == process_index)
                    written += 1
                    rows = {kind: found[count:] for kind, found in rows.items()}
                done += real
                progress(done)

    def _write(self, scans: Sequence[Scan], latents: dict[str, np.ndarray], own: bool) -> None:
        """Write a shard, arrays first, then the json that makes it count. Not `own`: another process does that."""
        names = [scan.name for scan in scans]
        values = _per_scan(latents["mean"], len(names))
        bad = [name for name, value in zip(names, values, strict=True) if not np.isfinite(value).all()]
        if bad:
            raise FloatingPointError(f"The autoencoder's latents of {', '.join(bad[:5])} are not finite.")
        stem = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        files = {}
        for kind, array in latents.items():
            array = np.ascontiguousarray(array, "<f4").reshape(len(names), self.variants, *self.shape)
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            content = content.getvalue()
            if own:
                write_atomically(self._file(stem, kind), content)
            files[kind] = {"sha256": hashlib.sha256(content).hexdigest(), "offset": len(content) - array.nbytes}
        plain = values[:, 0].astype(np.float64)
        axes = tuple(range(1, plain.ndim))
        entries = [
            {"name": scan.name, "image": content_id(scan.path), "sum": float(total), "sum_squares": float(squares)}
            for scan, total, squares in zip(scans, plain.sum(axes), np.square(plain).sum(axes), strict=True)
        ]
        if own:
            write_json(self.folder / f"{stem}.json", {"scans": entries, "files": files})
        offsets = {kind: file["offset"] for kind, file in files.items()}
        for row, entry in enumerate(entries):
            self._entries[entry["name"]] = _Entry(
                stem, row, offsets, entry["image"], entry["sum"], entry["sum_squares"]
            )


def _per_scan(array: np.ndarray, scans: int) -> np.ndarray:
    """[scans * variants, ...] -> [scans, variants, ...]."""
    return array.reshape(scans, -1, *array.shape[1:])


def variant_rng(seed: int, name: str, variant: int) -> np.random.Generator:
    """The generator of one variant of one scan: it does not change when other scans join."""
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng([seed, word, variant])


def content_id(path: Path | None, middle: int = _CONTENT_BYTES) -> str | None:
    """What tells an image file from another: its size and a hash of `middle` bytes from its middle and of its last 64.

    Uncompressed volumes of one grid have one size, so the size alone would tell nothing. None without a file.
    """
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            size = file.seek(0, io.SEEK_END)
            digest = hashlib.sha256()
            for start in (max(0, (size - middle) // 2), max(0, size - 64)):
                file.seek(start)
                digest.update(file.read(middle))
    except OSError:
        return None
    return f"{size}-{digest.hexdigest()[:16]}"


class CachedLatents:
    """The mean latents (variant 0) of some scans as a sequence, read when asked for."""

    def __init__(self, cache: LatentCache, names: Sequence[str]):
        self._cache, self._names = cache, list(names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._cache.read(self._names[index])


class SampledLatents:
    """A source of elements without latents, and `sample`, the transform for `batches` that gives each a random one.

    It takes one of the variants of the scan with equal chances and, with `sample`, the posterior's mean plus
    its standard deviation times normal noise instead of the mean.
    """

    def __init__(self, cache: LatentCache, names: Sequence[str], conditions: np.ndarray, sample: bool):
        self._cache, self._names, self._sample = cache, list(names), sample
        self.conditions = np.asarray(conditions, np.float32)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"SampledLatents({len(self)} scans)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"condition": self.conditions[index], "index": np.int32(index)}

    def sample(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """`element` with a "latent", float32 [d, h, w, C]."""
        name = self._names[int(element["index"])]
        variant = int(rng.integers(self._cache.variants))
        latent = self._cache.read(name, variant)
        if self._sample:
            noise = rng.standard_normal(latent.shape, np.float32)
            latent = latent + self._cache.read(name, variant, "std") * noise
        return {"latent": latent, **element}
