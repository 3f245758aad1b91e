"""What every panel is made of: pictures under titles, text, colours of classes, stripes, a legend."""

from __future__ import annotations

import colorsys
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Flags = NDArray[np.bool_]

LEAST, MOST = 360, 640  # of the longer side of a picture on the panel; a smaller one is enlarged by a whole number
GAP, TEXT, SMALL = 10, 15, 12
INK, PAPER, FAINT = (17, 17, 17), (255, 255, 255), (110, 110, 110)
RIGHT, WRONG = (0, 128, 70), (213, 25, 32)
NOTHING = (0, 0, 0)  # where a class was predicted nowhere
STRIPES = ((232, 232, 232), (150, 150, 150))  # of what does not count
PERIOD = 8  # of stripes, in pixels of the panel
GOLDEN = 0.61803398875
TONES = ((0.75, 0.95), (0.55, 0.72), (0.95, 0.62), (0.38, 1.0), (0.9, 0.38))  # saturation and value


def colour_of(label: int) -> Colour:
    """Return the colour of a class: hues turn by the golden angle, so that neighbouring labels look nothing alike."""
    # Places where the hue comes near again, Fibonacci numbers apart, differ in tone.
    saturation, value = TONES[label // 34 % len(TONES)]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def factor(size: tuple[int, int]) -> float:
    """Return by how much a picture of a size, width and height, is enlarged on a panel; below 1 it is reduced."""
    longest = max(size)
    return MOST / longest if longest > MOST else float(-(-LEAST // longest))


def resized(picture: Any, smooth: bool = False) -> Any:
    """Return a picture at its size on the panel.

    Args:
        smooth: only where it is reduced; pixels that are enlarged stay to be seen.
    """
    scale = factor(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    way = Image.Resampling.BOX if smooth and scale < 1 else Image.Resampling.NEAREST
    return picture.resize(size, way)


def from_labels(colours: Pixels, striped: Flags) -> Any:
    """Return the picture of colours (H, W, 3) at its size on the panel, striped where `striped` (H, W) says so."""
    picture = resized(Image.fromarray(colours))
    hatch(picture, np.asarray(resized(Image.fromarray(striped))))
    return picture


def hatch(picture: Any, where: Flags, colours: tuple[Colour, Colour] = STRIPES) -> None:
    """Draw stripes on a picture where `where` (H, W), at the picture's size, says so."""
    rows, columns = np.indices(where.shape)
    dark = (rows + columns) % PERIOD >= PERIOD // 2
    for colour, stripe in zip(colours, (~dark, dark), strict=True):
        picture.paste(colour, mask=Image.fromarray(where & stripe))


def blank(size: tuple[int, int], note: str) -> Any:
    """Return a grey picture of a size, with a note on it: in the place of what is not there."""
    picture = resized(Image.new("RGB", size, (205, 205, 205)))
    ImageDraw.Draw(picture).text((6, 6), fit(note, picture.width - 12, SMALL), INK, font(SMALL))
    return picture


def side_by_side(
    heading: str,
    parts: Sequence[tuple[str, Any]],
    lines: Sequence[tuple[str, Colour]] = (),
    legend: Sequence[tuple[Colour | None, str]] = (),
) -> Any:
    """Return one picture: a heading, titled pictures in a row, lines of text, and a legend.

    Args:
        lines: each with its colour.
        legend: colours and what they stand for; None for stripes.
    """
    widths = [max(picture.width, 150) for _, picture in parts]
    width = max(sum(widths) + GAP * (len(parts) + 1), 480)
    tallest = max(picture.height for _, picture in parts)
    columns = max(1, (width - GAP) // 230)
    below = 3 * GAP + 2 * (TEXT + 6) - 4 + tallest
    rows = -(-len(legend) // columns)
    whole = Image.new("RGB", (width, below + GAP + (TEXT + 5) * (len(lines) + rows)), PAPER)
    pen = ImageDraw.Draw(whole)
    pen.text((GAP, GAP), fit(heading, width - 2 * GAP, TEXT), INK, font(TEXT))
    left = GAP
    for (title, picture), wide in zip(parts, widths, strict=True):
        pen.text((left, GAP + TEXT + 6), fit(title, wide, TEXT), FAINT, font(TEXT))
        whole.paste(picture, (left, 2 * GAP + 2 * (TEXT + 6) - 4))
        left += wide + GAP
    for number, (text, colour) in enumerate(lines):
        pen.text((GAP, below + number * (TEXT + 5)), fit(text, width - 2 * GAP, TEXT), colour, font(TEXT))
    _legend(whole, legend, columns, below + len(lines) * (TEXT + 5))
    return whole


def _legend(whole: Any, legend: Sequence[tuple[Colour | None, str]], columns: int, top: int) -> None:
    pen, wide = ImageDraw.Draw(whole), (whole.width - GAP) // columns
    for number, (colour, text) in enumerate(legend):
        x, y = GAP + number % columns * wide, top + number // columns * (TEXT + 5)
        box = (x, y + 1, x + 22, y + TEXT)
        if colour is None:
            patch = Image.new("RGB", (23, TEXT))
            hatch(patch, np.ones((TEXT, 23), bool))
            whole.paste(patch, box[:2])
        pen.rectangle(box, colour, INK)
        pen.text((x + 28, y), fit(text, wide - 36, SMALL), INK, font(SMALL))


def tag(picture: Any, place: tuple[float, float], text: str, colour: Colour) -> None:
    """Write on a picture, on a ground of a colour, as near to a place as the picture allows."""
    text = fit(text, picture.width, SMALL)
    pen, wide, high = ImageDraw.Draw(picture), round(font(SMALL).getlength(text)) + 5, SMALL + 4
    x, y = (round(max(0, min(at, side - own))) for at, side, own in zip(place, picture.size, (wide, high), strict=True))
    pen.rectangle((x, y, x + wide, y + high), colour)
    pen.text((x + 3, y + 1), text, readable_on(colour), font(SMALL))


def readable_on(colour: Colour) -> Colour:
    """Return black or white, whichever can be read on a colour."""
    return INK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 else PAPER


def fit(text: str, width: float, size: int) -> str:
    """Return a text in letters that the font has, and cut where it is wider than so many pixels."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    plain = " ".join(plain.encode("ascii", "replace").decode().split())
    if font(size).getlength(plain) <= width:
        return plain

    def cut(length: int) -> str:
        return plain[:length].rstrip(".") + "..."

    letters = bisect_right(range(1, len(plain)), width, key=lambda length: font(size).getlength(cut(length)))
    return cut(letters) if letters else ""


@cache
def font(size: int) -> Any:
    """Return Pillow's own font, which comes with it."""
    return ImageFont.load_default(size)
