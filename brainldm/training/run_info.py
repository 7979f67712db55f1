"""What run.json of a work dir says of the run, read with its types checked: others than the run may have changed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json
from brainldm.runtime.rules import COUNT, TEXT, Rule, check, list_of, number, whole

_TABLE = Rule("a table of names and values", lambda v: v is None or isinstance(v, dict))
_RANGES = Rule(
    "a table of two numbers for each name",
    lambda v: isinstance(v, dict) and all(list_of(number(), 2, 2).allows(pair) for pair in v.values()),
)
_RULES = {
    "scans_training": COUNT,
    "scans_validation": COUNT,
    "latent_shape": list_of(whole(1, 2**20), 4, 4),
    "autoencoder_sha256": TEXT,
    "observed": _RANGES,
    "zero_background": Rule("true, false or null", lambda v: v is None or isinstance(v, bool)),
    "demography": _TABLE,
    "init_from": _TABLE,
}


def read_run_info(workdir: str | Path, *needed: str) -> dict[str, Any]:
    """The content of run.json.

    Raises UserError when it cannot be read, lacks one of `needed`, or one of its values is of another kind.
    """
    path = Path(workdir) / "run.json"
    content = read_json(path)
    try:
        known = {name: content[name] for name in _RULES if name in content}
        check(str(path), known, {name: _RULES[name] for name in needed}, _RULES)
    except UserError as error:
        raise UserError(f"{error} Copy the work dir again, or train again.") from error
    return content
