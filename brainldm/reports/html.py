"""Reports as one HTML file, by the templates beside this file: images inside it, nothing fetched, printable; no script
but that of the viewer (viewer.py), which runs when its button is pressed.

What a template is given is text and is escaped; only templates hold markup.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from brainldm.reports import plots
from brainldm.runtime.format import (
    format_bytes,
    format_count,
    format_interval,
    format_names,
    format_number,
    format_shape,
)

_FILTERS = {
    "number": format_number,
    "bytes": format_bytes,
    "count": format_count,
    "names": format_names,
    "shape": format_shape,
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a page holds it: a data: URI, and its size in pixels."""

    uri: str
    width: int
    height: int


def picture(image: Image.Image) -> Picture:
    """`image` for a template, where the macro `picture` shows it."""
    return Picture(plots.data_uri(image), image.width, image.height)


def render(template: str, **values: Any) -> str:
    """The page that the file templates/`template` makes of `values`.

    A name that the template uses and `values` lacks is an error (jinja2.UndefinedError), never an empty place.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("brainldm.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    environment.filters["interval"] = lambda found: format_interval(found["value"], found["low"], found["high"])
    environment.globals |= {"accent": plots.BLUE, "warning": plots.AMBER}
    return environment
