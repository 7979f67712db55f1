"""The adversarial baselines from training to brains: one tiny run of each, continued, exported and drawn with."""

import json
import shutil

import jax
import numpy as np
import pytest

from brainldm.cli import main
from brainldm.population.population import write_population
from brainldm.release.export_alone import export_alone
from brainldm.runtime.errors import UserError
from brainldm.training import loop, restore
from brainldm.training.config import CONFIGS, validate
from brainldm.training.flags import load_config
from brainldm.training.metrics import read_metrics
from brainldm.weights.gan_folder import load_generator
from brainldm.weights.model_folder import load_model

STAGES = ("lsgan", "vae_gan")
LAST, BEFORE = 6, 3


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A dataset that says nothing of its people but their names: nothing else is needed."""
    root = tmp_path_factory.mktemp("people") / "people"
    write_population(root, 5, 4, seed=3)
    (root / "participants.tsv").write_text("participant_id\n" + "".join(f"sub-{n:04d}\n" for n in range(1, 6)))
    return root


@pytest.fixture(scope="module")
def runs(people, tmp_path_factory):
    """Work dirs and model folders by stage, made when first asked for."""
    root, made = tmp_path_factory.mktemp("baselines"), {}

    def run(stage):
        if stage not in made:
            workdir = root / stage
            loop.train(load_config(f"{stage}:tiny", {"data.path": str(people)}), workdir)
            made[stage] = workdir, root / f"{stage}_model"
            export_alone(*made[stage])
        return made[stage]

    return run


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_pictures_of_a_run_are_written(runs, stage):
    workdir, _ = runs(stage)
    train, held_out = (read_metrics(workdir, split) for split in ("train", "validation"))
    wanted = {"lsgan": set(), "vae_gan": {"kl", "features", "adversarial", "l1"}}[stage] | {"loss", "discriminator"}
    assert wanted <= set(train) and wanted <= set(held_out)
    assert train["step"] == held_out["step"] == [BEFORE, LAST]
    assert train["discriminator"][1] < train["discriminator"][0]  # two brains and noise are soon told apart
    assert (workdir / f"samples/samples_{LAST:07d}.png").stat().st_size > 5000


@pytest.mark.parametrize("stage", STAGES)
def test_a_continued_run_equals_an_undisturbed_one(runs, stage, tmp_path):
    straight, _ = runs(stage)
    workdir = shutil.copytree(straight, tmp_path / stage)
    shutil.rmtree(workdir / f"checkpoints/{LAST}")
    config = restore.read_config(workdir)
    loop.train(config, workdir)
    assert json.loads((workdir / "run.json").read_text())["resumed_from_step"] == BEFORE
    one, two = (restore.restore_state(config, folder) for folder in (straight, workdir))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert (workdir / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_folder_holds_the_networks_of_its_run(runs, stage):
    workdir, folder = runs(stage)
    model = load_generator(folder)
    state = restore.restore_state(restore.read_config(workdir), workdir)
    found = {"generator": model.generator, **({"encoder": model.encoder} if model.encoder is not None else {})}
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, state.params))
    assert (model.spec.kind, model.spec.provenance["steps"], len(model.spec.covariates)) == (stage, LAST, 0)
    card = (folder / "README.md").read_text()
    assert "our baseline" in card and "Conditions: none" in card
    with pytest.raises(UserError, match="our baseline, and a latent diffusion model is wanted here"):
        load_model(folder)


def test_brains_are_drawn_without_conditions_and_evaluated(runs, people, tmp_path, capsys):
    _, folder = runs("vae_gan")
    assert main(["generate", str(folder), str(tmp_path / "made"), "--n", "3", "--batch-size", "2"]) == 0
    assert (tmp_path / "made/participants.tsv").read_text().splitlines() == ["participant_id"] + [
        f"sub-000{n}" for n in (1, 2, 3)
    ]
    assert json.loads((tmp_path / "made/T1w.json").read_text())["Model"] == "a VAE-GAN, our baseline"
    assert "a VAE-GAN, our baseline" in (tmp_path / "made/README").read_text()
    assert main(["generate", str(folder), str(tmp_path / "one"), "--n", "1", "--batch-size", "2"]) == 0
    image = "sub-0001/anat/sub-0001_space-MNI152NLin2009aSym_T1w.nii.gz"
    assert (tmp_path / "one" / image).read_bytes() == (tmp_path / "made" / image).read_bytes()
    command = ["evaluate", str(tmp_path / "made"), str(people), str(tmp_path / "report"), "--model", str(folder)]
    assert main([*command, "--pairs", "2"]) == 0
    figures = json.loads((tmp_path / "report/report.json").read_text())
    assert figures["agreement"]["ventricles_ml"]["synthetic"]["r"]["value"] is None
    assert figures["reconstruction"]["n"] == 5 and figures["sweep"] is None
    assert "generated, here, by a VAE-GAN, our baseline" in (tmp_path / "report/report.html").read_text()
    assert "Nothing was requested: the model takes no conditions." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--age=60"], "our baseline, which takes no conditions, and age is asked for"),
        (["--condition", "height=1:2"], "takes no conditions, and height is asked for"),
        (["--steps=5", "--eta=0.5"], "draws in one pass, without a sampler, and steps, eta is asked for"),
    ],
)
def test_what_a_baseline_does_not_have_is_refused(runs, tmp_path, capsys, flags, said):
    _, folder = runs("lsgan")
    assert main(["generate", str(folder), str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_model_is_not_made_of_half_a_latent_diffusion_model(tmp_path, capsys):
    config = load_config("demo_autoencoder:tiny", {"data.path": "x"})
    (tmp_path / "config.json").write_text(config.to_json())
    assert main(["export", str(tmp_path), str(tmp_path / "model")]) == 2
    assert "latent diffusion model takes two: brainldm export AE_WORKDIR LDM_WORKDIR" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.channels", (16, 32, 64, 128, 256, 512, 512), "halve 160 voxels 6 times; 2 to 6 are wanted"),
        ("discriminator.channels", (16,), "leave nothing to halve"),
        ("discriminator.channels", (16, 30), "30 is not a multiple of norm_num_groups 16"),
        ("covariates.names", ("age",), "this baseline has none, as in the paper"),
        ("model.latent_size", 0, "whole number from 1 "),
        ("optimizer.beta1", 1.0, "below 1"),
    ],
)
def test_an_impossible_value_is_refused(stage, key, value, said):
    config = CONFIGS[stage]().unlock()
    config.data.path = "people"
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"config.{key.split('.')[0]}.*{said}"):
        validate(config)
