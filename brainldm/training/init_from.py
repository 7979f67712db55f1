"""Fine-tuning: a run that begins with a network of a model folder, and what is said and noted of that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_collections

from brainldm.datasets.covariates import Covariates
from brainldm.parallel.distributed import is_primary
from brainldm.runtime.checkpoint_folder import finished_steps
from brainldm.runtime.console import log
from brainldm.training.run_info import read_run_info
from brainldm.weights.starting_point import NETWORKS, StartingPoint, starting_point

LATENTS_AS_LEARNT, INTENSITIES_APART = (0.8, 1.25), 0.05
"""Standard deviations of scaled latents, and a difference of mean intensities, at which nothing is amiss."""


class InitFrom:
    """What config.init_from means to a run in `workdir`; nothing where it is empty.

    `noted` is what run.json holds of it. The folder is read when a run begins, and not when it goes on from a
    checkpoint. Raises UserError when its network ("autoencoder" or "unet") is not the one of `arguments` and `shapes`.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        network: str,
        arguments: Mapping[str, Any],
        shapes: Any,
    ):
        self._folder, self._network, self._wanted = config.init_from, network, (arguments, shapes)
        self.noted: dict[str, Any] | None = None
        self.begins = bool(self._folder) and not finished_steps(workdir / "checkpoints")
        if self.begins:
            self.noted = {"model": Path(self._folder).name, "sha256": self.point.model.sha256}
        elif self._folder:
            self.noted = read_run_info(workdir).get("init_from")

    @cached_property
    def point(self) -> StartingPoint:
        """The network."""
        return starting_point(self._folder, self._network, *self._wanted)

    def begin(self, state: Any) -> Any:
        """A fresh state, with the network's parameters in place of random ones; also for its moving average."""
        if not self._folder:
            return state
        averaged = {"ema": self.point.placed_like(state.ema)} if hasattr(state, "ema") else {}
        return state.replace(params=self.point.placed_like(state.params), **averaged)

    def compare(self, figures: Mapping[str, float], *sentences: str) -> None:
        """Note `figures` and say them after where the network comes from, with what else there is to say."""
        self.noted = {**self.noted, **figures}
        if is_primary():
            log(" ".join([f"begins with the {NETWORKS[self._network]} of {self._folder}.", *filter(None, sentences)]))


def said_of_latents(deviation: float) -> str:
    """`deviation`: of the latents of the scans here, scaled as the model scales its own, which have 1."""
    low, high = LATENTS_AS_LEARNT
    amiss = "" if low <= deviation <= high else " The scans, or how they are scaled, are not as those it learnt from."
    return f"Latents of the scans here have a standard deviation of {deviation:.3f} where its own had 1.{amiss}"


def said_of_intensities(scans: float, reconstructed: float, error: float) -> str:
    """Of mean intensities inside the heads of some scans and of their reconstructions, and the mean absolute error."""
    amiss = "" if abs(scans - reconstructed) <= INTENSITIES_APART else " Look at config.data.scaling."
    return (
        f"Inside the heads of some held-out scans the mean intensity is {scans:.3f}, of their reconstructions "
        f"{reconstructed:.3f}, the mean absolute error {error:.4f}.{amiss}"
    )


def said_of_objective(spec: Any, prediction: str, schedule: Mapping[str, Any], covariates: Covariates) -> list[str]:
    """A sentence for each way in which a denoising network is to learn something else than it did."""
    said = []
    if spec.prediction != prediction or dict(spec.schedule) != dict(schedule):
        said.append("It learnt another prediction or noise schedule than config.loss and config.schedule name.")
    ours, theirs = (
        [(item.name, item.low, item.high, item.levels) for item in one] for one in (covariates, spec.covariates)
    )
    if ours != theirs:
        said.append("Its conditions have other names, ranges or an other order than those of config.covariates.")
    return said
