"""What compilers say of the paper's programs at full size: operations, bytes, memory, bounds. Nothing is run.

    python -m benchmarks.compiled compile h100 decode --label today --to compiled.jsonl     # one line for each program
    python -m benchmarks.compiled table compiled.jsonl                                      # Markdown

Wants the compilers: pip install 'brainldm[plan,plan-gpu]'. A program takes from ten seconds to several minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from importlib import metadata
from pathlib import Path

from brainldm.planning.chips import CHIPS, SLICES
from brainldm.planning.compiler import Compiler
from brainldm.planning.targets import find_target
from brainldm.planning.times import add_verdict
from brainldm.training.flags import load_config

UTILISATION = 0.4

# A volume does not fit a TPU of 16 GB in training: eight devices, two volumes, each in four parts.
ON_TPUS = {"devices": 8, "batch": 2, "changes": {"mesh.space": 4}}
PROGRAMS = {
    "decode": {"config": "paper_autoencoder", "program": "decode"},
    "encode": {"config": "paper_autoencoder", "program": "encode"},
    "unet": {"config": "paper_ldm", "program": "sample", "changes": {"sampling.num_steps": 1}},
    "train_autoencoder": {"config": "paper_autoencoder", "program": "train", "batch": 1, "tpu": ON_TPUS},
    "train_diffusion": {"config": "paper_ldm", "program": "train", "batch": 4, "tpu": {"batch": 1}},
}
NAMES = {
    "decode": "decode",
    "encode": "encode",
    "unet": "UNet, one step of sampling",
    "train_autoencoder": "autoencoder, training step",
    "train_diffusion": "diffusion, training step",
}


def compile_one(chip: str, name: str, label: str) -> dict:
    """One program for one chip, with versions and the date."""
    wanted = {**PROGRAMS[name], **(PROGRAMS[name].get("tpu", {}) if chip in SLICES else {})}
    devices = wanted.get("devices", 1)
    target, found = find_target(None, chip, devices)
    config = load_config(wanted["config"], {"data.path": "none"})
    with Compiler(config, target) as compiler:
        result = compiler.run(wanted["program"], wanted.get("batch"), wanted.get("changes"))
    result = add_verdict({**result, "full": False}, found, UTILISATION)
    packages = ["jax", "libtpu" if chip in SLICES else "jax-cuda13-plugin"]
    versions = {package: metadata.version(package) for package in packages}
    today = datetime.date.today().isoformat()
    return {"chip": chip, "name": name, "label": label, "date": today, "versions": versions, "result": result}


def table(lines: list[dict]) -> str:
    """Rows of Markdown, by program, chip and label in the order of the lines."""
    head = ["program", "chip", "batch", "", "TFLOP", "GB moved", "temporary GB", "all GB", "at least", "expected"]
    rows = [head, ["---"] * len(head)]
    for name in PROGRAMS:
        for chip in CHIPS:
            rows += [_row(line) for line in lines if (line["name"], line["chip"]) == (name, chip)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(line: dict) -> list[str]:
    result = line["result"]
    memory = result["memory"] or {}
    on = f"{result['devices']} x {line['chip']}" if result["devices"] > 1 else line["chip"]
    row = [NAMES[line["name"]], on, str(result["batch"]), line["label"]]
    row += [f"{result['arithmetic'] / result['devices'] / 1e12:.3g}", _gb(result.get("bytes"))]
    row += [_gb(memory.get("temporary")), _gb(memory.get("total"))]
    if not result.get("bytes"):
        return [*row, "does not fit", ""]
    return [*row, f"{1e3 * result['bound_seconds']:.3g} ms", f"{1e3 * result['step_seconds']:.3g} ms"]


def _gb(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("compile")
    one.add_argument("chip", choices=CHIPS)
    one.add_argument("program", choices=PROGRAMS)
    one.add_argument("--label", default="")
    one.add_argument("--to", type=Path, required=True, metavar="FILE.jsonl")
    shown = commands.add_parser("table")
    shown.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    if options.command == "compile":
        line = compile_one(options.chip, options.program, options.label)
        with options.to.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(table([line]), file=sys.stderr)
    else:
        print(table([json.loads(line) for path in options.files for line in path.read_text().splitlines()]))


if __name__ == "__main__":
    main()
