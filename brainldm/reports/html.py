"""Reports as one HTML file: pictures inside it, no script, nothing fetched, printable."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_STYLE = """
:root { --ink: #1c2430; --soft: #5a6472; --line: #dfe3e8; --accent: #1f5fa8; --paper: #ffffff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 64px; background: var(--paper); }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
p { margin: 8px 0; max-width: 78ch; }
.lead, figcaption, .small { color: var(--soft); }
.small, figcaption { font-size: 14px; }
.notice { border-left: 4px solid #b7791f; background: #fdf6e7; padding: 10px 16px; margin: 20px 0; }
.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; margin: 28px 0 8px; }
.card { border: 1px solid var(--line); border-top: 4px solid var(--accent); border-radius: 6px; padding: 16px 18px; }
.card h3 { font-size: 14px; font-weight: 600; margin: 0; color: var(--soft); }
.card .figure { font-size: 38px; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card .beside { font-size: 20px; font-weight: 500; color: var(--soft); }
figure { margin: 16px 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; display: block; }
.dark img { background: #000; border-radius: 4px; width: 100%; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; margin: 12px 0; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
@media (max-width: 760px) { .cards, .two { grid-template-columns: 1fr; } main { padding: 24px 16px; } }
@media print { body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  h2 { break-after: avoid; } .card, tr { break-inside: avoid; }
  .dark img { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""


def document(title: str, body: str) -> str:
    """A whole page; `title` is text, `body` HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A part of the page under its own heading (both HTML)."""
    return f"<h2>{title}</h2>\n{content}"


def card(title: str, figure: str, note: str) -> str:
    """A figure that matters, large, with a note below (all HTML). Three of them fill <div class="cards">."""
    return f'<div class="card"><h3>{title}</h3><div class="figure">{figure}</div><div class="small">{note}</div></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells, which scrolls by itself where the page is narrow."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(image: Image.Image, alternative: str, caption: str, dark: bool = True) -> str:
    """An image inside the page. `alternative` is text, `caption` HTML; `dark` stands on black, as wide as the page."""
    kind = ' class="dark"' if dark else ""
    return (
        f'<figure{kind}><img src="data:image/png;base64,{_png(image)}" width="{image.width}" '
        f'height="{image.height}" alt="{html.escape(alternative)}"><figcaption>{caption}</figcaption></figure>'
    )


def _png(image: Image.Image) -> str:
    stream = io.BytesIO()
    # Brains are grey, and grey is a third of the bytes.
    grey = image.convert("L")
    plain = grey if np.array_equal(np.asarray(grey.convert("RGB")), np.asarray(image)) else image
    plain.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
