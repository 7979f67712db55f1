"""Makes the fixtures of one version of brainldm: everything that it writes, at the smallest size, and what it means.

Run it with the version whose formats are to be kept readable, in an empty folder:

    PYTHONPATH=CHECKOUT_OF_THAT_VERSION python THIS_CHECKOUT/tests/compatibility/make_fixtures.py

It leaves VERSION.tar.gz there, which goes to tests/compatibility/fixtures. It uses nothing of the package but its
command, so that it runs with any version.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

import brainldm
from brainldm.cli import main

CONFIGS = Path(__file__).resolve().parent / "configs"
PACKED = ("configs", "people", "autoencoder", "diffusion", "model", "synthetic", "expected.json")


def command(*arguments: str) -> None:
    """Run one `brainldm` command. Raises SystemExit when it fails."""
    print("brainldm", *arguments, flush=True)
    sys.argv = ["brainldm", *arguments]  # what the run notes as its command
    if code := main(list(arguments)):
        sys.exit(code)


def train(stage: str) -> tuple[int, dict]:
    """Train a stage to its end, and take the end away: its checkpoint and what metrics.jsonl says of the time after
    the checkpoint before. So a run is left that was cut off between the two.

    Returns the step of the checkpoint that stays and the figures of the end.
    """
    autoencoder = ["--config.autoencoder=autoencoder"] if stage == "diffusion" else []
    command("train", "--config", f"configs/{stage}.py", "--workdir", stage, "--config.data.path=people", *autoencoder)
    kept, last = sorted(int(path.name) for path in Path(stage, "checkpoints").iterdir())
    shutil.rmtree(Path(stage, "checkpoints", str(last)))
    metrics = Path(stage, "metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= kept))
    for pattern in ("events.out.tfevents*", "progress.png"):  # pictures, which nothing reads back
        for path in Path(stage).glob(pattern):
            path.unlink()
    return kept, next(line for line in lines if line["step"] == last and line["split"] == "train")


def leaf_sums(workdir: Path) -> dict[str, str]:
    """SHA-256 (16 digits) of every array of the one checkpoint of a work dir by its path, read by Orbax alone."""
    (folder,) = (workdir / "checkpoints").iterdir()
    items = [item for item in ("state", "ema") if (folder / item).exists()]
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        arguments = ocp.args.Composite(**{item: ocp.args.StandardRestore() for item in items})
        restored = reader.restore(folder.absolute(), args=arguments)
    tree = {**restored["state"], **({"ema": restored["ema"]} if "ema" in items else {})}
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): hashlib.sha256(np.asarray(x).tobytes()).hexdigest()[:16]
        for path, x in leaves
    }


def latent_sums(folder: Path) -> dict[str, dict[str, list[str]]]:
    """By scan and kind ("mean", "std"), SHA-256 (16 digits) of the latents of every variant."""
    sums: dict[str, dict[str, list[str]]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == "index.json":
            continue
        for kind in ("mean", "std"):
            arrays = np.load(path.with_name(f"{path.stem}_{kind}.npy"))
            for scan, variants in zip(json.loads(path.read_text())["scans"], arrays, strict=True):
                found = [hashlib.sha256(variant.tobytes()).hexdigest()[:16] for variant in variants]
                sums.setdefault(scan["name"], {})[kind] = found
    return sums


def pack(path: Path) -> None:
    """Write an archive of what is to be kept, without owners and times."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in PACKED:
            archive.add(name, filter=plain)
    path.write_bytes(gzip.compress(content.getvalue(), 9, mtime=0))


def make() -> None:
    """Run the commands in the current folder, which is empty."""
    if any(Path().iterdir()):
        sys.exit("Run this in an empty folder.")
    shutil.copytree(CONFIGS, "configs", ignore=shutil.ignore_patterns("__pycache__"))
    command("population", "people", "--n", "3", "--spacing", "4", "--seed", "1")
    expected = {"version": brainldm.__version__, "steps": {}, "leaves": {}, "continued": {}}
    for stage in ("autoencoder", "diffusion"):
        expected["steps"][stage], expected["continued"][stage] = train(stage)
        expected["leaves"][stage] = leaf_sums(Path(stage))
    expected["latents"] = latent_sums(Path("diffusion/latents"))
    command("export", "autoencoder", "diffusion", "model")
    wanted = {"n": 2, "seed": 7, "age": 60, "sex": "F", "ventricles-ml": 30, "brain-ml": 1500}
    expected["generated_with"] = [text for name, value in wanted.items() for text in (f"--{name}", str(value))]
    command("generate", "model", "synthetic", *expected["generated_with"])
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    pack(Path(f"{brainldm.__version__}.tar.gz"))


if __name__ == "__main__":
    make()
