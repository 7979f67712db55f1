"""The command `measure`: what it prints, how it ends, and which backend it takes."""

import json

import pytest

from brainldm.cli import main
from brainldm.evaluation.measures.backends import open_backend
from brainldm.evaluation.measures.weight_free import WeightFree
from brainldm.population.population import write_population
from brainldm.runtime.errors import UserError


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people") / "data"
    write_population(root, 2, 4, seed=3)
    return root


def test_a_dataset_is_measured_and_said(people, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["measure", str(people), str(out), "--labels"]) == 0
    assert f"2 of 2 images measured by weight-free: {out}/volumes.tsv" in capsys.readouterr().out
    assert len(list(out.glob("sub-*/anat/*_desc-weightfree_dseg.nii.gz"))) == 2
    assert main(["measure", str(people), str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done_now"], summary["measured"], summary["weights_sha256"]) == (0, 2, None)
    assert summary["out"] == str(out)


def test_without_a_folder_it_goes_to_the_derivatives(people, capsys):
    assert main(["measure", str(people)]) == 0
    assert (people / "derivatives" / "brainldm-measure" / "volumes.tsv").is_file()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--backend", "freesurfer"], "there are weight-free, synthseg, meshnet"),
        (["--backend", "synthseg"], "give --weights FILE"),
        (["--weights", "absent.h5"], "There is no file absent.h5"),
        (["--weights", "absent.json"], "absent.json: cannot be read"),
        (["--backend", "weight-free", "--weights", "w.h5"], "takes no weights"),
    ],
)
def test_mistakes_end_with_2_and_a_paragraph(people, tmp_path, capsys, arguments, says):
    assert main(["measure", str(people), str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and not (tmp_path / "out").exists()


def test_no_dataset_ends_with_2(tmp_path, capsys):
    assert main(["measure", str(tmp_path / "absent")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_backend_follows_from_the_weights(tmp_path):
    assert isinstance(open_backend(None), WeightFree)
    (tmp_path / "w.pth").write_text("no weights")
    with pytest.raises(UserError, match="PyTorch"):
        open_backend(None, tmp_path / "w.pth")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match="TensorFlow.js"):
        open_backend(None, tmp_path)
