"""The table of convolutions, measured in one small case."""

import json

from benchmarks import convolutions
from brainldm.models import convolution_cpu


def test_a_table_is_written_that_the_networks_can_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convolutions, "CASES", {(1, 4, 5, 6): [(2, 3)]})
    monkeypatch.setattr(convolutions, "ENOUGH", 0.0)
    out = tmp_path / "table.json"
    convolutions.main(["--out", str(out), "--clock", "processor"])
    table = json.loads(out.read_text())
    assert table["measured_on"]["clock"] == "processor"
    for kind, ways in (("forward", convolution_cpu.FORWARD), ("kernel_gradient", convolution_cpu.KERNEL_GRADIENT)):
        (case,) = table[kind]
        assert (case["voxels"], case["inputs"], case["features"]) == (120, 2, 3)
        assert case["seconds"].keys() == ways.keys()
    assert "GFLOP/s" in capsys.readouterr().out


def test_cases_that_are_too_large_are_left_out(tmp_path):
    out = tmp_path / "table.json"
    convolutions.main(["--out", str(out), "--most-gflop", "0"])
    table = json.loads(out.read_text())
    assert table["forward"] == table["kernel_gradient"] == []
