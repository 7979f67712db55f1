"""The code of docs/tour.md, run as a reader would."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_tour_runs_as_it_stands(repository, tmp_path):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", (repository / "docs/tour.md").read_text(), re.M | re.S))
    (tmp_path / "tour.py").write_text(code)
    done = subprocess.run([sys.executable, "tour.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "sub-0001" in done.stdout and "(3, 40, 56, 40)" in done.stdout
    assert (tmp_path / "tour/report/report.html").is_file()
    assert len(list((tmp_path / "tour/synthetic").glob("sub-*/anat/*_T1w.nii.gz"))) == 3
