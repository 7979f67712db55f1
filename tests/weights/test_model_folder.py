"""The released form of a model: checked when read."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from brainldm.cli import main
from brainldm.runtime.errors import UserError
from brainldm.weights.model_folder import ModelSpec, load_model, save_model


@pytest.fixture
def folder(demo_run, tmp_path):
    return shutil.copytree(demo_run / "model", tmp_path / "model")


def reseal(folder):
    """Make SHA256SUMS right again after an edit."""
    names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / "SHA256SUMS").write_text(sums)


def edit_spec(folder, **changes):
    content = json.loads((folder / "model.json").read_text())
    content.update(changes)
    (folder / "model.json").write_text(json.dumps(content))
    reseal(folder)


def test_a_model_is_json_and_safetensors_only(folder):
    assert {p.name for p in folder.iterdir()} == {
        "model.json",
        "autoencoder.safetensors",
        "unet.safetensors",
        "SHA256SUMS",
        "README.md",
    }


def test_saving_again_gives_the_same_model(folder, tmp_path):
    model = load_model(folder)
    card = (folder / "README.md").read_text()
    assert save_model(tmp_path / "again", model.spec, model.autoencoder, model.unet, card) == model.sha256
    again = load_model(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, model.unet, again.unet)
    assert again.spec.to_json() == ModelSpec.from_json(model.spec.to_json()).to_json()


def test_half_precision_halves_the_files_and_moves_parameters_by_its_rounding_alone(folder, tmp_path):
    model = load_model(folder)
    save_model(tmp_path / "half", model.spec, model.autoencoder, model.unet, "card", half=True)
    sizes = {
        name: (place / "unet.safetensors").stat().st_size
        for name, place in (("whole", folder), ("half", tmp_path / "half"))
    }
    assert sizes["half"] < 0.7 * sizes["whole"]
    again = load_model(tmp_path / "half")
    for before, after in zip(jax.tree.leaves(model.unet), jax.tree.leaves(again.unet), strict=True):
        assert after.dtype == np.float32
        np.testing.assert_allclose(after, before, rtol=0 if before.ndim < 2 else 2**-11, atol=2**-25)


def test_half_precision_refuses_what_it_cannot_hold(folder, tmp_path):
    model = load_model(folder)
    large = jax.tree.map(lambda x: np.full_like(x, 7e4), model.unet)
    with pytest.raises(UserError, match="too large for float16"):
        save_model(tmp_path / "half", model.spec, model.autoencoder, large, "card", half=True)
    assert not (tmp_path / "half").exists()


def test_export_takes_half_precision_and_notes_for_the_card(demo_run, tmp_path, capsys):
    notes = tmp_path / "notes.md"
    notes.write_text("Licence of the scans: none, they are deformed templates.\n")
    command = ["export", str(demo_run / "autoencoder"), str(demo_run / "diffusion"), str(tmp_path / "half"), "--half"]
    assert main([*command, "--notes", str(notes)]) == 0
    assert (
        (tmp_path / "half/README.md").read_text().endswith("Licence of the scans: none, they are deformed templates.\n")
    )
    stored = safetensors.numpy.load_file(tmp_path / "half/unet.safetensors")
    assert {array.dtype for array in stored.values() if array.ndim > 1} == {np.dtype(np.float16)}
    assert load_model(tmp_path / "half").spec.to_json() == load_model(demo_run / "model").spec.to_json()

    notes.write_bytes(b"\xff\xfe")
    assert main([*command[:3], str(tmp_path / "other"), "--notes", str(notes)]) == 2
    assert "not UTF-8 text" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_nothing_is_overwritten(folder):
    model = load_model(folder)
    with pytest.raises(UserError, match="already holds"):
        save_model(folder, model.spec, model.autoencoder, model.unet, "card")


def flip_bit(folder):
    path = folder / "unet.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage, said",
    [
        (flip_bit, r"unet.safetensors: its SHA-256 is .*changed or damaged"),
        (lambda f: (f / "model.json").write_text("{}"), r"model.json: its SHA-256"),
        (lambda f: (f / "README.md").write_text("for diagnosis"), r"README.md: its SHA-256"),
        (lambda f: (f / "README.md").unlink(), "README.md: missing"),
        (lambda f: (f / "unet.safetensors").unlink(), "unet.safetensors: missing"),
        (lambda f: (f / "SHA256SUMS").unlink(), "no readable SHA256SUMS"),
        (lambda f: (f / "SHA256SUMS").write_text(""), "model.json: missing"),
        (lambda f: edit_spec(f, format_version=99), "version 99.*reads 'brainldm-model' version 1"),
        (lambda f: edit_spec(f, format="other"), "format 'other'"),
        (lambda f: edit_spec(f, unet={"surprise": 1}), "unet has .surprise., which this version does not know"),
        (lambda f: shutil.rmtree(f), "no such folder"),
    ],
)
def test_damaged_and_foreign_folders_are_refused(folder, damage, said):
    damage(folder)
    with pytest.raises(UserError, match=said):
        load_model(folder)


def test_parameters_that_do_not_fit_are_named(folder):
    content = json.loads((folder / "model.json").read_text())
    edit_spec(folder, unet={**content["unet"], "channels": [8, 32]})
    with pytest.raises(UserError, match="do not fit the network.*of another shape"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [np.int8, bool])
def test_weights_of_another_type_are_refused(folder, dtype):
    path = folder / "unet.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = sorted(tensors)[0]
    safetensors.numpy.save_file({**tensors, name: np.zeros(tensors[name].shape, dtype)}, path)
    reseal(folder)
    with pytest.raises(UserError, match=f"no floating-point numbers, {name} is {np.dtype(dtype)}"):
        load_model(folder)


def test_a_name_that_begins_another_is_refused(folder):
    path = folder / "unet.safetensors"
    safetensors.numpy.save_file({**safetensors.numpy.load_file(path), "conv_in": np.zeros(1, np.float32)}, path)
    reseal(folder)
    with pytest.raises(UserError, match="1 unknown .'conv_in'."):
        load_model(folder)


def test_a_sampling_that_cannot_be_meant_is_refused(folder):
    edit_spec(folder, sampling={"num_steps": 20, "eta": 0.0, "guidance": "strong"})
    with pytest.raises(UserError, match="model.json: guidance .* 'strong'"):
        load_model(folder)
