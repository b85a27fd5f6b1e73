"""A text coloured by the values of memory cells, as a page and as a picture.

Shape legend: N characters, L layers, d hidden size.
"""

import html
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from gridlstm.look.ranking import Array, Ranked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 3000
"""Characters per label in the page."""
WIDTH, LINES = 96, 2
"""Characters per line and lines per label in the picture."""
LEVELS = 10
"""Shades on each side of a cell's mean; the last one begins at two standard deviations."""

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>memory cells over text</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
pre { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; color: #111;
  direction: ltr; unicode-bidi: bidi-override; }
u { text-decoration-thickness: 2px; } h2 { font-size: 1.1rem; }
"""


def shades(values: Array) -> Array:
    """Return each value's (N,) distance from the mean as an integer, ±LEVELS at two standard deviations or more."""
    spread = values.std()
    if spread == 0:
        return np.zeros(len(values))
    result: Array = np.rint(np.clip((values - values.mean()) / (2 * spread), -1, 1) * LEVELS)
    return result


def telling(label: Array, length: int) -> slice:
    """Return the first range of ``length`` characters in the second half over which the label varies most."""
    half = len(label) // 2
    latest = max(half, len(label) - length)
    starts = [*range(half, latest, max(1, length // 4)), latest]
    start = max(starts, key=lambda i: float(label[i : i + length].std()))
    return slice(start, start + length)


def page(text: str, memories: dict[str, Array], known: Mapping[str, Array], best: Sequence[Ranked]) -> str:
    """Return a self-contained HTML page: for each label, the best cell's colours over a part of the held-out half.

    Red: above the cell's mean, blue: below it. If the label is 0 or 1, characters with label 1 are underlined.
    Characters run from left to right, even in right-to-left scripts.

    Args:
        memories: by dimension, (N, L, d).
        known: labels, (N,) each.
        best: one cell per label.
    """
    colours = []
    for level in range(1, LEVELS + 1):
        light = 100 - 45 * level / LEVELS
        colours += [
            f".p{level} {{ background: hsl(12 85% {light}%) }}",
            f".n{level} {{ background: hsl(215 85% {light}%) }}",
        ]
    parts = [_HEAD, "\n".join(colours), "</style></head><body><h1>Memory cells over text</h1>"]
    parts.append("<p>Each part shows the cell that follows a label best: chosen by its correlation r on the first ")
    parts.append("half of the text, shown on the second. Red: above the cell's mean; blue: below; underlined: ")
    parts.append("characters with the label.</p>")
    if not best:
        parts.append("<p>No label varies in both halves of this text.</p>")
    for cell in best:
        where = telling(known[cell.label], SHOWN)
        values = shades(memories[cell.dimension][:, cell.layer, cell.unit])[where]
        label = known[cell.label]
        marked = (label[where] == 1) & (label.max() <= 1)
        # Browsers drop a line end at the beginning of <pre>.
        parts.append(f"<h2>{html.escape(cell.label)}: {title(cell)}</h2><pre>\n")
        for (shade, mark), group in groupby(zip(values, marked, text[where], strict=True), key=lambda each: each[:2]):
            written = html.escape("".join(_visible(char) for _, _, char in group))
            written = f"<u>{written}</u>" if mark else written
            name = f"{'p' if shade > 0 else 'n'}{abs(int(shade))}"
            parts.append(f'<span class="{name}">{written}</span>' if shade else written)
        parts.append("</pre>")
    return "".join([*parts, "</body></html>\n"])


def _visible(char: str) -> str:
    """Return the character, or a � for a control character or one that changes the direction of following text."""
    controls = unicodedata.category(char) == "Cc" and char not in "\n\t"
    return "\ufffd" if controls or unicodedata.bidirectional(char) in _TURNING else char


_TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Unicode's classes of characters that embed or override a direction."""


def title(cell: Ranked) -> str:
    """Return a title that names the cell and its correlations."""
    where = f"{cell.dimension}, layer {cell.layer + 1}, unit {cell.unit}"
    return f"{where}: r = {cell.held_out:.2f} ({cell.chosen:.2f} where chosen)"


def picture(text: str, memories: dict[str, Array], known: Mapping[str, Array], best: Sequence[Ranked]) -> "Figure":
    """Draw ``page`` with two lines of text per label. Labelled characters are bold; those not in the font are �."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font

    drawable = get_font(findfont("monospace")).get_charmap()
    figure = Figure(figsize=(12, 0.85 * max(1, len(best))), layout="constrained")
    for axes, cell in zip(figure.subplots(max(1, len(best)), 1, squeeze=False)[:, 0], best, strict=False):
        where = telling(known[cell.label], WIDTH * LINES)
        values = shades(memories[cell.dimension][:, cell.layer, cell.unit])[where]
        field = np.zeros(WIDTH * LINES)
        field[: len(values)] = values
        axes.imshow(
            field.reshape(LINES, WIDTH),
            cmap=colormaps["coolwarm"],
            vmin=-1.4 * LEVELS,
            vmax=1.4 * LEVELS,
            aspect="auto",
        )
        for i, char in enumerate(text[where]):
            shown = {"\n": "¶", "$": r"\$"}.get(char, char if ord(char) in drawable else "\ufffd")
            weight = "bold" if known[cell.label].max() <= 1 and known[cell.label][where][i] else "normal"
            style = {"family": "monospace", "fontsize": 8, "weight": weight}
            axes.text(i % WIDTH, i // WIDTH, shown, ha="center", va="center", **style)
        axes.set_title(f"{cell.label}: {title(cell)}", fontsize=8, loc="left")
        axes.set_axis_off()
    return figure
