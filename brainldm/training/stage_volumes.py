"""What stages that learn from volumes of the dataset have in common: how these are read."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any

from brainldm.data.pipeline import VolumeSource, batches
from brainldm.parallel.distributed import from_primary
from brainldm.parallel.mesh import process_shard
from brainldm.training.init_from import InitFrom
from brainldm.training.inputs import (
    augment_elements,
    content_ids,
    images_sha256,
    read_splits,
    scan_info,
    volume_sources,
)
from brainldm.training.stage import Eval, LoadedStage, Stage


class VolumeStage(Stage):
    """A stage whose batches hold "image" [B, D, H, W, 1] in [0, 1] and "condition" [B, K]."""

    @abc.abstractmethod
    def init(self) -> Any:
        """A fresh state."""

    @abc.abstractmethod
    def evals(self, validation: VolumeSource) -> dict[str, Eval]:
        """The looks at a state, which may use the held-out scans."""

    def frozen(self) -> Any:
        """What the training step uses and does not train, on its devices. Raises UserError when it cannot be read."""
        return None

    def init_from(self, workdir: Path) -> InitFrom | None:
        """What config.init_from means, for a stage that can begin with a network of a model folder."""
        return None

    def compare(self, init_from: InitFrom, validation: VolumeSource) -> None:
        """Say how the scans here suit the network that training begins with."""

    def load(self, workdir: Path) -> LoadedStage:
        config = self.config
        begun = self.init_from(workdir)
        frozen = self.frozen()
        splits, excluded = read_splits(config)
        train, validation = volume_sources(config, splits)
        if begun and begun.begins:
            self.compare(begun, validation)
        process, processes = process_shard(self.mesh)
        return LoadedStage(
            init=self.init,
            frozen=frozen,
            train=batches(
                train,
                batch_size=config.batch_size,
                seed=config.seed,
                transform=augment_elements(config),
                process_index=process,
                process_count=processes,
            ),
            names=[record.name for record in splits["train"]],
            evals=self.evals(validation),
            run_info={
                **scan_info(config, splits, workdir),
                "images_sha256": from_primary(lambda: images_sha256(content_ids(splits["train"]))),
                **({"init_from": begun.noted} if begun and begun.noted else {}),
            },
            excluded=excluded,
            **({"begin": begun.begin} if begun else {}),
        )
