"""The command that compares with MONAI: its figures, its table, its refusals. No time is asserted."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks import compare, report, turns
from benchmarks.cases import SIZES, WORK, Case, inputs, size_of
from brainldm.runtime.errors import BrainldmError

TORCH = all(importlib.util.find_spec(name) for name in compare.REFERENCE)
FIGURES = {"median_s", "min_s", "max_s", "times_s", "processor_s", "first_call_s"}
FIGURES |= {"peak_bytes", "flops", "bytes", "share_of_ceiling"}


def run(tmp_path, *words):
    """Exit code and the JSON of a run at the small size."""
    file = tmp_path / "figures.json"
    code = compare.main([*words, "--threads", "1", "--rounds", "2", "--json", str(file), "--record", str(tmp_path)])
    return code, json.loads(file.read_text()) if file.exists() else None


def check_row(row, libraries):
    assert list(row["libraries"]) == libraries
    for figures in row["libraries"].values():
        assert set(figures) >= FIGURES
        assert 0 < figures["min_s"] <= figures["median_s"] <= figures["max_s"]
        assert len(figures["times_s"]) >= 2 and figures["first_call_s"] > 0
        assert figures["peak_bytes"] > 2**20 and figures["flops"] > 0
        assert figures["share_of_ceiling"] == pytest.approx(
            figures["flops"] / figures["median_s"] / row["ceiling_flops_per_second"]
        )


@pytest.mark.slow
def test_our_column_alone(tmp_path, capsys):
    code, figures = run(tmp_path, "--only", "ours,encode,ddim,autoencoder_step")
    assert code == 0
    assert (figures["format"], figures["format_version"]) == ("brainldm-benchmark", 1)
    assert figures["run"]["threads"] == 1 and figures["run"]["versions"]["jax"]
    assert [row["case"] for row in figures["rows"]] == ["encode", "autoencoder_step", "ddim"]
    for row in figures["rows"]:
        check_row(row, ["brainldm"])
        assert row["relative_l2"] is None and row["libraries"]["brainldm"]["bytes"] > 0
    printed = capsys.readouterr().out
    assert printed == report.table(figures) + "\n"
    assert "ddim, 2 steps" in printed and "1x16x16x16x1" in printed
    written = (tmp_path / "cpu_small.md").read_text()
    assert written.count("\n## ") == 1 and written.count("| brainldm |") == 3


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="PyTorch, MONAI or einops is not installed: nothing to compare with")
def test_both_libraries_do_the_same_work(tmp_path):
    code, figures = run(tmp_path)
    assert code == 0
    assert [row["case"] for row in figures["rows"]] == [name for name in WORK if name != "generate"]
    for row in figures["rows"]:
        check_row(row, ["pytorch", "brainldm"])
        assert row["relative_l2"] < 1e-5
        pytorch, ours = (of["flops"] for of in row["libraries"].values())
        assert ours == pytest.approx(pytorch, rel=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "ours,dream"), "--only dream"),
        (("--only", "ours", "--threads", "0"), "--threads 0"),
        (("--only", "ours", "--rounds", "0"), "--rounds 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, said, capsys):
    assert compare.main([*words]) == 2
    assert said in capsys.readouterr().err


def test_without_the_other_library_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    assert compare.main([]) == 2
    error = capsys.readouterr().err
    assert "torch, monai, einops" in error and "brainldm[compare]" in error and "--only ours" in error


def test_figures_that_cannot_be_written_are_printed_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "measure", lambda options: figures("2026-01-01"))
    (tmp_path / "file").touch()
    assert compare.main(["--json", str(tmp_path / "file" / "figures.json")]) == 2
    printed, error = capsys.readouterr()
    assert "1 to 3" in printed and "Give another path" in error


def test_a_process_that_ends_is_no_riddle(tmp_path):
    with turns.Worker("brainldm", "cpu", "small", 1, tmp_path) as worker:
        worker._process.kill()
        with pytest.raises(BrainldmError, match="brainldm ended with -9"):
            worker.ask("describe")


class Fake:
    """A library that is asked and answers at once."""

    def __init__(self, library, asked, folder, values):
        self.library, self._asked = library, asked
        self._file = folder / f"{library}.npz"
        np.savez(self._file, **values)

    def ask(self, do, **_):
        self._asked.append((self.library, do))
        return {
            "ceiling": {"flops_per_second": 1e9},
            "first": {"seconds": 2.0, "peak_bytes": 100},
            "prepare": {"memory_since_prepared": True},
            "results": {"results": str(self._file), "flops": 1e6, "bytes": None},
            "again": {"seconds": [0.5], "processor": 1.0, "peak_bytes": 200 if self.library == "pytorch" else 50},
        }.get(do, {})


def two(folder, ours, theirs):
    asked = []
    return [Fake("pytorch", asked, folder, theirs), Fake("brainldm", asked, folder, ours)], asked


CASE = Case("decode", 1, latent=(2, 2, 2))


def test_the_libraries_take_turns_after_they_agreed(tmp_path):
    same = {"output_0": np.arange(8.0)}
    workers, asked = two(tmp_path, same, same)
    row = turns.compare(workers, CASE, 0, rounds=3)
    assert [name for name, do in asked if do == "again"] == ["pytorch", "brainldm"] * 3
    assert asked.index(("pytorch", "weights")) < asked.index(("brainldm", "prepare"))
    assert max(asked.index((name, "results")) for name in ("pytorch", "brainldm")) < asked.index(("pytorch", "again"))
    assert row["relative_l2"] == 0
    assert [of["peak_bytes"] for of in row["libraries"].values()] == [200, 100]
    assert row["libraries"]["brainldm"]["share_of_ceiling"] == pytest.approx(1e6 / 0.5 / 1e9)


def test_what_differs_is_not_timed(tmp_path):
    ones = np.ones(4, np.float32)
    for other in ({"output_0": ones * 1.01}, {"output_0": np.ones(3)}, {"loss": ones}):
        workers, asked = two(tmp_path, {"output_0": ones}, other)
        with pytest.raises(BrainldmError, match="Nothing was timed"):
            turns.compare(workers, CASE, 0, rounds=1)
        assert not [do for _, do in asked if do == "again"]


def test_gradients_count_as_one_vector(tmp_path):
    ours = {"loss": np.float32(1), "gradient/a": np.full(4, 3.0), "gradient/b": np.array([1e-9])}
    theirs = {**ours, "gradient/b": np.array([2e-9])}
    workers, _ = two(tmp_path, ours, theirs)
    assert turns.compare(workers, CASE, 0, rounds=1)["relative_l2"] < 1e-8


def figures(date):
    run = {"date": date, "code": "abc", "kind": "cpu", "size": "demo", "device": "two cores", "threads": 2}
    of = {"median_s": 2.0, "min_s": 1.0, "max_s": 3.0, "processor_s": 4.0, "first_call_s": 9.0}
    of |= {"peak_bytes": 2**30, "flops": 1e12, "bytes": None, "share_of_ceiling": 0.5}
    row = {"case": "unet", "shape": "1x2", "steps": None, "guidance": 1.0, "note": "", "relative_l2": 1e-6}
    row["ceiling_flops_per_second"] = 1e12
    row["libraries"] = {"pytorch": of, "brainldm": {**of, "median_s": 1.0}}
    return {"run": {**run, "versions": {"jax": "1"}}, "rows": [row]}


def test_rows_are_appended_under_one_heading_for_one_run(tmp_path):
    for date in ("2026-01-01", "2026-01-01", "2026-01-02", "2026-01-01"):
        path = report.record(figures(date), tmp_path)
    headings = [line for line in path.read_text().splitlines() if line.startswith("## ")]
    assert [line.split(",")[0] for line in headings] == ["## 2026-01-01", "## 2026-01-02", "## 2026-01-01"]
    rows = [line for line in path.read_text().splitlines() if line.startswith("| unet")]
    assert len(rows) == 4
    assert rows[0] == "| unet | 1x2 | PyTorch | 2 | 1 to 3 | 2.00 | 4 | 9 | 1.00 | 1 |  | 50% of 1 | 1e-06 |"


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("name", SIZES)
def test_every_case_fits_its_networks(name, device):
    for case in size_of(name, device).cases:
        assert case.work in WORK
        arrays = inputs(case)
        assert case.shape in (arrays["latent"].shape, arrays.get("image", arrays["latent"]).shape)
        for network in filter(None, (case.autoencoder, case.unet)):
            factor = 2 ** (len(network["channels"]) - 1)
            sides = case.volume if network is case.autoencoder else case.latent
            assert all(side % factor == 0 for side in sides)
            assert all(width % network["norm_num_groups"] == 0 for width in network["channels"])
        if case.work in ("ddim", "generate"):
            assert case.num_steps > 0
