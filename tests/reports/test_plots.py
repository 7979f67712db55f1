"""Figures as images inside a page."""

import base64
import io

import numpy as np
from PIL import Image

from brainldm.reports.plots import BLUE, data_uri, figure_to_image, new_figure, png_bytes


def test_a_figure_becomes_the_same_image_every_time():
    def drawn() -> Image.Image:
        figure = new_figure(2, 1, dpi=50)
        figure.add_subplot().bar([0, 1], [1, 2], color=BLUE)
        return figure_to_image(figure)

    image = drawn()
    assert image.size == (100, 50) and image.mode == "RGB"
    assert (np.asarray(image) == (0x1F, 0x5F, 0xA8)).all(-1).any()
    assert png_bytes(image) == png_bytes(drawn())


def test_grey_images_are_stored_as_grey_and_read_back_the_same():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    coloured = grey.copy()
    coloured.putpixel((3, 3), (255, 0, 0))
    for image, mode in ((grey, "L"), (coloured, "RGB")):
        stored = Image.open(io.BytesIO(base64.b64decode(data_uri(image).removeprefix("data:image/png;base64,"))))
        assert stored.mode == mode and stored.convert("RGB").tobytes() == image.tobytes()
