"""The ladder of memory: presets compiled until one fits, and the first that fits each rung."""

import json

import pytest

from brainldm.cli import main
from brainldm.planning import ladder
from brainldm.planning.ladder import Preset, Work, first_fitting, make_ladder, usable
from brainldm.planning.ladder_report import ladder_markdown, ladder_report

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
    for rows in (text, markdown):
        assert "one GPU, batch 1, --config.model.remat='(0,)'" in " ".join(rows.split())
        assert "none of the presets fits" in rows
    assert "nothing was run" in text and markdown.count("\n") == 2 + 3 * 3 - 1


def test_the_command_prints_the_ladder(made, capsys):
    assert main(["plan", "--ladder", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chip"] == "h100"
