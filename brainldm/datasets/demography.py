"""Who a model was trained on, as one distribution: conditions that belong together, and nobody's row.

A Gaussian copula: each condition is a monotone function of a standard normal score, and the scores are jointly normal.
Numbers are held as quantiles, levels as shares, and what goes with what as the correlation of the scores (Nelsen, An
Introduction to Copulas, 2006, 2.3; of levels by the polyserial approximation of Olsson et al. 1982).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from brainldm.datasets.covariates import Covariates
from brainldm.runtime.errors import UserError
from brainldm.runtime.format import round_significant

_STEPS = 21
"""Quantiles of a number: 0, 5, ..., 100 %."""
_SWEEPS = 50
"""Of Gibbs sampling, where ranges are asked for."""
_FARTHEST = 4.0
"""Scores of values beyond all quantiles."""
_LARGEST = 0.95
"""Correlation of scores: more is not believed of a finite sample."""

Bound = tuple[float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Demography:
    """The joint distribution of conditions `names`.

    `quantiles[name]` are the values of a number at evenly spaced probabilities from 0 to 1, ascending;
    `shares[name]` the shares of levels, by level; `correlation` [K, K] that of the scores, in the order of `names`.
    """

    names: tuple[str, ...]
    quantiles: Mapping[str, tuple[float, ...]]
    shares: Mapping[str, Mapping[str, float]]
    correlation: np.ndarray

    # scores

    def bounds(self, name: str, value: float | str | Bound) -> Bound:
        """The scores that a value, a level or a range (low, high) of `name` can have: (lowest, highest)."""
        if name in self.shares:
            levels = list(self.shares[name])
            ends = np.cumsum([0.0, *self.shares[name].values()])
            place = levels.index(value)
            low, high = ndtri(np.clip(ends[place : place + 2] / ends[-1], 0.0, 1.0))
            return (float(low), float(high))
        low, high = value if isinstance(value, tuple) else (value, value)
        return tuple(map(float, self.scores(name, [low, high])))

    def scores(self, name: str, values: Sequence[float]) -> np.ndarray:
        """The scores of values of the number `name`; the reverse of `values`."""
        table = self.quantiles[name]
        found = ndtri(np.interp(values, table, np.linspace(0, 1, len(table))))
        return np.clip(found, -_FARTHEST, _FARTHEST)

    def values(self, name: str, scores: np.ndarray) -> list[float | str]:
        """The values of `name` at scores."""
        probability = ndtr(scores)
        if name in self.shares:
            levels = list(self.shares[name])
            ends = np.cumsum(list(self.shares[name].values()))
            places = np.searchsorted(ends / ends[-1], probability, side="right")
            return [levels[place] for place in np.minimum(places, len(levels) - 1)]
        table = self.quantiles[name]
        return np.interp(probability, np.linspace(0, 1, len(table)), table).tolist()

    # drawing

    def draw(self, uniform: np.ndarray, given: Mapping[str, float | str | Bound]) -> dict[str, list[float | str]]:
        """Values by name, one for each row of `uniform` [N, draws(given), K], numbers in 0..1 that are all the chance.

        `given` holds values, levels, and ranges (low, high); what is not named follows, given these.
        """
        bounds = self._all_bounds(given)
        scores = _draw_scores(self.correlation, bounds, np.clip(uniform, 1e-12, 1 - 1e-12))
        return {name: self.values(name, scores[:, k]) for k, name in enumerate(self.names)}

    def draws(self, given: Mapping[str, float | str | Bound]) -> int:
        """Rows of numbers that `draw` needs for one row of conditions."""
        return 1 if _fixed_or_free(self._all_bounds(given)) else _SWEEPS

    def _all_bounds(self, given: Mapping[str, float | str | Bound]) -> list[Bound]:
        return [self.bounds(name, given[name]) if name in given else (-np.inf, np.inf) for name in self.names]

    def percentile(self, name: str, value: float, given: Mapping[str, float | str]) -> float:
        """The percentage of those with the conditions `given` who have less of `name` than `value`."""
        place = self.names.index(name)
        others = [k for k, other in enumerate(self.names) if other in given and k != place]
        scores = np.array([_mean_between(*self.bounds(self.names[k], given[self.names[k]])) for k in others])
        within, across = self.correlation[np.ix_(others, others)], self.correlation[place, others]
        weights = np.linalg.solve(within, across) if others else np.zeros(0)
        spread = np.sqrt(max(1 - weights @ across, 1e-6))
        return 100 * float(ndtr((self.bounds(name, value)[0] - weights @ scores) / spread))

    def carry(
        self, rows: Sequence[Mapping[str, float | str]], name: str, to: Sequence[float]
    ) -> list[dict[str, list[float]]]:
        """The other numbers of each of `rows` while its number `name` goes through the values `to`: by name, one each.

        A row has some or all conditions, `name` among them. Its levels stay, and its other numbers keep their rank
        among people with the same levels and the same value of `name`: of the scores z = B f + r, f those of `name` and
        the levels, the residual r stays. What a value has beyond the quantiles is added to all.
        """
        alike: dict[tuple[str, ...], list[int]] = {}
        for number, row in enumerate(rows):
            alike.setdefault(tuple(other for other in self.names if other in row), []).append(number)
        carried: list[dict[str, list[float]]] = [{} for _ in rows]
        for names, numbers in alike.items():
            given = [self.names.index(other) for other in (name, *(n for n in names if n in self.shares))]
            steps = self.scores(name, to) - self.scores(name, [rows[k][name] for k in numbers])[:, None]
            for other in names:
                if other == name or other in self.shares:
                    continue
                across = self.correlation[given, self.names.index(other)]
                weight = np.linalg.solve(self.correlation[np.ix_(given, given)], across)[0]
                before = np.array([rows[k][other] for k in numbers], np.float64)
                scores = self.scores(other, before)[:, None]
                change = np.subtract(self.values(other, scores + weight * steps), self.values(other, scores))
                for k, values in zip(numbers, (before[:, None] + change).tolist(), strict=True):
                    carried[k][other] = values
        return carried

    # changes and files

    def with_marginals(self, marginals: Mapping[str, Any], covariates: Covariates) -> Demography:
        """The same dependences between other people: of a number [low, high] (uniform) or ascending quantiles, of
        levels {level: share}. Raises UserError for what is neither."""
        quantiles, shares = dict(self.quantiles), dict(self.shares)
        for name, wanted in marginals.items():
            item = covariates[name]
            if item.levels is not None:
                if not isinstance(wanted, Mapping) or not set(wanted) <= set(item.levels):
                    raise UserError(f"{name}: shares of {item.span} are wanted, as {{{item.levels[0]!r}: 0.6, ...}}.")
                shares[name] = _shares({level: wanted.get(level, 0.0) for level in item.levels}, name)
            else:
                quantiles[name] = _quantiles(wanted, name)
        return dataclasses.replace(self, quantiles=quantiles, shares=shares)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries; `from_json` is the reverse."""
        return {
            "names": list(self.names),
            "quantiles": {name: list(table) for name, table in self.quantiles.items()},
            "shares": {name: dict(shares) for name, shares in self.shares.items()},
            "correlation": self.correlation.tolist(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], covariates: Covariates) -> Demography:
        """Raises UserError for content that is not of these conditions, or no distribution."""
        try:
            names = tuple(content["names"])
            quantiles = {name: _quantiles(table, name) for name, table in content["quantiles"].items()}
            shares = {name: _shares(found, name) for name, found in content["shares"].items()}
            correlation = np.asarray(content["correlation"], np.float64)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"The population of the model cannot be understood ({error}).") from error
        numbers = {item.name for item in covariates if item.levels is None}
        levels = {item.name: set(item.levels) for item in covariates if item.levels is not None}
        if (
            names != covariates.names
            or set(quantiles) != numbers
            or {name: set(found) for name, found in shares.items()} != levels
            or correlation.shape != (len(names),) * 2
            or not np.isfinite(correlation).all()
            or not np.allclose(correlation, correlation.T)
            or np.linalg.eigvalsh(correlation)[0] <= 0
            or not np.allclose(np.diag(correlation), 1)
        ):
            raise UserError("The population of the model is not one of its conditions.")
        return cls(names, quantiles, shares, correlation)


def fit_demography(rows: Sequence[Mapping[str, float | str]], covariates: Covariates) -> Demography:
    """The distribution of parsed rows of conditions. What it holds of a number are quantiles, to four figures.

    The correlations are drawn towards none by a share of K / N of theirs, K conditions of N people.
    """
    quantiles, shares, scores, spreads = {}, {}, [], []
    for item in covariates:
        column = [row[item.name] for row in rows]
        if item.levels is None:
            table = np.quantile(np.asarray(column, np.float64), np.linspace(0, 1, _STEPS))
            quantiles[item.name] = tuple(round_significant(value, 4) for value in np.maximum.accumulate(table))
            scores.append(ndtri((rankdata(column) - 0.5) / len(column)))
            spreads.append(1.0)
        else:
            shares[item.name] = {level: column.count(level) / len(column) for level in item.levels}
            ends = ndtri(np.clip(np.cumsum([0.0, *shares[item.name].values()]), 0, 1))
            means = {level: _mean_between(*ends[k : k + 2]) for k, level in enumerate(item.levels)}
            scores.append(np.array([means[value] for value in column]))
            spreads.append(max(float(np.std(scores[-1])), 1e-9))
    table = np.stack(scores)
    centred = table - table.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1)).clip(1e-9)
    found = (centred @ centred.T) / np.outer(norms, norms) / np.outer(spreads, spreads)
    found = np.clip(found, -_LARGEST, _LARGEST) * max(0.0, 1 - len(table) / len(rows))
    np.fill_diagonal(found, 1.0)
    return Demography(covariates.names, quantiles, shares, _positive(found).round(4))


def _positive(correlation: np.ndarray) -> np.ndarray:
    """The correlation matrix with eigenvalues of at least 0.01."""
    values, vectors = np.linalg.eigh(correlation)
    fixed = (vectors * np.maximum(values, 0.01)) @ vectors.T
    scale = np.sqrt(np.diag(fixed))
    return fixed / np.outer(scale, scale)


def _mean_between(low: float, high: float) -> float:
    """The mean of a standard normal number between two."""
    mass = ndtr(high) - ndtr(low)
    if mass < 1e-9:
        return float(np.clip((low if np.isfinite(low) else high), -_FARTHEST, _FARTHEST))
    density = np.exp(-0.5 * np.square([low, high])) / np.sqrt(2 * np.pi)
    return float((density[0] - density[1]) / mass)


def _fixed_or_free(bounds: Sequence[Bound]) -> bool:
    """Whether all scores are either given or can be anything: then one draw is exact, and no chain is needed."""
    return all(low == high or (np.isinf(low) and np.isinf(high)) for low, high in bounds)


def _draw_scores(correlation: np.ndarray, bounds: Sequence[Bound], uniform: np.ndarray) -> np.ndarray:
    """Scores [N, K] that are jointly normal and lie within `bounds`; `uniform` [N, sweeps, K] in (0, 1)."""
    low, high = np.array(bounds).T
    fixed = low == high
    scores = np.tile(np.where(fixed, low, 0.0), (len(uniform), 1))
    if _fixed_or_free(bounds):
        return _given(correlation, scores, fixed, ndtri(uniform[:, 0]))
    precision = np.linalg.inv(correlation)
    scores[:, ~fixed] = np.clip(0.0, low[~fixed], high[~fixed])
    for sweep in range(uniform.shape[1]):
        for k in np.flatnonzero(~fixed):
            spread = 1 / np.sqrt(precision[k, k])
            mean = scores[:, k] - (scores @ precision[:, k]) / precision[k, k]
            start, end = ndtr((low[k] - mean) / spread), ndtr((high[k] - mean) / spread)
            drawn = mean + spread * ndtri(np.clip(start + uniform[:, sweep, k] * (end - start), 1e-12, 1 - 1e-12))
            scores[:, k] = np.clip(drawn, low[k], high[k])
    return scores


def _given(correlation: np.ndarray, scores: np.ndarray, fixed: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The scores that are not `fixed`, drawn given those that are."""
    free = ~fixed
    weights = np.linalg.solve(correlation[np.ix_(fixed, fixed)], correlation[np.ix_(fixed, free)])
    rest = correlation[np.ix_(free, free)] - correlation[np.ix_(free, fixed)] @ weights
    drawn = scores.copy()
    drawn[:, free] = scores[:, fixed] @ weights + noise[:, free] @ np.linalg.cholesky(rest).T
    return drawn


def _quantiles(table: Any, name: str) -> tuple[float, ...]:
    values = np.asarray(table, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all() or (np.diff(values) < 0).any():
        raise UserError(f"{name}: two ascending numbers or more are wanted, as [60, 75].")
    return tuple(values.tolist())


def _shares(found: Any, name: str) -> dict[str, float]:
    shares = {level: float(share) for level, share in dict(found).items()}
    total = sum(shares.values())
    if not all(np.isfinite(share) and share >= 0 for share in shares.values()) or not total > 0:
        raise UserError(f"{name}: shares of its levels are wanted, none below 0 and one above.")
    return {level: share / total for level, share in shares.items()}
