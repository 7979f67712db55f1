"""Where the packaged configs lie."""

from __future__ import annotations

import difflib
from pathlib import Path

from brainldm.runtime.errors import UserError


def packaged_configs() -> dict[str, Path]:
    """The files of configs/ by name: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package / "configs")
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def config_file(name: str) -> Path:
    """The file of the packaged config `name`. Raises UserError naming the nearest one when there is none."""
    known = packaged_configs()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"There is no packaged config {name!r}.{hint} They are {', '.join(known)}; a file of your own is given as "
            "FILE.py."
        )
    return known[name]
