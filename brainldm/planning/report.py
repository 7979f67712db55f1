"""A plan in words, for a terminal."""

from __future__ import annotations

from typing import Any

from brainldm.parallel.mesh import AXES
from brainldm.planning.chips import GIB
from brainldm.runtime.console import duration

_WHAT = {"train": "training step", "encode": "encode", "decode": "decode", "sample": "sample (latents)"}


def size(number: float) -> str:
    """Bytes: 1.5 GiB, 20 MiB."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}" if number < 1000 * unit else f"{number / unit:.0f} {name}"
    return f"{number:.0f} B"


def seconds(number: float) -> str:
    """0.012 -> "12 ms"; from ten seconds on as `duration`."""
    if number >= 10:
        return duration(number)
    return f"{number:.3g} s" if number >= 1 else f"{1000 * number:.3g} ms"


def mesh_text(mesh: dict[str, int]) -> str:
    """The axes that split anything: "data 2 x space 4"."""
    return " x ".join(f"{axis} {mesh[axis]}" for axis in AXES if mesh[axis] > 1) or "one device"


def report(plan: dict[str, Any]) -> str:
    """The lines that `brainldm plan` prints."""
    chip = plan["chip"]
    lines = [f"{plan['stage']} on {plan['target']}: {plan['devices']} devices ({plan['kind']})"]
    if chip:
        lines.append(
            f"held against: {chip['name']}, {size(chip['memory'])} a device, "
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
    lines += _suggestion(plan)
    if "run_seconds" in plan:
        lines += ["", f"the whole run at this speed: {duration(plan['run_seconds'])}"]
    return "\n".join(lines)


def _program(result: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    memory, chip, devices = result["memory"], plan["chip"], result["devices"]
    lines = [
        f"{_WHAT[result['program']]}: batch {result['batch']}, mesh {mesh_text(result['mesh'])}, {result['dtype']}"
        + (", rematerialised" if result["remat"] else "")
        + (f", {result['accumulation_steps']} microbatches" if result["accumulation_steps"] > 1 else "")
    ]
    if memory is None:
        lines.append("  memory       more than there is; the compiler did not say how much")
    else:
        verdict = {True: "fits", False: "does NOT fit", None: ""}[result["fits"]]
        of = f" of {size(result.get('limit') or chip['memory'])}: {verdict}" if chip else ""
        parts = ", ".join(f"{name} {size(n)}" for name, n in memory.items() if name != "total" and n)
        lines.append(f"  memory       {size(memory['total'])} a device{of}" + (f" ({parts})" if parts else ""))
    lines.append(f"  state        {size(result['state_bytes'])} a device of parameters and what is kept with them")
    counted = result.get("operations")
    lines.append(
        f"  operations   {result['arithmetic'] / devices / 1e12:.3g} TFLOP a device in convolutions and products"
        + (f"; the compiler counts {counted / 1e12:.3g}" if counted else "")
        + (" (loops once)" if counted and result["loops"] else "")
    )
    if result.get("bytes"):
        lines.append(f"  traffic      {size(result['bytes'])} of memory" + (" (loops once)" if result["loops"] else ""))
    if result.get("collectives") is not None:
        found = result["collectives"]
        lines.append(
            f"  collectives  {size(sum(c['sent'] for c in found))} sent by each device"
            if found
            else "  collectives  none"
        )
        lines += [f"    {c['kind']:<19} {c['count']:>5} x   {size(c['bytes'])} in all" for c in found]
    if result.get("step_seconds"):
        times = result["times"]
        detail = [f"arithmetic {seconds(times['arithmetic'])} at {plan['utilisation']:.0%} of the peak"]
        if "memory" in times:
            detail.append(f"memory traffic {seconds(times['memory'])}")
        if "collectives" in times:
            detail.append(f"collectives {seconds(times['collectives'])}")
        lines.append(f"  expected     {seconds(result['step_seconds'])} ({'; '.join(detail)})")
    return lines


def _largest(largest: dict[str, Any] | None) -> list[str]:
    if not largest:
        return []
    return [
        "",
        f"largest batch that fits: {largest['batch']} ({largest['per_device']} a part; each takes "
        f"{size(largest['bytes_per_row'])}), by a straight line through two compilations",
    ]


def _suggestion(plan: dict[str, Any]) -> list[str]:
    if "suggestion" not in plan:
        return []
    lines = ["", "changes tried:"]
    for tried in plan["tried"]:
        changes = ", ".join(f"{key}={value}" for key, value in tried["changes"].items())
        memory = size(tried["memory"]["total"]) if tried["memory"] else "too much"
        lines.append(f"  {changes}, batch {tried['batch']}: {memory}, {'fits' if tried['fits'] else 'does not fit'}")
    found = plan["suggestion"]
    if not found:
        return [*lines, "none of them fits: use a larger slice, or a chip with more memory"]
    return [*lines, f"suggested: {found['flags']}", *_program(found["step"], plan), *_largest(found["largest"])]
