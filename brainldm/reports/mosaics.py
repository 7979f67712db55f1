"""Pictures of brains: one column per brain, the three middle slices one above another.

Neurological convention throughout: the left of the picture is the left of the brain. Axial slices show
anterior at the top, coronal slices superior at the top, sagittal slices anterior on the right. The window
is fixed at 0 to 1, never stretched per image, so that brains can be compared by eye. Only numpy and Pillow.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NOTE = "Left is left (neurological convention). Grey 0 to 1, the same window for every brain."
_TILE = 224  # pixels that the longest side of a volume takes, by whole magnification of small grids
_GAP = 8
_BACKGROUND, _INK, _FAINT = (0, 0, 0), (240, 240, 240), (150, 150, 150)


def mosaic(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    captions: Sequence[Sequence[str]] | None = None,
    *,
    columns: int = 8,
) -> Image.Image:
    """Picture with a titled row of brains for every (title, volumes).

    Args:
        rows: titles and volumes [D, H, W] (or [D, H, W, 1]) in RAS order, intensities in [0, 1]; values
            outside are clipped, NaN is black. A row longer than `columns` is wrapped.
        captions: for every row one line of text per brain (such as "70 y F, 40 mL"), shown above it.
        columns: the most brains side by side.

    Returns an RGB image. Grids whose longest side is below 224 voxels are magnified by a whole factor
    (x4 for 40x56x40) with bicubic interpolation.

    Raises:
        ValueError: when there is no volume at all, one is not 3D, or captions do not fit the rows.
    """
    rows = [(title, [_volume(v) for v in volumes]) for title, volumes in rows]
    if not any(volumes for _, volumes in rows):
        raise ValueError("a mosaic needs at least one volume")
    if captions is None:
        captions = [[""] * len(volumes) for _, volumes in rows]
    if [len(c) for c in captions] != [len(volumes) for _, volumes in rows]:
        raise ValueError("captions: one line of text for every volume of every row is needed")
    strips = []
    for (title, volumes), texts in zip(rows, captions, strict=True):
        columns_of_row = [_column(v, t) for v, t in zip(volumes, texts, strict=True)]
        for start in range(0, len(columns_of_row), columns):
            strips.append(_strip(title if start == 0 else "", columns_of_row[start : start + columns]))
    strips.append(_text(NOTE, 13, _FAINT))
    return _stack(strips)


def sweep_mosaic(
    name: str, values: Sequence[float | str], volumes: Sequence[np.ndarray], *, title: str | None = None
) -> Image.Image:
    """One row of brains in which the condition `name` takes `values` and everything else is fixed."""
    texts = [f"{name} {v}" if isinstance(v, str) else f"{name} {v:g}" for v in values]
    title = title or f"{name} varied, all other conditions and the noise fixed"
    return mosaic([(title, volumes)], [texts], columns=max(len(volumes), 1))


def slices(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle axial, coronal and sagittal slice of a volume [D, H, W], as [row, column] pictures."""
    volume = _volume(volume)
    x, y, z = (n // 2 for n in volume.shape)
    # Rows of a picture run downwards, so the second axis of each plane is turned over.
    return volume[:, :, z].T[::-1], volume[:, y, :].T[::-1], volume[x, :, :].T[::-1]


def _volume(array) -> np.ndarray:
    array = np.asarray(array, np.float32)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"a volume is [D, H, W] or [D, H, W, 1], got an array of shape {array.shape}")
    return array


def _column(volume: np.ndarray, caption: str) -> Image.Image:
    factor = max(1, _TILE // max(volume.shape))
    pictures = [_picture(plane, factor) for plane in slices(volume)]
    width = max(p.width for p in pictures)
    head = 20 if caption else 0
    column = Image.new("RGB", (width, head + sum(p.height for p in pictures)), _BACKGROUND)
    if caption:
        size = 14
        while size > 8 and _font(size).getlength(caption) > width:
            size -= 1
        ImageDraw.Draw(column).text((width / 2, 2), caption, fill=_INK, font=_font(size), anchor="ma")
    top = head
    for picture in pictures:
        column.paste(picture, ((width - picture.width) // 2, top))
        top += picture.height
    return column


def _picture(plane: np.ndarray, factor: int) -> Image.Image:
    grey = np.round(np.clip(np.nan_to_num(plane, nan=0.0), 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(grey))
    size = (picture.width * factor, picture.height * factor)
    return (picture.resize(size, Image.Resampling.BICUBIC) if factor > 1 else picture).convert("RGB")


def _strip(title: str, columns: list[Image.Image]) -> Image.Image:
    head = 26 if title else 0
    width = sum(c.width for c in columns) + _GAP * (len(columns) - 1)
    strip = Image.new(
        "RGB",
        (max(width, int(_font(17).getlength(title)) + 2), head + max(c.height for c in columns)),
        _BACKGROUND,
    )
    if title:
        ImageDraw.Draw(strip).text((0, 2), title, fill=_INK, font=_font(17))
    left = 0
    for column in columns:
        strip.paste(column, (left, head))
        left += column.width + _GAP
    return strip


def _text(text: str, size: int, colour: tuple[int, int, int]) -> Image.Image:
    line = Image.new("RGB", (int(_font(size).getlength(text)) + 2, size + 6), _BACKGROUND)
    ImageDraw.Draw(line).text((0, 2), text, fill=colour, font=_font(size))
    return line


def _stack(strips: list[Image.Image]) -> Image.Image:
    width = max(s.width for s in strips) + 2 * _GAP
    height = sum(s.height for s in strips) + _GAP * (len(strips) + 1)
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    top = _GAP
    for strip in strips:
        sheet.paste(strip, (_GAP, top))
        top += strip.height + _GAP
    return sheet


def _font(size: int):
    return ImageFont.load_default(size)
