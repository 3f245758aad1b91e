"""Panels of detection: image, annotated objects and detections, with masks, names and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tasks.panels.canvas import (
    INK,
    WRONG,
    Colour,
    blank,
    colour_of,
    factor,
    hatch,
    resized,
    side_by_side,
    tag,
)

OPACITY = 0.4  # of masks
SURE = 0.5  # a detection with this score is drawn in any case
MOST_DRAWN = 40
DASH = 5


@dataclass(frozen=True)
class Shapes:
    """The objects or the detections of one image.

    Args:
        labels: (N,) places in the names of the categories.
        boxes: (N, 4) left, top, width, height in pixels of the image.
        masks: (H, W) each; empty where there are none.
        scores: (N,); None for annotations.
        flagged: (N,) of annotations the crowds; of detections those that are right at an overlap of one half, or
            do not count.
    """

    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    masks: Sequence[NDArray[np.bool_]] = ()
    scores: NDArray[np.float64] | None = None


def draw_objects(
    heading: str,
    picture: Any,
    size: tuple[int, int],
    truth: Shapes,
    found: Shapes | None,
    names: Sequence[str],
) -> Any:
    """Return the panel of one image.

    Args:
        picture: a PIL image; None where there is none.
        size: width and height of the image, which boxes are measured in.
        found: None leaves the detections out.
    """
    shown = resized(picture.resize(size) if picture.size != size else picture, smooth=True) if picture else None
    ground = shown or blank(size, "the image is not here")
    crowds = int(truth.flagged.sum())
    title = f"truth: {len(truth.labels) - crowds} objects" + (f", {crowds} striped as crowd" if crowds else "")
    parts = [("image", ground), (title, draw_truth(ground, factor(size), truth, names))]
    lines: list[tuple[str, Colour]] = []
    if picture and picture.size != size:
        lines.append((f"The file is {picture.width} x {picture.height}, the annotations say {size}.", WRONG))
    if found is not None:
        chosen = worth_drawing(found, len(truth.labels) - crowds)
        parts.append(
            (
                f"prediction: the best {len(chosen)} of {len(found.labels)}",
                draw_found(ground, factor(size), found, chosen, names),
            )
        )
        lines += remarks(truth, found, chosen, size)
    return side_by_side(heading, parts, lines)


def draw_truth(ground: Any, scale: float, truth: Shapes, names: Sequence[str]) -> Any:
    """Return the picture with the annotated objects on it, crowds striped."""
    picture = ground.copy()
    for row in by_area(truth):
        label = int(truth.labels[row])
        crowd = bool(truth.flagged[row])
        fill(picture, truth, row, striped=crowd)
        outline(picture, scaled(truth.boxes[row], scale, picture.size), colour_of(label), crowd)
    for row in by_area(truth):
        label = int(truth.labels[row])
        text = f"{names[label]} (crowd)" if truth.flagged[row] else names[label]
        tag(picture, above(truth.boxes[row], scale), text, colour_of(label))
    return picture


def draw_found(ground: Any, scale: float, found: Shapes, chosen: Sequence[int], names: Sequence[str]) -> Any:
    """Return the picture with the chosen detections on it, the wrong ones dashed."""
    assert found.scores is not None
    picture = ground.copy()
    for row in reversed(chosen):
        fill(picture, found, row)
        box = scaled(found.boxes[row], scale, picture.size)
        outline(picture, box, colour_of(int(found.labels[row])), dashed=not found.flagged[row])
    for row in reversed(chosen):
        label = int(found.labels[row])
        tag(picture, above(found.boxes[row], scale), f"{names[label]} {found.scores[row]:.2f}", colour_of(label))
    return picture


def worth_drawing(found: Shapes, objects: int) -> list[int]:
    """Return the rows of the best detections, best first: as many as there are objects, and all with a high score."""
    assert found.scores is not None
    order: list[int] = np.argsort(-found.scores, kind="stable").tolist()
    count = max(objects, int((found.scores >= SURE).sum()), 1)
    return order[: min(count, MOST_DRAWN)]


def remarks(truth: Shapes, found: Shapes, chosen: Sequence[int], size: tuple[int, int]) -> list[tuple[str, Colour]]:
    """Return what is to be said below the pictures."""
    right = int(found.flagged[chosen].sum())
    text = f"{right} of the {len(chosen)} best detections are right at an overlap of one half; dashed: wrong"
    lines: list[tuple[str, Colour]] = [(text if len(chosen) else "nothing was detected", INK)]
    corners = found.boxes[chosen][:, :2] + found.boxes[chosen][:, 2:]
    if outside := int(((corners > np.array(size) + 1) | (found.boxes[chosen][:, :2] < -1)).any(axis=1).sum()):
        lines.append((f"{outside} of them leave the image", WRONG))
    return lines


def by_area(shapes: Shapes) -> list[int]:
    """Return the rows, those of large boxes first, so that small ones are not covered."""
    return [int(row) for row in np.argsort(-shapes.boxes[:, 2] * shapes.boxes[:, 3], kind="stable")]


def fill(picture: Any, shapes: Shapes, row: int, striped: bool = False) -> None:
    """Lay the mask of a shape over a picture."""
    if not len(shapes.masks):
        return
    where = np.asarray(Image.fromarray(shapes.masks[row]).resize(picture.size, Image.Resampling.NEAREST))
    colour = colour_of(int(shapes.labels[row]))
    if striped:
        hatch(picture, where, (colour, (255, 255, 255)))
    else:
        picture.paste(colour, mask=Image.fromarray((where * round(255 * OPACITY)).astype(np.uint8)))


def scaled(box: NDArray[np.float64], scale: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom pixels, both ends included, of a box on the panel."""
    left, top, wide, high = (float(side) * scale for side in box)
    ends = (left, top, max(left + wide - 1, left), max(top + high - 1, top))
    # What lies far outside is as good as just outside.
    far = 2 * max(size)
    return tuple(round(min(max(end, -far), far)) for end in ends)  # type: ignore[return-value]


def above(box: NDArray[np.float64], scale: float) -> tuple[float, float]:
    """Return where the name of a box goes."""
    return float(box[0]) * scale, float(box[1]) * scale - 16


def outline(picture: Any, box: tuple[int, int, int, int], colour: Colour, dashed: bool = False) -> None:
    """Draw the two outermost pixels of a box; with a dark line inside, or dark dashes, it is seen on any ground."""
    pen, (left, top, right, bottom) = ImageDraw.Draw(picture), box
    if not dashed:
        pen.rectangle(box, outline=colour, width=2)
        if min(right - left, bottom - top) >= 8:
            pen.rectangle((left + 2, top + 2, right - 2, bottom - 2), outline=INK)
        return
    pen.rectangle(box, outline=INK, width=2)
    for start in range(left, right + 1, 2 * DASH):
        for y in (top, bottom - 1):
            pen.rectangle((start, y, min(start + DASH - 1, right), y + 1), colour)
    for start in range(top, bottom + 1, 2 * DASH):
        for x in (left, right - 1):
            pen.rectangle((x, start, x + 1, min(start + DASH - 1, bottom)), colour)
