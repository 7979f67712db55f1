"""Refits the calibration of the volume measures against the embedded population.

    python -m brainldm.evaluation.measures.volumetry_calibration [--spacing 2 4] [--n N] [--seed 101]

prints the table to put into `brainldm/evaluation/measures/volumetry.py` and how well a fresh draw is then measured.
One minute at 4 mm, two at 2 mm, on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np

from brainldm.evaluation.measures.volumetry import measure_raw
from brainldm.population.population import Population

NAMES = ("ventricles_ml", "brain_ml")
VENTRICLES_ML = (7.0, 171.0)
"""Range covered: that of UK Biobank."""
PEOPLE = {1: 60, 2: 120, 4: 240}
"""How many people a line is fitted on, per spacing in mm."""


@dataclasses.dataclass(frozen=True)
class Line:
    """measured = slope * raw + intercept (mL); `r` and `mae_ml` are those of other people than fitted on."""

    slope: float
    intercept: float
    r: float
    mae_ml: float
    n: int


def labels_and_raw(population: Population, n: int, seed: int) -> Iterator[tuple[dict, dict]]:
    """Labels and raw measures of n people: every other one as drawn, the rest spread over all
    ventricle sizes."""
    sizes = np.geomspace(*VENTRICLES_ML, n)
    for index in range(n):
        asked = {"ventricles_ml": float(sizes[index])} if index % 2 == 0 else {}
        person = population.make(seed, index, **asked)
        raw = measure_raw(person.image, population.grid)
        yield {name: person.covariates[name] for name in NAMES}, {name: getattr(raw, name) for name in NAMES}


def fit(spacing_mm: int, n: int | None = None, seed: int = 101) -> dict[str, Line]:
    """Calibration lines at `spacing_mm`, fitted on n people of `seed` and tested on n / 2 of the next seed.

    The raw measure is regressed on the label and the line inverted, so that measured against requested has
    slope one however noisy the measure is. n is that of `PEOPLE` unless given.
    """
    n = n or PEOPLE[spacing_mm]
    population = Population(spacing_mm)
    fitted = list(labels_and_raw(population, n, seed))
    tested = list(labels_and_raw(population, max(n // 2, 3), seed + 1))
    lines = {}
    for name in NAMES:
        label, raw = _columns(fitted, name)
        gain, offset = np.polyfit(label, raw, 1)
        label, raw = _columns(tested, name)
        measured = (raw - offset) / gain
        lines[name] = Line(
            slope=float(1 / gain),
            intercept=float(-offset / gain),
            r=float(np.corrcoef(label, measured)[0, 1]),
            mae_ml=float(np.abs(measured - label).mean()),
            n=len(tested),
        )
    return lines


def _columns(pairs: list[tuple[dict, dict]], name: str) -> tuple[np.ndarray, np.ndarray]:
    both = np.array([(label[name], raw[name]) for label, raw in pairs])
    return tuple(both[np.isfinite(both).all(1)].T)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spacing", type=int, nargs="+", choices=(1, 2, 4), default=[2, 4])
    parser.add_argument("--n", type=int, help="people to fit on (60, 120, 240 at 1, 2, 4 mm)")
    parser.add_argument("--seed", type=int, default=101)
    options = parser.parse_args()
    for spacing in options.spacing:
        for name, line in fit(spacing, options.n, options.seed).items():
            print(
                f"{spacing} mm  {name:14s} ({line.slope:.4f}, {line.intercept:.2f})   "
                f"other people: r {line.r:.4f}, mean absolute error {line.mae_ml:.2f} mL, n = {line.n}",
                flush=True,
            )


if __name__ == "__main__":
    main()
