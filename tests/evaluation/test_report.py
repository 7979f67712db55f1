"""The whole evaluation on small datasets."""

import json
import re
import shutil

import numpy as np
import pytest
from browser import find_browser, opened

from brainldm.datasets.bids import read_dataset
from brainldm.datasets.covariates import Covariates
from brainldm.datasets.scans import Scan
from brainldm.evaluation.datasets import is_stand_in
from brainldm.evaluation.plots import nearest, spread
from brainldm.evaluation.report import evaluate, summary_lines
from brainldm.population.population import write_population
from brainldm.runtime.errors import UserError
from brainldm.volumes.nifti import block_average, read_volume, write_volume


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_population(root / "people", 6, 4, seed=2)
    shutil.copytree(root / "people", root / "made")
    # an image without a brain, as a failed sample would be
    record = read_dataset(root / "made", Covariates())[0]
    volume = read_volume(record.path)
    speck = np.zeros_like(volume.data)
    speck[20, 20, 20] = 1
    write_volume(record.path, speck, volume.affine)
    return root / "made", root / "people"


@pytest.fixture(scope="module")
def finished(datasets, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "out"
    volumes = [read_volume(record.path).data[..., None] for record in read_dataset(datasets[1], Covariates())]
    steps = []
    figures = evaluate(
        *datasets,
        out,
        reconstructions=[(v, 0.9 * v) for v in volumes[:2]],
        sweep=("ventricles_ml", [10, 20.5], volumes[2:4]),
        max_pairs=5,
        seed=3,
        progress=lambda done, total, what: steps.append((done, total)),
    )
    return out, figures, steps


def test_figures_are_written_as_returned(finished):
    out, figures, steps = finished
    text = (out / "report.json").read_text()
    assert json.loads(text) == figures and "NaN" not in text
    done = [number for number, _ in steps]
    assert done == sorted(done) and steps[-1] == (54, 54)  # 12 brains measured, 12 seen by the network, 3 x 10 pairs
    assert figures["ms_ssim"]["synthetic"]["pairs"] == 5 and figures["ms_ssim"]["real"]["scales"] == 3
    made, people = (figures["agreement"]["ventricles_ml"][which] for which in ("synthetic", "real"))
    assert (made["n"], made["missing"], people["n"], people["missing"]) == (5, 1, 6, 0)
    assert people["r"]["value"] > 0.9
    assert figures["not_measured"]["synthetic"][0]["id"] == "sub-0001"
    assert figures["stand_in"] is True
    assert figures["reconstruction"]["n"] == 2 and 0.8 < figures["reconstruction"]["ms_ssim"] < 1
    assert figures["sweep"]["values"] == [10, 20.5] and len(figures["sweep"]["measured_brain_ml"]) == 2


needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium here: the page was not opened in one")


@needs_browser
@pytest.mark.slow
def test_the_viewer_opens_in_a_browser_and_shows_what_is_chosen(finished, tmp_path):
    with opened((finished[0] / "report.html").as_uri(), tmp_path) as page:
        page.resize(1200, 900)
        assert page.evaluate("document.getElementById('viewer').dataset.state") == "closed"
        assert page.evaluate("document.getElementById('viewer-panes').offsetHeight") == 0
        page.evaluate("document.getElementById('viewer-start').click()")
        page.wait("document.getElementById('viewer').dataset.state !== 'opening'")
        assert page.evaluate("document.getElementById('viewer').dataset.state") == "ready"
        assert page.evaluate("document.getElementById('viewer').dataset.left") == "0"  # the first generated brain
        assert page.evaluate("document.getElementById('viewer').dataset.right") == "1"  # the first real one
        page.evaluate(
            "(function () { const s = document.getElementById('viewer-right'); s.value = '3';"
            " s.dispatchEvent(new Event('change')); })()"
        )
        page.wait("document.getElementById('viewer').dataset.right === '3'")
        for width, height in ((1200, 900), (390, 844)):
            page.resize(width, height)
            page.wait(f"document.documentElement.scrollWidth <= {width}", 10)


@needs_browser
@pytest.mark.slow
def test_without_webgl_2_the_page_says_so(finished, tmp_path):
    with opened((finished[0] / "report.html").as_uri(), tmp_path) as page:
        page.evaluate("HTMLCanvasElement.prototype.getContext = function () { return null; }")
        page.evaluate("document.getElementById('viewer-start').click()")
        assert page.evaluate("document.getElementById('viewer').dataset.state") == "unsupported"
        assert "no WebGL 2" in page.evaluate("document.getElementById('viewer-note').textContent")


def test_measurements_are_written(finished):
    lines = (finished[0] / "measurements.tsv").read_text().splitlines()
    assert len(lines) == 13 and lines[0].split("\t")[:3] == ["dataset", "id", "ventricles_ml_asked"]
    assert "no brain found" in lines[1] and "n/a" in lines[1]


def test_page_is_self_contained(finished):
    page = (finished[0] / "report.html").read_text()
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)\s*=(?!\"data:)", outside)
    assert "url(" not in outside and "@import" not in outside and len(page) < 15e6
    # generated and real, reconstructions, sweep, spectrum, two scatter plots
    assert outside.count("data:image/png;base64,") == 6
    assert "stand-in" in page and "Not measured" in page and "no brain found" in page
    made = finished[1]["agreement"]["ventricles_ml"]["synthetic"]
    assert f"r = {made['r']['value']:.3f}" in page and f"n = {made['n']}" in page


def test_summary_says_n(finished):
    lines = summary_lines(finished[1])
    assert "n = 5, not measured 1" in lines[0] and "5 pairs of 6, 3 scales" in "\n".join(lines)
    assert "stand-in" in lines[-1]


def test_refuses_what_cannot_be_compared(datasets, tmp_path):
    made, people = datasets
    bare = tmp_path / "bare"
    shutil.copytree(made, bare)
    (bare / "participants.tsv").write_text("participant_id\tage\n" + "".join(f"sub-000{i}\t60\n" for i in range(1, 7)))
    with pytest.raises(UserError, match="neither ventricles_ml nor brain_ml"):
        evaluate(bare, people, tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(people, other)
    for record in read_dataset(other, Covariates()):
        volume = read_volume(record.path)
        write_volume(record.path, block_average(volume.data, 2), volume.affine @ np.diag([2, 2, 2, 1]))
    with pytest.raises(UserError, match="first voxel|one grid"):
        evaluate(made, other, tmp_path / "out2")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UserError, match="nothing is overwritten"):
        evaluate(made, people, tmp_path / "taken")


def test_an_earlier_report_is_left_alone(datasets, finished):
    out = finished[0]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="nothing is overwritten"):
        evaluate(*datasets, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_stand_ins_are_known_by_their_key_or_their_words(tmp_path):
    found = {}
    for name, said in {
        "key": {"EmbeddedPopulation": True},
        "no": {"EmbeddedPopulation": False, "Name": "a cohort"},
        "text": {"EmbeddedPopulation": "unknown"},
        "words": {"Name": "drawn from the Embedded Population"},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_description.json").write_text(json.dumps(said))
        found[name] = is_stand_in(tmp_path / name)
    assert found == {"key": True, "no": False, "text": False, "words": True}


def test_brains_shown_span_the_range_and_are_like_with_like():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(2), 6) == [0, 1] and spread([], 3) == []

    def person(age, sex, ventricles_ml):
        return Scan("sub-1", None, None, {"age": age, "sex": sex, "ventricles_ml": ventricles_ml})

    among = [person(50, "F", 20.0), person(70, "M", 60.0), person(71, "F", 61.0)]
    assert nearest([person(70, "F", 60.0), person(70, "F", 60.0)], among) == [2, 1]
