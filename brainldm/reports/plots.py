"""Figures of reports: the house colours, and how a matplotlib figure becomes an image inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

BLUE, AMBER, GREY, INK = "#1f5fa8", "#b7791f", "#9a9a9a", "#555555"
"""What a plot is about, what stands beside it, the background of comparison, and lines and marks of reference."""


def new_figure(width: float, height: float, dpi: int = 110) -> Figure:
    """A figure of so many inches that belongs to no window and no global list of figures."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Axes) -> None:
    """Axes without the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)


def loss_curves(columns: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Figure:
    """The column "loss" over "step" of each split of a run, on a logarithmic scale."""
    figure = new_figure(8, 4.5, dpi=100)
    axes = figure.subplots()
    for (split, found), colour in zip(columns.items(), (BLUE, AMBER, GREY), strict=False):
        if found.get("loss"):
            marker = "." if len(found["step"]) < 40 else ""
            axes.plot(found["step"], found["loss"], label=split, marker=marker, color=colour)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def figure_to_image(figure: Figure) -> Image.Image:
    """The figure as an RGB image. The same figure gives the same bytes."""
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG, in grey where it has no colour: brains are grey, and grey is a third of the bytes."""
    grey = image.convert("L")
    plain = grey if np.array_equal(np.asarray(grey.convert("RGB")), np.asarray(image)) else image
    stream = io.BytesIO()
    plain.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def data_uri(image: Image.Image) -> str:
    """The image as text that stands inside a page: data:image/png;base64,..."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
