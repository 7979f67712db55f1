"""What a run writes about itself: metrics.jsonl (the source of truth), TensorBoard events, a picture of the curves.

`MetricWriter` has the method names of clu's metric writers, which would need TensorFlow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter


class MetricWriter:
    """Writes scalars and images of a run into its work dir.

    metrics.jsonl holds one object per line, {"step", "split", name: value}, and nothing that depends on the clock, so
    that a resumed run writes the same file as an undisturbed one. `resume_step` drops lines of later steps.
    """

    def __init__(self, workdir: str | Path, resume_step: int = 0):
        self._path = Path(workdir) / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= resume_step] if resume_step else []
        self._path.write_text("".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir), purge_step=resume_step or None)

    def write_scalars(self, step: int, scalars: Mapping[str, float], split: str = "train") -> None:
        """One line of metrics.jsonl and the same values for TensorBoard."""
        values = {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def write_speed(self, step: int, samples_per_second: float) -> None:
        """Throughput, for TensorBoard only: it differs from run to run."""
        self._board.add_scalar("speed/samples_per_second", samples_per_second, step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures [H, W, 3] uint8 for TensorBoard."""
        for name, image in images.items():
            self._board.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Bring metrics.jsonl to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close all files."""
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # a line cut off by a kill


def read_metrics(workdir: str | Path, split: str) -> dict[str, list[float]]:
    """Columns of metrics.jsonl for one split ("train" or "validation"), with "step" among them."""
    columns: dict[str, list[float]] = {}
    for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.pop("split") == split:
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return columns


def plot_progress(workdir: str | Path) -> None:
    """Draw the training and validation loss over steps into progress.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for split in ("train", "validation"):
        columns = read_metrics(workdir, split)
        if columns.get("loss"):
            axes.plot(columns["step"], columns["loss"], label=split, marker="." if len(columns["step"]) < 40 else "")
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=Path(workdir).name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(Path(workdir) / "progress.png", dpi=100)
