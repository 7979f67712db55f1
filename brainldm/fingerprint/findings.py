"""What of a fingerprint needs a person's eye, in sentences, the worst first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from brainldm.datasets.splits import SPLITS
from brainldm.fingerprint.data_costs import readable_bytes
from brainldm.fingerprint.record import LEVELS, Finding, Fingerprint

OUTSIDE = 0.05
"""Fraction of values outside a condition's range from which it is a warning."""

SHOWN = 3


def findings(seen: Fingerprint, notes: Sequence[str] = (), cache_gib: float = 0.0) -> list[Finding]:
    """Everything worth saying about `seen`, sorted by LEVELS.

    `notes` are those of `find_scans`, `cache_gib` is what training keeps of the volumes in memory.
    """
    found = [
        *_rejections(seen),
        *_splits(seen),
        *_duplicates(seen),
        *_repeated(seen),
        *_conditions(seen),
        *_geometry(seen),
        *_intensity(seen),
        *_coverage(seen),
        *_compressed(seen, cache_gib),
        *(Finding("note", note if note.endswith(".") else f"{note}.") for note in notes),
    ]
    return sorted(found, key=lambda one: LEVELS.index(one.level))


def some(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first `shown` of `names` and how many more: `a, b, c and 4 more`."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 scan`, `2 scans`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _rejections(seen: Fingerprint) -> list[Finding]:
    by_stage = Counter(one.stage for one in seen.rejected)
    found = [
        Finding(
            "error",
            f"{counted(count, 'scan')} would be rejected at {stage}: "
            f"{some([one.name for one in seen.rejected if one.stage == stage])}.",
        )
        for stage, count in sorted(by_stage.items())
    ]
    if found and seen.kind == "prepared" and seen.counts["usable"]:
        share = len(seen.rejected) / (len(seen.rejected) + seen.counts["usable"])
        found.append(
            Finding(
                "note",
                "Training stops at the first scan that it cannot use. Take them out, or allow their share by "
                f"config.data.max_excluded (here {share:.3g}).",
            )
        )
    return found


def _splits(seen: Fingerprint) -> list[Finding]:
    found = []
    without = seen.counts["scans"] - sum(seen.splits.values())
    if seen.splits and without:
        found.append(
            Finding(
                "error",
                f"{counted(without, 'scan has', 'scans have')} no split while others have one: training refuses such a "
                "table. Fill the column, or remove it to have participants split by their ids.",
            )
        )
    unknown = [name for name in seen.splits if name not in SPLITS]
    if unknown:
        found.append(
            Finding("error", f"Unknown in the column split: {some(unknown)}. Training knows {', '.join(SPLITS)}.")
        )
    return found + _people_in_several(seen)


def _people_in_several(seen: Fingerprint) -> list[Finding]:
    several = [f"{person} ({', '.join(splits)})" for person, splits in seen.in_several_splits.items()]
    if not several:
        return []
    who = counted(len(several), "participant is", "participants are")
    return [
        Finding(
            "error",
            f"{who} in more than one split: {some(several)}. What is measured on held-out scans of people who were "
            "trained on is too good; give all scans of a person one split.",
        )
    ]


def _duplicates(seen: Fingerprint) -> list[Finding]:
    texts = {
        "file": "with the same file content",
        "voxels": "with the same voxels in different files",
        "source": "prepared from the same raw scan",
    }
    found = []
    for what, text in texts.items():
        same = [one for one in seen.duplicates if one.what == what]
        if same:
            named = [" = ".join(one.scans[:SHOWN]) + (" ..." if len(one.scans) > SHOWN else "") for one in same]
            found.append(Finding("error", f"{counted(len(same), 'group')} of scans {text}: {some(named)}."))
    leaking = [one for one in seen.duplicates if len(one.splits) > 1]
    if leaking:
        found.append(Finding("error", f"{counted(len(leaking), 'group')} of these duplicates spread over splits."))
    return found


def _repeated(seen: Fingerprint) -> list[Finding]:
    if not seen.repeated_rows:
        return []
    listed = some([f"{name} ({count})" for name, count in seen.repeated_rows.items()])
    who = counted(len(seen.repeated_rows), "scan has", "scans have")
    return [Finding("error", f"{who} more than one row in the table: {listed}. Keep one row of each.")]


def _conditions(seen: Fingerprint) -> list[Finding]:
    found = []
    conditions = [column for column in seen.columns if column.condition]
    total = seen.counts["scans"]
    absent = [column.name for column in conditions if total and column.missing == total]
    if absent:
        level = "error" if seen.kind == "prepared" else "warning"
        text = f"No scan has {', '.join(absent)}; training wants every condition of its config. Name a table with "
        text += "--table, or other conditions in the config (config.covariates.names)."
        found.append(Finding(level, text))
    for column in conditions:
        if column.name not in absent and column.missing:
            found.append(Finding("warning", f"{column.name} is missing in {column.missing} of {total} scans."))
        if column.odd:
            found.append(
                Finding("warning", f"{column.name} has a value that it cannot take in {counted(column.odd, 'scan')}.")
            )
        if column.outside:
            level = "warning" if column.outside > OUTSIDE else "note"
            low, high = column.range
            found.append(
                Finding(
                    level,
                    f"{column.name}: {column.outside:.1%} of the values lie outside the model's range {low:g} to "
                    f"{high:g}{' ' + column.unit if column.unit else ''} (found {column.minimum:g} to "
                    f"{column.maximum:g}). They are kept, normalised beyond [0, 1]; config.covariates.ranges sets "
                    "the range.",
                )
            )
        if column.kind == "numbers" and column.n > 1 and column.minimum == column.maximum:
            found.append(Finding("warning", f"{column.name} is {column.minimum:g} in every scan: nothing to learn."))
        if column.levels and column.n > 1 and max(column.levels.values()) == column.n:
            only = max(column.levels, key=column.levels.get)
            found.append(Finding("note", f"{column.name} is {only} in every scan."))
    return found


def _geometry(seen: Fingerprint) -> list[Finding]:
    found = []
    for what, counts in seen.geometry.items():
        if seen.kind == "prepared" and what in ("shape", "data type") and len(counts) > 1:
            listed = some([f"{value} ({count})" for value, count in counts.items()])
            found.append(Finding("warning", f"The prepared scans differ in {what}: {listed}."))
    if seen.kind == "raw" and seen.geometry["spacing in mm"]:
        thick = {
            value: count
            for value, count in seen.geometry["spacing in mm"].items()
            if max(float(side) for side in value.split("x")) > 2
        }
        if thick:
            listed = some([f"{value} mm ({count})" for value, count in thick.items()])
            found.append(
                Finding("warning", f"{counted(sum(thick.values()), 'scan')} with slices thicker than 2 mm: {listed}.")
            )
    return found


def _intensity(seen: Fingerprint) -> list[Finding]:
    if seen.kind != "prepared" or not seen.intensity:
        return []
    low, high = seen.intensity["p0"]["minimum"], seen.intensity["p100"]["maximum"]
    if low >= -1e-3 and high <= 1 + 1e-3:
        return []
    return [
        Finding(
            "note",
            f"Intensities of the prepared scans run from {low:g} to {high:g}: config.data.scaling 'minmax' brings each "
            "scan to [0, 1] by its own extremes.",
        )
    ]


def _coverage(seen: Fingerprint) -> list[Finding]:
    found = []
    read, total = seen.counts["read"], seen.counts["scans"]
    if read < total:
        found.append(
            Finding(
                "note",
                f"{read} of {total} scans were read in full, the others by header and length alone: a fault inside "
                "one of them can stay unseen. --full reads all.",
            )
        )
    odd = seen.counts["odd_and_not_read"]
    if odd:
        found.append(
            Finding(
                "warning",
                f"{counted(odd, 'more scan')} whose length does not fit the header {'was' if odd == 1 else 'were'} not "
                "read. --full reads all.",
            )
        )
    return found


def _compressed(seen: Fingerprint, cache_gib: float) -> list[Finding]:
    """Volumes that training would unpack again and again."""
    count = seen.counts["compressed"]
    size = 4 * math.prod(seen.grid["shape"]) * seen.counts["usable"]
    if seen.kind != "prepared" or not count or size <= cache_gib * 2**30:
        return []
    return [
        Finding(
            "warning",
            f"{counted(count, 'scan is', 'scans are')} compressed, and the dataset ({readable_bytes(size)} in memory) "
            f"does not fit into config.data.cache_gib {cache_gib:g}: they are unpacked whenever they are drawn. Name a "
            "folder for unpacked copies by config.data.cache_dir, or use what `brainldm prepare` writes.",
        )
    ]
