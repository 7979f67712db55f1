"""Pages by templates: what they are given is escaped, nothing is fetched, no value is left out by mistake."""

import base64
import io
import re

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from brainldm.reports import html
from brainldm.volumes.grids import training_grid

HOSTILE = "<script>alert('x')</script>\"&"


def quality_page(**changes) -> str:
    values = {
        "grid": training_grid(4),
        "registered": False,
        "kept": 3,
        "whole_heads": 1,
        "similarities": {"median": 0.9, "lowest": 0.812},
        "overlaps": {"median": None, "lowest": None},
        "excluded": [(HOSTILE, "reading", HOSTILE)],
        "others": 0,
        "sampled": 0,
        "quarantined": 0,
        "quarantined_shown": 0,
        "high_percentile": 99.5,
        "images": {"worst": None, "sampled": None, "quarantined": None, "figures": None},
    }
    return html.render("quality.html", **values | changes)


def test_what_comes_from_the_data_is_escaped():
    page = quality_page()
    assert "<script" not in page and page.count("&lt;script&gt;") == 2
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")


def test_an_image_stands_inside_the_page_and_its_words_are_escaped():
    image = html.picture(Image.new("RGB", (7, 5), (31, 95, 168)))
    page = quality_page(images={"worst": image, "sampled": None, "quarantined": None, "figures": None})
    (uri,) = re.findall(r'<img src="data:image/png;base64,([^"]+)" width="7" height="5" alt="[^"]+">', page)
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(uri)))).tolist() == [[[31, 95, 168]] * 7] * 5
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|https?://", page)


def test_figures_are_in_the_words_of_the_page():
    page = " ".join(quality_page().split())
    assert '3 <span class="beside">of 4</span>' in page and "1 left out" in page
    assert "median; lowest 0.81" in page and '<div class="figure">none</div>' in page
    assert "2 scans are skull-stripped and 1 is a whole head." in page
    assert "40 x 56 x 40 voxels of 4 mm, rigidly registered to MNI152" in page
    assert "whole head" not in quality_page(whole_heads=0)


def test_a_long_table_is_cut_and_says_where_the_rest_is():
    page = quality_page(excluded=[(f"sub-{number}", "reading", "damaged") for number in range(201)])
    assert "sub-199<" in page and "sub-200<" not in page
    assert "The first 200 of 201; excluded.tsv has all." in page


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="excluded"):
        html.render("quality.html", grid=training_grid(4), registered=True)
