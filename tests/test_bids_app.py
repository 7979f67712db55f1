"""The door for BIDS Apps: participants one by one, then the group, are as one run."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_generation import fake_model, fake_sampler

import brainldm
from brainldm import bids_app
from brainldm.bids_app import main
from brainldm.cli import main as native
from brainldm.generation import dataset
from brainldm.population.population import write_population
from brainldm.weights import model_folder


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bids") / "people"
    write_population(folder, 3, 4, seed=4)
    return folder


def content(out):
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_participants_in_parallel_then_the_group_are_one_run(people, tmp_path, repository):
    out, flags = tmp_path / "out", ["--registered", "--grid", "paper-4mm", "--skull", "stripped"]

    def participant(*labels):
        command = [sys.executable, "-m", "brainldm.bids_app", str(people), str(out), "participant"]
        command += ["--participant-label", *labels, *flags]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda labels: participant(*labels), [("0001",), ("sub-0003",)]))
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    assert not (out / "participants.tsv").exists() and not list(out.glob("sub-0002/**/*.nii"))
    assert main([str(people), str(out), "participant", *flags]) == 0  # all, of whom one is left
    assert main([str(people), str(out), "group", *flags]) == 0
    whole = ["--registered", "--grid", "paper-4mm", "--skull", "stripped", "--workers", "1"]
    assert native(["prepare", str(people), str(tmp_path / "native"), *whole]) == 0
    assert content(out) == content(tmp_path / "native")


def test_requests_one_by_one_then_the_group_are_one_dataset(tmp_path, monkeypatch, capsys):
    model = fake_model()
    monkeypatch.setattr(model_folder, "load_model", lambda folder: model)
    monkeypatch.setattr(dataset, "make_sampler", fake_sampler())
    table = tmp_path / "requests.tsv"
    rows = ["sub-b\tF\t60\t30\t1500", "sub-a\tM\t70\t40\t1450", "sub-C3\tF\t50\t20\t1600"]
    table.write_text("\n".join(["participant_id\tsex\tage\tventricles_ml\tbrain_ml", *rows]) + "\n")
    common = ["--model", "model", "--seed", "3"]
    for out, calls in (("one", [["a"], ["sub-C3", "b"]]), ("two", [[]])):
        for labels in calls:
            more = ["--participant-label", *labels] if labels else []
            assert main([str(table), str(tmp_path / out), "participant", *common, *more]) == 0
        if labels == ["sub-C3", "b"]:
            assert (tmp_path / out / "shard-0002-of-0003.json").exists()
        assert main([str(table), str(tmp_path / out), "group", *common]) == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")
    lines = (tmp_path / "one/participants.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["participant_id", "sub-b", "sub-a", "sub-C3"]


@pytest.mark.parametrize(
    "more, said",
    [
        (["participant", "--participant-label", "nobody"], "no scans of sub-nobody"),
        (["group", "--participant-label", "0001"], "Leave the labels out"),
    ],
)
def test_mistakes_of_labels(people, tmp_path, more, said, capsys):
    assert main([str(people), str(tmp_path / "out"), *more, "--registered"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_level_that_there_is_not_is_refused(people, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main([str(people), str(tmp_path / "out"), "session"])
    assert ended.value.code == 2


def test_boutiques_describes_the_arguments_and_exit_codes(repository):
    described = json.loads((repository / "launch/boutiques.json").read_text())
    flags = {item["command-line-flag"] for item in described["inputs"] if "command-line-flag" in item}
    known = {flag for action in bids_app._parser()._actions for flag in action.option_strings}
    assert flags < known and described["tool-version"] == brainldm.__version__
    assert {entry["code"] for entry in described["error-codes"]} == {1, 2, 75}
    for item in described["inputs"]:
        assert item["value-key"] in described["command-line"]
