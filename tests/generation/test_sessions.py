"""Generated datasets in which a person has several sessions."""

import csv
import json

import numpy as np
import pytest
from bids_validator import bids_errors
from fake_generation import fake_model, fake_sampler

from brainldm.cli import main
from brainldm.datasets.bids import read_dataset
from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.generation import dataset, regenerate, stream
from brainldm.generation.dataset import Settings, generate
from brainldm.generation.finalize import finalize
from brainldm.generation.manifest import read_manifests
from brainldm.generation.regenerate import regenerate as draw_again
from brainldm.generation.status import read_status, verify
from brainldm.runtime.shards import WHOLE
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import read_volume

AGES = (60.0, 65.0, 70.0)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    for module in (dataset, regenerate):
        monkeypatch.setattr(module, "make_sampler", fake_sampler())


def rows(people=3):
    """Ventricles that grow, in people of both sexes."""
    return [
        {"sex": "FM"[person % 2], "age": age, "ventricles_ml": 10.0 + person + age / 10, "brain_ml": 1400.0 + person}
        for person in range(people)
        for age in AGES
    ]


def draw(out, shard=WHOLE, people=3, **options):
    settings = Settings(Sampling(2), seed=3, batch_size=2, repeat=len(AGES), sessions=True)
    generate(fake_model(), out, rows(people), settings, shard=shard, **options)


def content(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def table(path):
    return list(csv.DictReader(path.open(), delimiter="\t"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three people at three ages. Tests read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "make_sampler", fake_sampler())
        out = tmp_path_factory.mktemp("sessions") / "out"
        draw(out)
    return out


def test_people_have_a_row_and_a_table_of_sessions_each(whole):
    people = table(whole / "participants.tsv")
    assert people == [{"participant_id": f"sub-000{k}", "sex": sex} for k, sex in ((1, "F"), (2, "M"), (3, "F"))]
    visits = table(whole / "sub-0002/sub-0002_sessions.tsv")
    assert [visit["session_id"] for visit in visits] == ["ses-01", "ses-02", "ses-03"]
    assert [float(visit["age"]) for visit in visits] == list(AGES)
    assert [float(visit["ventricles_ml"]) for visit in visits] == [17.0, 17.5, 18.0]
    assert set(json.loads((whole / "sessions.json").read_text())) == set(visits[0]) - {"session_id"}
    sums = (whole / "SHA256SUMS").read_text()
    known = {line.partition("  ")[2] for line in sums.splitlines()}
    ours = {"SHA256SUMS", ".bidsignore", "manifest-0000.jsonl", "shard-0001-of-0001.json"}
    assert set(content(whole)) - known == ours


def test_sessions_of_a_person_share_their_noise_and_have_names_of_their_own(whole):
    entries = list(read_manifests(whole))
    assert [entry["noise"] for entry in entries] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [entry["id"] for entry in entries[2:4]] == ["sub-0001_ses-03", "sub-0002_ses-01"]
    assert entries[3]["file"].startswith("sub-0002/ses-01/anat/sub-0002_ses-01_space-")
    volumes = [read_volume(whole / entry["file"]).data.ravel() for entry in entries]
    assert np.corrcoef(volumes[0], volumes[2])[0, 1] > 0.999 and abs(np.corrcoef(volumes[2], volumes[3])[0, 1]) < 0.3


def test_the_official_validator_finds_no_error(whole):
    assert bids_errors(whole) == []


def test_shards_are_finished_to_the_same_dataset(whole, tmp_path):
    out = tmp_path / "out"
    for number in (3, 1, 2):
        draw(out, (number, 3))
    assert not (out / "participants.tsv").exists() and read_status(out).done == 9
    assert finalize(out) == 9
    same = {name: found for name, found in content(whole).items() if name.startswith(("sub-", "participants", "ses"))}
    assert {name: content(out)[name] for name in same} == same


def test_what_is_gone_is_seen_and_written_again(whole, tmp_path):
    out = tmp_path / "out"
    draw(out)
    image = next((out / "sub-0003/ses-02/anat").glob("*.nii.gz"))
    image.rename(image.with_name("sub-0003_ses-02_other_T1w.nii.gz"))
    (out / "sub-0001/sub-0001_sessions.tsv").write_text("session_id\n")
    strange = "sub-0003/ses-02/anat/sub-0003_ses-02_other_T1w.nii.gz"
    assert verify(out) == (9, {"sub-0003_ses-02": "missing", strange: "in no manifest"})
    (out / strange).unlink()
    draw(out)
    assert content(out) == content(whole)
    assert verify(out, full=True) == (9, {}) and read_status(out).finished


def test_one_session_again_and_ids_of_ones_own(whole, tmp_path):
    assert draw_again(fake_model(), whole, "sub-0002_ses-03").same
    draw(tmp_path / "out", ids=["sub-a", "sub-b", "sub-c"])
    assert draw_again(fake_model(), tmp_path / "out", "sub-b_ses-03").same
    assert [row["participant_id"] for row in table(tmp_path / "out/participants.tsv")] == ["sub-a", "sub-b", "sub-c"]
    changed = json.loads((tmp_path / "out/generation.json").read_text()) | {"ids": ["sub-a"] * 9}
    (tmp_path / "out/generation.json").write_text(json.dumps(changed))
    assert main(["status", str(tmp_path / "out")]) == 2


def test_it_is_read_back_as_scans_with_their_conditions(whole, monkeypatch, tmp_path):
    assert [dict(scan.covariates) for scan in read_dataset(whole, Covariates())] == rows()
    model = fake_model(training_grid(4))
    monkeypatch.setattr(dataset, "make_sampler", fake_sampler(shape=model.spec.grid.shape))
    settings = Settings(Sampling(2), repeat=3, sessions=True)
    generate(model, tmp_path / "out", rows(1), settings)
    source = stream.generated_source(tmp_path / "out", model)
    means = [entry["mean"] for entry in read_manifests(tmp_path / "out")]
    assert [source[k]["image"].mean() for k in range(3)] == pytest.approx(means, abs=1e-4)
    np.testing.assert_allclose(source.conditions, Covariates().encode(rows(1)))


def test_the_command_carries_people_of_the_model_along(demo_run, tmp_path, monkeypatch, capsys):
    shape = training_grid(4).shape
    monkeypatch.setattr(dataset, "make_sampler", fake_sampler(shape=shape))
    folder, out = str(demo_run / "model"), tmp_path / "out"
    ages = "age=60,66,72"
    assert main(["generate", folder, str(out), "--n", "2", "--sex", "F", "--sessions", ages, "--extrapolate"]) == 0
    written = [entry["conditions"] for entry in read_manifests(out)]
    assert [row["age"] for row in written] == [60.0, 66.0, 72.0] * 2 and {row["sex"] for row in written} == {"F"}
    assert len({row["ventricles_ml"] for row in written}) == 6
    for flags, said in (
        (["--sweep", "age=50:60:3"], "exclude each other"),
        (["--uniform"], "exclude each other"),
        (["--age", "60"], "by itself and by --sessions"),
    ):
        assert main(["generate", folder, str(tmp_path / "no"), "--sessions", ages, *flags]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "no").exists()
