"""The ladder of memory, and the line that `train` and `generate` say of the GPU at hand."""

import json

import pytest

from brainldm.cli import main
from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.planning import advice, ladder
from brainldm.planning.advice import generation_advice, training_advice
from brainldm.planning.ladder import Preset, Work, first_fitting, kept_ladder, make_ladder, usable
from brainldm.planning.ladder_report import ladder_markdown, ladder_report
from brainldm.runtime.errors import UserError
from brainldm.training.flags import load_config
from brainldm.training.restore import autoencoder_arguments
from brainldm.volumes.grids import training_grid
from brainldm.weights.model_folder import ModelSpec

GB = 1e9


class _Compiler:
    """Stands in for the compiling process: 2 GB, and 8 GB a volume, less with rematerialisation and on more devices."""

    def __init__(self, config, target):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, program, batch=None, changes=None, full=False, devices=None):
        kept = {None: 1, (0,): 0.5, True: 0.25}[changes.get("model.remat")]
        return {
            "program": program,
            "batch": batch,
            "devices": devices,
            "dtype": "bfloat16",
            "state_bytes": 1.5 * GB,
            "gradient_bytes": 0.5 * GB,
            "arithmetic": 989e12 * batch,
            "fits": None,
            "memory": {"total": 2 * GB + 8 * GB * batch * kept / devices},
            "operations": None,
            "bytes": 1.0,
            "loops": False,
            "collectives": [],
        }


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(ladder, "Compiler", _Compiler)
    presets = (Preset(1, 1), Preset(1, 1, {"model.remat": (0,)}), Preset(1, 1, {"model.remat": True}))
    works = {
        "train_autoencoder": Work("paper_autoencoder", "train", (*presets, Preset(2, 1, {"mesh.space": 2}))),
        "train_diffusion": Work("paper_ldm", "train", (Preset(1, 4), Preset(1, 1))),
        "generate": Work("paper_ldm", "generate", (Preset(1, 4), Preset(1, 1))),
    }
    return json.loads(json.dumps(make_ladder("h100", 0.5, (5, 8, 12), works)))


def test_presets_are_compiled_until_one_fits_the_smallest_rung(made):
    found = made["works"]["train_autoencoder"]["presets"]
    assert [preset["bytes"] / GB for preset in found] == [10, 6, 4]  # 4 fits 5 GB, of which 0.9 can be used
    assert [preset["changes"] for preset in found] == [{}, {"model.remat": [0]}, {"model.remat": True}]
    assert found[0]["at_least"] == 1.0 and found[0]["expected"] == 2.0
    assert len(made["works"]["train_diffusion"]["presets"]) == 2


def test_each_rung_has_the_first_preset_that_fits(made):
    presets = made["works"]["train_autoencoder"]["presets"]
    assert [first_fitting(presets, usable(rung))["bytes"] / GB for rung in (5, 8, 12)] == [4, 6, 10]
    assert first_fitting(presets, 1 * GB) is None
    text, markdown = ladder_report(made), ladder_markdown(made)
    assert (
        "| 8 GB | autoencoder, training | one GPU, batch 1, --config.model.remat='(0,)' | 6 GB | 1 s | 2 s |"
        in markdown
    )
    assert "none of the presets fits" in markdown and "none of the presets fits" in text
    assert "nothing was run" in text and markdown.count("\n") == 2 + 3 * 3 - 1


@pytest.fixture
def kept(made, monkeypatch):
    monkeypatch.setattr(advice, "kept_ladder", lambda: made)
    return made


def _config(**changes):
    return load_config("paper_autoencoder", {"data.path": "people", **changes})


def test_training_hears_what_fits(kept):
    said = training_advice(_config(), 20 * GB, 1)
    assert "takes about 9.31 GiB of the GPU's 18.6 GiB and fits" in said
    said = training_advice(_config(), 7 * GB, 1)
    assert "will probably not fit" in said and "one GPU, batch 1, --config.model.remat='(0,)'" in said
    assert "none of the presets fits" in training_advice(_config(), 1 * GB, 1)
    # 2 GB that do not grow, and half of 8 for a volume.
    assert "5.59 GiB" in training_advice(_config(**{"model.remat": (0,)}), 7 * GB, 1)
    # Two volumes on each of two devices, 2 mm: an eighth of 8 GB each.
    halved = _config(batch_size=4, **{"data.spacing_mm": 2})
    assert "takes about 3.73 GiB" in training_advice(halved, 7 * GB, 2)


def test_training_hears_nothing_of_what_is_not_known(kept):
    assert training_advice(_config(), None, 1) is None
    assert training_advice(_config(**{"model.channels": (64, 128, 128)}), 7 * GB, 1) is None
    assert training_advice(_config(**{"model.dtype": "float32"}), 7 * GB, 1) is None
    assert training_advice(_config(**{"mesh.space": 2}), 7 * GB, 2) is None
    with pytest.raises(UserError, match=r"config\.batch_size"):
        training_advice(_config(batch_size=0), 7 * GB, 1)


def _spec(**changes):
    config = load_config("paper_ldm")
    return ModelSpec(
        autoencoder=autoencoder_arguments(config),
        unet={**config.model.to_dict(), **changes},
        schedule={},
        prediction="epsilon",
        latent_scale=1.0,
        sampling=Sampling(2),
        grid=training_grid(1),
        covariates=Covariates(),
        provenance={},
    )


def test_generation_hears_which_batch_fits(kept):
    assert generation_advice(_spec(), 4, None) is None
    assert generation_advice(_spec(channels=(4,)), 4, 40 * GB) is None
    assert "drawing 4 at once takes about 31.7 GiB" in generation_advice(_spec(), 4, 40 * GB)
    assert "will probably not fit" in generation_advice(_spec(), 4, 20 * GB)
    assert "--batch-size 2 would." in generation_advice(_spec(), 4, 20 * GB)
    assert "Nor does one" in generation_advice(_spec(), 4, 5 * GB)


def test_without_a_gpu_nothing_is_said():
    assert advice.device_memory() is None


def test_the_kept_ladder_is_of_the_packaged_configs():
    """What it was compiled from is there under its name, and every work has a preset for a GPU of 80 GB."""
    found = kept_ladder()
    assert set(found["works"]) == set(ladder.WORKS) and found["rungs"] == list(ladder.RUNGS)
    for name, work in found["works"].items():
        assert (work["config"], work["program"]) == (ladder.WORKS[name].config, ladder.WORKS[name].program)
        assert first_fitting(work["presets"], usable(80)) is not None
        assert all(preset["fixed"] < preset["bytes"] for preset in work["presets"])
        load_config(work["config"], work["presets"][-1]["changes"])


def test_the_command_prints_the_ladder(made, capsys):
    assert main(["plan", "--ladder", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chip"] == "h100"
