"""What `prepare` recorded of a head beside an image, which the image alone does not show."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json

_POSSIBLE = (0.5, 2.0)


def registration_scale(image: str | Path) -> float | None:
    """The size of the brain relative to the template's along one axis, from the sidecar of a prepared image.

    None where there is no sidecar, or nothing usable in it: a volume divided by its cube is normalised for head size.
    """
    try:
        scale = float(_sidecar(image)["Registration"]["Scale"])
    except (ValueError, KeyError, TypeError):
        return None
    return scale if math.isfinite(scale) and _POSSIBLE[0] <= scale <= _POSSIBLE[1] else None


def recorded_skull(image: str | Path) -> bool | None:
    """Whether the skull is in the image, by its sidecar; None where that does not say."""
    stripped = _sidecar(image).get("SkullStripped")
    return not stripped if isinstance(stripped, bool) else None


def _sidecar(image: str | Path) -> dict[str, Any]:
    image = Path(image)
    path = image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    try:
        return read_json(path)
    except UserError:
        return {}
