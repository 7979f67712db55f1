"""The table of what compilers say: a row for each program and chip, also where a program does not fit."""

from benchmarks.compiled import PROGRAMS, table
from brainldm.planning.chips import CHIPS
from brainldm.planning.search import flags
from brainldm.training.flags import load_config

RESULT = {
    "devices": 1,
    "batch": 1,
    "arithmetic": 15.14e12,
    "bytes": 42.3e9,
    "memory": {"temporary": 3.67e9, "total": 3.8e9},
    "bound_seconds": 0.0153,
    "step_seconds": 0.0383,
}


def test_rows_say_what_was_compiled_and_before_stands_above_after():
    lines = [{"chip": "h100", "name": "decode", "label": label, "result": RESULT} for label in ("before", "after")]
    large = {"devices": 8, "batch": 2, "arithmetic": 8e12, "memory": {"total": 9e10}}
    lines.append({"chip": "v5e", "name": "train_autoencoder", "label": "before", "result": large})
    rows = table(lines).splitlines()[2:]
    assert rows[0] == "| decode | h100 | 1 | before | 15.1 | 42.3 | 3.67 | 3.8 | 15.3 ms | 38.3 ms |"
    assert "| after |" in rows[1]
    assert rows[2] == "| autoencoder, training step | 8 x v5e | 2 | before | 1 |  |  | 90 | does not fit |  |"


def test_programs_are_of_packaged_configs():
    assert set(CHIPS) > {"v5e", "v6e", "h100"}
    for wanted in PROGRAMS.values():
        for changes in (wanted.get("changes", {}), wanted.get("tpu", {}).get("changes", {})):
            load_config(wanted["config"], flags(changes).split())
