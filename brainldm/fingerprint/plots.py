"""Pictures of a fingerprint: histograms of the columns, and intensities scan by scan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from brainldm.fingerprint.distributions import PERCENTILES
from brainldm.reports.plots import AMBER, BLUE, INK, figure_to_image, new_figure, plain_axes

ACROSS = 3
MOST = 12


def columns(found: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """A histogram or a bar chart of each column that has one, the model's range shaded. None when there is none."""
    shown = [column for column in found if column["kind"] == "numbers" or column["kind"] == "levels"][:MOST]
    if not shown:
        return None
    down = math.ceil(len(shown) / ACROSS)
    figure = new_figure(10.6, 2.6 * down)
    for place, column in enumerate(shown):
        axes = figure.add_subplot(down, ACROSS, place + 1)
        (_bars if column["kind"] == "levels" else _histogram)(axes, column)
        missing = f", {column['missing']} missing" if column["missing"] else ""
        axes.set_title(f"{column['name']} (n = {column['n']}{missing})", fontsize=10)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        plain_axes(axes)
        axes.tick_params(labelsize=8)
    return figure_to_image(figure)


def _histogram(axes: Axes, column: Mapping[str, Any]) -> None:
    edges, counts = np.asarray(column["histogram"]["edges"]), column["histogram"]["counts"]
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE, linewidth=0)
    if column["range"]:
        axes.axvspan(*column["range"], color=AMBER, alpha=0.12, linewidth=0)
        middle, reach = (edges[0] + edges[-1]) / 2, max(edges[-1] - edges[0], 1e-9)
        axes.set_xlim(
            max(min(edges[0], column["range"][0]), middle - 2 * reach) - 0.03 * reach,
            min(max(edges[-1], column["range"][1]), middle + 2 * reach) + 0.03 * reach,
        )
    axes.set_xlabel(column["unit"], fontsize=8)


def _bars(axes: Axes, column: Mapping[str, Any]) -> None:
    names = [name if len(name) < 14 else f"{name[:12]}..." for name in column["levels"]]
    axes.bar(range(len(names)), list(column["levels"].values()), color=BLUE, width=0.6)
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) < 6 else 60)


def intensities(scans: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """One column per scan, sorted by median: band from the 5th to the 95th percentile, lines at 50 and 99."""
    if not scans:
        return None
    table = np.asarray([scan["percentiles"] for scan in scans], float)
    place = {p: i for i, p in enumerate(PERCENTILES)}
    table = table[np.lexsort((table[:, place[99]], table[:, place[50]]))]
    across = np.arange(len(table))
    figure = new_figure(10.6, 3.2)
    axes = figure.add_subplot()
    axes.fill_between(
        across,
        table[:, place[5]],
        table[:, place[95]],
        step="mid",
        color=BLUE,
        alpha=0.2,
        label="5 to 95 %",
        linewidth=0,
    )
    axes.plot(across, table[:, place[50]], drawstyle="steps-mid", color=BLUE, label="50 %")
    axes.plot(across, table[:, place[99]], drawstyle="steps-mid", color=AMBER, label="99 %")
    axes.plot(across, table[:, place[100]], ".", color=INK, markersize=3, label="largest")
    if table.max() > 50 * max(np.median(table[:, place[99]]), 1e-9):
        axes.set_yscale("symlog", linthresh=max(float(np.median(table[:, place[50]])), 1e-3))
    axes.set(xlabel=f"{len(table)} scans read, sorted by median", ylabel="intensity as stored", xmargin=0.01)
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure_to_image(figure)
