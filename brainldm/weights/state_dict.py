"""State dicts of one network, out of the files that people have them in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from brainldm.runtime.errors import UserError
from brainldm.runtime.format import format_names
from brainldm.weights.torch_file import read_torch_state_dict


def read_state_dict(path: str | Path, anchor: str) -> dict[str, np.ndarray]:
    """The state dict of the network that has the parameter `anchor`: name to array, in the file's order.

    Reads `.safetensors`, and `.pt`, `.pth` and `.ckpt` as `read_torch_state_dict` does. What wrappers and trainers put
    before the names (`net.`, `module.`, `_orig_mod.`, the attribute of a Lightning module) is removed, and other
    networks of the file are left out. Raises UserError for a file that cannot be read, or that holds several such
    networks.
    """
    path = Path(path)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_state_dict(path)
    return network_part(state, anchor, path)


def network_part(state: Mapping[str, np.ndarray], anchor: str, path: Path) -> dict[str, np.ndarray]:
    """The names of one network without what stands before `anchor`; all of them where that is in none."""
    prefixes = sorted(key.removesuffix(anchor) for key in state if key == anchor or key.endswith(f".{anchor}"))
    if len(prefixes) > 1 and "" not in prefixes:
        raise UserError(
            f"{path}: holds {len(prefixes)} networks that could be meant, under {format_names(prefixes)}. Save the "
            "state dict of one of them."
        )
    prefix = "" if not prefixes or "" in prefixes else prefixes[0]
    return {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"There is no file {path} to read weights from.")
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}). Copy or download it again.") from error
