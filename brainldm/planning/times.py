"""How long a compiled program takes on a chip, and whether it fits there."""

from __future__ import annotations

from typing import Any

from brainldm.planning.chips import Chip

MEMORY_SHARE = 0.9
"""Of the bandwidth of a memory, that a TPU's compiler reckons with; it is taken for what convolutions leave over."""


def add_verdict(result: dict[str, Any], chip: Chip | None, utilisation: float) -> dict[str, Any]:
    """Add to a compiler's answer whether it fits a chip and how long one run of it takes there.

    bounds: seconds that it takes at least, by the arithmetic at the full peak, by the memory traffic at the full
    bandwidth, and by what the compiler of a TPU says (`roofline`, over all instructions one by one; left out where it
    is less than the arithmetic allows, or where a loop was counted once). bound_seconds is the largest.

    step_seconds, the expected time, is the larger of the arithmetic at `utilisation` of the peak and the memory traffic
    at full bandwidth, plus the collectives at full bandwidth, as if they never overlapped with anything. Programs
    compiled with full effort for a TPU also have hybrid_seconds: the compiler's cycles for convolutions and products,
    and the traffic of all else at MEMORY_SHARE of the bandwidth.
    """
    result = dict(result)
    if chip is None:
        return result
    if result["memory"]:
        result["fits"] = result["fits"] is not False and result["memory"]["total"] <= chip.memory
    counted = None if result.get("loops", True) else result.get("operations")
    operations = max(counted or 0.0, result["arithmetic"] / result["devices"])
    peak = chip.peak * (chip.float32_share if result["dtype"] == "float32" else 1.0)
    bounds = {"arithmetic": operations / peak}
    times = {"arithmetic": operations / (utilisation * peak)}
    if result.get("bytes"):
        bounds["memory"] = times["memory"] = result["bytes"] / chip.memory_bandwidth
    roofline = result.get("roofline_seconds") or 0.0
    if not result.get("loops", True) and roofline >= bounds["arithmetic"]:
        bounds["roofline"] = roofline
    if result.get("collectives") is not None:
        times["collectives"] = sum(item["sent"] for item in result["collectives"]) / chip.link_bandwidth
    result |= {"times": times, "bounds": bounds, "bound_seconds": max(bounds.values())}
    result["step_seconds"] = max(times["arithmetic"], times.get("memory", 0.0)) + times.get("collectives", 0.0)
    if result.get("full") and chip.clock and result.get("product_cycles"):
        others = result["other_bytes"] / (MEMORY_SHARE * chip.memory_bandwidth)
        result["hybrid_seconds"] = result["product_cycles"] / chip.clock + others
    return result
