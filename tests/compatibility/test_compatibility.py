"""What older versions of brainldm wrote is read, and goes on, as they would have gone on themselves.

README.md says what the fixtures hold and how they were made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from brainldm.data.latents import LatentCache
from brainldm.datasets.bids import read_dataset
from brainldm.release.export import export
from brainldm.training.restore import read_config, restore_state
from brainldm.volumes.nifti import read_volume
from brainldm.weights.model_folder import load_model

pytestmark = pytest.mark.slow

ARCHIVES = sorted((Path(__file__).resolve().parent / "fixtures").glob("*.tar.gz"))
STAGES = ("autoencoder", "diffusion")
STORED_UNIT = 1 / 32767
"""The step of the intensities of a written volume."""


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def old(request, tmp_path_factory) -> Path:
    """What one version wrote: work dirs, latents, a model, datasets. Tests read it."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(old) -> dict:
    """The numbers that belong to it."""
    return json.loads((old / "expected.json").read_text())


@pytest.fixture(scope="module")
def further(old, expected, repository, tmp_path_factory) -> Path:
    """A copy in which today's commands have trained both stages to their end, and generated brains in `again`."""
    folder = shutil.copytree(old, tmp_path_factory.mktemp("further") / "old")
    commands = {"generate": ["generate", "model", "again", *expected["generated_with"]]}
    for stage in STAGES:
        commands[stage] = [
            *("train", "--config", f"configs/{stage}.py", "--workdir", stage, "--config.data.path=people"),
            *(["--config.autoencoder=autoencoder_as_it_was"] if stage == "diffusion" else []),
            "--config.every.validate=0",
        ]
    shutil.copytree(folder / "autoencoder", folder / "autoencoder_as_it_was")
    environment = {**os.environ, "PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # few steps, many programs
    running = {}
    for name, arguments in commands.items():
        with (folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "brainldm", *arguments]
            running[name] = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        for name, process in running.items():
            (folder / f"{name}.code").write_text(str(process.wait(300)))
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return folder


def require_success(further: Path, name: str) -> None:
    """Raise AssertionError with what a command of `further` said when it failed."""
    assert (further / f"{name}.code").read_text() == "0", (further / f"{name}.log").read_text()


def digest(array) -> str:
    """As expected.json holds them."""
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:16]


def digests(tree) -> dict[str, str]:
    """Digests of all arrays of a tree by their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): digest(leaf) for path, leaf in leaves}


def images(dataset: Path) -> list[Path]:
    """The images of a dataset, in order."""
    return sorted(dataset.rglob("*.nii.gz"))


def sidecar(image: Path) -> dict:
    """What the JSON file beside an image says."""
    return json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_every_array_of_an_old_checkpoint_comes_back_bit_for_bit(old, expected, stage):
    state = restore_state(read_config(old / stage), old / stage)
    assert int(state.step) == expected["steps"][stage]
    assert digests(state) == expected["leaves"][stage]


@pytest.mark.parametrize("stage", STAGES)
def test_an_old_run_goes_on_with_the_same_command_as_its_own_version_would(old, expected, further, stage):
    require_success(further, stage)
    then, now = ((folder / stage / "metrics.jsonl").read_text() for folder in (old, further))
    assert now.startswith(then)
    new = [json.loads(line) for line in now.removeprefix(then).splitlines()]
    line, wanted = new[0], dict(expected["continued"][stage])
    assert {entry["split"] for entry in new[1:]} <= {"fidelity"}  # at which later versions look too
    assert line.pop("split") == wanted.pop("split")
    assert {name: line[name] for name in wanted} == pytest.approx(wanted, rel=1e-3)
    facts = json.loads((further / stage / "run.json").read_text())
    assert facts["resumed_from_step"] == expected["steps"][stage]
    assert (further / stage / "checkpoints" / str(line["step"]) / "SHA256SUMS").exists()


def test_an_old_run_goes_on_with_its_old_latents(old, further):
    require_success(further, "diffusion")
    then, now = (
        {path.name: path.read_bytes() for path in (folder / "diffusion/latents").iterdir()} for folder in (old, further)
    )
    assert now == then


def test_old_latents_are_read_bit_for_bit(old, expected):
    folder = old / "diffusion/latents"
    cache = LatentCache(folder, json.loads((folder / "index.json").read_text()))
    assert len(cache) == len(expected["latents"])
    found = {
        name: {kind: [digest(cache.read(name, v, kind)) for v in range(cache.variants)] for kind in ("mean", "std")}
        for name in expected["latents"]
    }
    assert found == expected["latents"]


def test_an_old_autoencoder_encodes_scans_to_its_old_latents(old):
    model = load_model(old / "model")
    records = read_dataset(old / "people", model.spec.covariates)
    folder = old / "diffusion/latents"
    cache = LatentCache(folder, json.loads((folder / "index.json").read_text()))
    volumes = np.stack([read_volume(record.path).data for record in records])
    low, high = (bound(volumes, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
    encode = jax.jit(partial(model.spec.make_autoencoder().apply, method="encode"))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        encoded = encode({"params": model.autoencoder}, ((volumes - low) / (high - low))[..., None])
    for kind, values in zip(("mean", "std"), encoded, strict=True):
        cached = np.stack([cache.read(record.name, kind=kind) for record in records])
        np.testing.assert_allclose(values, cached, rtol=1e-3, atol=1e-4 * cached.std())


def test_an_old_model_folder_holds_the_weights_of_its_runs(old, expected):
    model = load_model(old / "model")
    assert model.sha256 == hashlib.sha256((old / "model/SHA256SUMS").read_bytes()).hexdigest()
    for params, stage, part in ((model.autoencoder, "autoencoder", "params/"), (model.unet, "diffusion", "ema/")):
        leaves = expected["leaves"][stage].items()
        assert digests(params) == {name.removeprefix(part): value for name, value in leaves if name.startswith(part)}


def test_old_runs_are_exported_to_the_model_folder_of_their_own_version(old, tmp_path):
    export(old / "autoencoder", old / "diffusion", tmp_path / "model")
    for name in ("autoencoder.safetensors", "unet.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (old / "model" / name).read_bytes()
    now, then = (json.loads((folder / "model/model.json").read_text()) for folder in (tmp_path, old))
    for name in then.keys() - {"provenance"}:  # what is new since then may stand beside it
        if isinstance(then[name], dict):
            assert then[name].items() <= now[name].items()
        else:
            assert then[name] == now[name]


def test_an_old_model_draws_the_brains_that_it_drew(old, further):
    require_success(further, "generate")
    pairs = list(zip(images(old / "synthetic"), images(further / "again"), strict=True))
    assert len(pairs) == 2
    for then, now in pairs:
        assert now.parent.relative_to(further / "again") == then.parent.relative_to(old / "synthetic")
        one, two = read_volume(then), read_volume(now)
        np.testing.assert_array_equal(one.affine, two.affine)
        np.testing.assert_allclose(one.data, two.data, rtol=0, atol=1.01 * STORED_UNIT)
    constant = json.loads((further / "again/T1w.json").read_text())
    lines = [json.loads(line) for line in (further / "again/manifest-0000.jsonl").read_text().splitlines()]
    for (then, _), line in zip(pairs, lines, strict=True):  # what stood beside each image is said once, or in its line
        own = {"Conditions": line["conditions"], "Extrapolated": line["extrapolated"], "Index": line["index"]}
        assert sidecar(then).items() <= (constant | own).items()
    table = "participants.tsv"
    assert (further / "again" / table).read_text() == (old / "synthetic" / table).read_text()


def test_an_old_generated_dataset_is_read_and_is_as_its_manifest_says(old):
    model = load_model(old / "model")
    folder = old / "synthetic"
    records = read_dataset(folder, model.spec.covariates)
    lines = [json.loads(line) for line in (folder / "manifest-0000.jsonl").read_text().splitlines()]
    assert [record.name for record in records] == [line["id"] for line in lines]
    for record, line in zip(records, lines, strict=True):
        content = record.path.read_bytes()
        assert record.path == folder / line["file"]
        assert (len(content), hashlib.sha256(content).hexdigest()) == (line["bytes"], line["sha256"])
        assert record.covariates == line["conditions"]
        assert line["model_sha256"] == model.sha256
        assert read_volume(record.path).data.shape == model.spec.grid.shape
