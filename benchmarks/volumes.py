"""Volumes by a backend of `brainldm measure` against label maps: r, slope, intercept, error and Dice.

    python benchmarks/volumes.py LABELLED --labels 49,50,51,52 --results volumes.jsonl [--backend NAME --weights FILE]
                                 [--spacing 2] [--seconds 240]
    python benchmarks/volumes.py --pair head.nii.gz labels.nii.gz ... --labels 51,52 --results volumes.jsonl

LABELLED is a BIDS dataset whose T1w images have a `*_dseg` beside them; `--labels` are the numbers of the ventricles in
it, and a column `brain_ml` of its table, if any, the labelled tissue. Results are kept line by line, so that the same
command goes on after `--seconds`; it prints the table of all that is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from brainldm.datasets.covariates import is_missing
from brainldm.datasets.find import find_scans
from brainldm.evaluation.measures.backend import Image
from brainldm.evaluation.measures.backends import open_backend
from brainldm.evaluation.metrics.conditioning import agreement_stats
from brainldm.volumes.grids import Grid
from brainldm.volumes.nifti import block_average, read_volume


def pairs_of(options: argparse.Namespace) -> list[tuple[str, Path, Path, float]]:
    """Name, image, label map and labelled tissue in mL (NaN where unknown) of everything to measure."""
    pairs = [(Path(image).name, Path(image), Path(labels), float("nan")) for image, labels in options.pair]
    for scan in find_scans(options.data).scans if options.data else ():
        labels = next(scan.path.parent.glob(f"{scan.name}*_dseg.nii*"))
        tissue = scan.covariates["brain_ml"]
        pairs.append((scan.name, scan.path, labels, float("nan") if is_missing(tissue) else float(tissue)))
    return pairs


def measure_pair(backend, image_path: Path, labels_path: Path, labels: list[int], spacing: int) -> dict:
    """Volumes in mL found and labelled, the Dice coefficient of the ventricles, and the seconds that it took."""
    image, truth = read_volume(image_path), read_volume(labels_path)
    factor = max(1, round(spacing / float(image.spacing_mm[0]))) if spacing else 1
    data = block_average(image.data / image.data.max(), factor) if factor > 1 else image.data / image.data.max()
    affine = image.affine @ np.diag([factor, factor, factor, 1.0])
    inside = np.isin(np.rint(truth.data), labels)
    began = time.monotonic()
    found = backend(Image(data, Grid(data.shape, affine)), labels=True)
    seconds = time.monotonic() - began
    ventricles = [label for label, name in backend.structures.items() if "lateral ventricle" in name]
    mask = np.isin(found.labels, ventricles)
    on_grid = block_average(inside.astype(np.float32), factor) >= 0.5 if factor > 1 else inside
    return {
        "labelled_ml": float(inside.sum() * np.prod(truth.spacing_mm) / 1000),
        "ventricles_ml": found.volumes_ml["ventricles_ml"],
        "tissue_ml": found.volumes_ml["tissue_ml"],
        "dice": float(2 * (mask & on_grid).sum() / max(mask.sum() + on_grid.sum(), 1)),
        "reason": found.reason,
        "seconds": round(seconds, 2),
    }


def report(results: list[dict]) -> str:
    """The table of everything measured, a line per quantity."""
    lines = []
    for title, label, measured in (
        ("ventricles", "labelled_ml", "ventricles_ml"),
        ("tissue", "tissue_label_ml", "tissue_ml"),
    ):
        truth, found = (np.array([r[name] for r in results], float) for name in (label, measured))
        if not np.isfinite(truth + found).any():
            continue
        stats = agreement_stats(truth, found)
        both = np.isfinite(truth + found)
        worst = np.abs(found - truth)[both].max()
        lines.append(
            f"{title}: n {stats.n}, r {stats.r.value:.3f}, slope {stats.slope.value:.3f}, intercept "
            f"{stats.intercept.value:.2f} mL, bias {(found - truth)[both].mean():.2f} mL, mean absolute error "
            f"{stats.mae.value:.2f} mL, worst {worst:.2f} mL"
        )
    dice, seconds = ([r[name] for r in results] for name in ("dice", "seconds"))
    lines.append(f"Dice of the ventricles: mean {np.mean(dice):.3f}, {np.min(dice):.3f} to {np.max(dice):.3f}")
    lines.append(f"seconds an image: median {np.median(seconds):.2f}, most {np.max(seconds):.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", metavar="LABELLED")
    parser.add_argument("--pair", nargs=2, action="append", default=[], metavar=("IMAGE", "LABELS"))
    parser.add_argument("--labels", required=True, type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--results", required=True, type=Path, metavar="FILE")
    parser.add_argument("--backend")
    parser.add_argument("--weights")
    parser.add_argument("--spacing", type=int, default=0, help="average to voxels of so many mm first (0: as they are)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further image after so long")
    options = parser.parse_args()
    backend = open_backend(options.backend, options.weights)
    done = {}
    if options.results.exists():
        done = {r["name"]: r for r in map(json.loads, options.results.read_text().splitlines())}
    began = time.monotonic()
    for name, image, labels, tissue in pairs_of(options):
        if name in done or time.monotonic() - began > options.seconds:
            continue
        result = measure_pair(backend, image, labels, options.labels, options.spacing)
        done[name] = {"name": name, "tissue_label_ml": tissue, **result}
        with options.results.open("a") as file:
            file.write(json.dumps(done[name]) + "\n")
        print(name, json.dumps(result), flush=True)
    print(f"{backend.name}, weights {backend.sha256}\n{report(list(done.values()))}")


if __name__ == "__main__":
    main()
