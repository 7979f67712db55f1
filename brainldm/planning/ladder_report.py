"""The ladder of memory as a table, for a terminal or in Markdown."""

from __future__ import annotations

from typing import Any

from brainldm.planning.ladder import VOLUMES, first_fitting, usable
from brainldm.planning.search import flags
from brainldm.reports.text import text_table
from brainldm.runtime.format import format_duration

_WHAT = {
    "generate": "generate",
    "train_autoencoder": "autoencoder, training",
    "train_diffusion": "diffusion, training",
}
_HEAD = ("GPU of", "program", "with", "memory a GPU", "a step at least", "expected", "in all")


def ladder_report(ladder: dict[str, Any]) -> str:
    """The lines that `brainldm plan --ladder` prints."""
    lines = [
        f"The paper's networks at full size, bfloat16, compiled for {ladder['chip']} with jax {ladder['jax']} on "
        f"{ladder['date']}; nothing was run.",
        f"Times are those of an {ladder['chip']}, expected at {ladder['utilisation']:.0%} of its peak, whatever the "
        f"memory. In all: the published recipe, or {VOLUMES:,} volumes.",
        "",
    ]
    return "\n".join([*lines, *text_table(ladder_rows(ladder), _HEAD, indent=0)])


def ladder_markdown(ladder: dict[str, Any]) -> str:
    """The same rows as a table of Markdown."""
    rows = [_HEAD, ("---",) * len(_HEAD), *ladder_rows(ladder)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def ladder_rows(ladder: dict[str, Any]) -> list[tuple[str, ...]]:
    """For every rung and work: memory, program, the preset, bytes on a device, seconds."""
    rows = []
    for rung in ladder["rungs"]:
        for name, work in ladder["works"].items():
            preset = first_fitting(work["presets"], usable(rung))
            rows.append((f"{rung} GB", _WHAT.get(name, name), *_cells(preset, work["rows"])))
    return rows


def _cells(preset: dict[str, Any] | None, rows: int) -> tuple[str, ...]:
    if preset is None:
        return "none of the presets fits", "", "", "", ""
    return (
        preset_text(preset),
        f"{preset['bytes'] / 1e9:.3g} GB",
        format_duration(preset["at_least"], fine=True),
        format_duration(preset["expected"], fine=True),
        format_duration(preset["expected"] * rows / preset["batch"]),
    )


def preset_text(preset: dict[str, Any]) -> str:
    """A preset in words: GPUs, batch and flags."""
    gpus = "one GPU" if preset["devices"] == 1 else f"{preset['devices']} GPUs"
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in preset["changes"].items()}
    return ", ".join(filter(None, (gpus, f"batch {preset['batch']}", flags(changes))))
