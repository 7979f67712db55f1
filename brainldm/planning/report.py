"""A plan in words, for a terminal."""

from __future__ import annotations

from typing import Any

from brainldm.parallel.mesh import AXES
from brainldm.reports.text import text_table
from brainldm.runtime.format import format_bytes, format_duration

_WHAT = {
    "train": "training step",
    "encode": "encode",
    "decode": "decode",
    "sample": "sample (latents)",
    "generate": "generate",
}


def mesh_text(mesh: dict[str, int]) -> str:
    """The axes that split anything: "data 2 x space 4"."""
    return " x ".join(f"{axis} {mesh[axis]}" for axis in AXES if mesh[axis] > 1) or "one device"


def report(plan: dict[str, Any]) -> str:
    """The lines that `brainldm plan` prints."""
    chip = plan["chip"]
    lines = [f"{plan['stage']} on {plan['target']}: {plan['devices']} devices ({plan['kind']})"]
    if chip:
        lines.append(
            f"held against: {chip['name']}, {format_bytes(chip['memory'])} a device, "
            f"{chip['peak'] / 1e12:.0f} TFLOP/s bfloat16, memory {chip['memory_bandwidth'] / 1e9:.0f} GB/s, "
            f"neighbours {chip['link_bandwidth'] / 1e9:.0f} GB/s [{chip['source']}]"
        )
    else:
        lines.append("held against no chip (--chip NAME chooses one), so without limits and times")
    if plan["kind"] == "cpu":
        lines.append("compiled by the CPU compiler, which needs more memory than others: good for comparisons")
    if plan["perceptual"] in ("lpips", "medicalnet"):
        lines.append(f"perceptual term: {plan['perceptual']}, from the shapes of its network")
    lines += [f"note: {note}" for note in plan["notes"]]
    for result in plan["programs"].values():
        lines += ["", *_program(result, plan)]
    lines += _largest(plan.get("largest"))
    lines += _largest_batches(plan.get("largest_batches", {}))
    lines += _suggestion(plan)
    if "run_seconds" in plan:
        lines += ["", f"the whole run at this speed: {format_duration(plan['run_seconds'])}"]
    return "\n".join(lines)


def _program(result: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    lines = [
        f"{_WHAT[result['program']]}: batch {result['batch']}, mesh {mesh_text(result['mesh'])}, {result['dtype']}"
        + _remat(result["remat"])
        + (f", {result['accumulation_steps']} microbatches" if result["accumulation_steps"] > 1 else "")
    ]
    return [*lines, *text_table(_program_rows(result, plan))]


def _remat(remat: bool | list[int]) -> str:
    if not isinstance(remat, (list, tuple)):
        return ", rematerialised" if remat else ""
    levels = ", ".join(map(str, remat))
    return f", rematerialised at level {levels}" if levels else ""


def _program_rows(result: dict[str, Any], plan: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("memory", _memory(result, plan["chip"]))]
    rows.append(("state", f"{format_bytes(result['state_bytes'])} a device of parameters and what is kept with them"))
    once = " (loops once)" if result.get("loops") else ""  # in the compiler's counts
    operations = f"{result['arithmetic'] / result['devices'] / 1e12:.3g} TFLOP a device in convolutions and products"
    if result.get("operations"):
        operations += f"; the compiler counts {result['operations'] / 1e12:.3g}{once}"
    rows.append(("operations", operations))
    if result.get("bytes"):
        rows.append(("traffic", f"{format_bytes(result['bytes'])} to and from memory"))
    if result.get("collectives") is not None:
        found = result["collectives"]
        sent = f"{format_bytes(sum(c['sent'] for c in found))} sent by each device" if found else "none"
        kinds = [(c["kind"], f"{c['count']} x", f"{format_bytes(c['bytes'])} in all") for c in found]
        rows.append(("collectives", "\n".join([sent, *text_table(kinds)])))
    if result.get("step_seconds"):
        rows.append(("at least", _bounds(result)))
        rows.append(("expected", _expected(result, plan["utilisation"])))
    if result.get("hybrid_seconds"):
        text = "by the compiler's cycles for convolutions and products, and the traffic of the rest"
        rows.append(("by cycles", f"{format_duration(result['hybrid_seconds'], fine=True)} {text}"))
    return rows


def _bounds(result: dict[str, Any]) -> str:
    names = {"arithmetic": "arithmetic at the peak", "memory": "traffic", "roofline": "the compiler's roofline"}
    parts = [f"{names[name]} {format_duration(time, fine=True)}" for name, time in result["bounds"].items()]
    return f"{format_duration(result['bound_seconds'], fine=True)} ({'; '.join(parts)})"


def _expected(result: dict[str, Any], utilisation: float) -> str:
    times = {name: format_duration(seconds, fine=True) for name, seconds in result["times"].items()}
    detail = [f"arithmetic {times['arithmetic']} at {utilisation:.0%} of the peak"]
    names = {"memory": "memory traffic", "collectives": "collectives"}
    detail += [f"{text} {times[name]}" for name, text in names.items() if name in times]
    return f"{format_duration(result['step_seconds'], fine=True)} ({'; '.join(detail)})"


def _memory(result: dict[str, Any], chip: dict[str, Any] | None) -> str:
    memory = result["memory"]
    if memory is None:
        return "more than there is; the compiler did not say how much"
    text = f"{format_bytes(memory['total'])} a device"
    if chip:
        verdict = {True: "fits", False: "does NOT fit", None: ""}[result["fits"]]
        text += f" of {format_bytes(result.get('limit') or chip['memory'])}: {verdict}"
    parts = ", ".join(f"{name} {format_bytes(n)}" for name, n in memory.items() if name != "total" and n)
    return f"{text} ({parts})" if parts else text


def _largest(largest: dict[str, Any] | None) -> list[str]:
    if not largest:
        return []
    return [
        "",
        f"largest batch that fits: {largest['batch']} ({largest['per_device']} a part; each takes "
        f"{format_bytes(largest['bytes_per_row'])}), by a straight line through two compilations",
    ]


def _largest_batches(found: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        (
            _WHAT[name],
            f"{item['batch']} ({item['per_device']} a part)" if item["batch"] else "none: one row a part does not fit",
            f"each takes {format_bytes(item['bytes_per_row'])}" if item["bytes_per_row"] else "",
        )
        for name, item in found.items()
    ]
    return ["", "largest batches that fit, compiled:", *text_table(rows)] if rows else []


def _suggestion(plan: dict[str, Any]) -> list[str]:
    if "suggestion" not in plan:
        return []
    lines = ["", "changes tried:"]
    for tried in plan["tried"]:
        changes = ", ".join(f"{key}={value}" for key, value in tried["changes"].items())
        memory = format_bytes(tried["memory"]["total"]) if tried["memory"] else "too much"
        lines.append(f"  {changes}, batch {tried['batch']}: {memory}, {'fits' if tried['fits'] else 'does not fit'}")
    found = plan["suggestion"]
    if not found:
        return [*lines, "none of them fits: use a larger slice, or a chip with more memory"]
    return [*lines, f"suggested: {found['flags']}", *_program(found["step"], plan), *_largest(found["largest"])]
