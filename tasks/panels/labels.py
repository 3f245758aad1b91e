"""Panels of semantic segmentation: image, truth, prediction, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.panels.canvas import (
    FAINT,
    INK,
    NOTHING,
    WRONG,
    Colour,
    Flags,
    Pixels,
    blank,
    colour_of,
    from_labels,
    resized,
    side_by_side,
)

Labels = NDArray[np.uint8]

MOST_CLASSES = 24  # in a legend


def draw_labels(
    heading: str, picture: Any, truth: Labels, found: Labels | None, names: Sequence[str], note: str = ""
) -> Any:
    """Return the panel of one image.

    Args:
        picture: a PIL image of the truth's size; None where there is none.
        truth: (H, W), 1 to the number of classes; 0 and what is above do not count.
        found: (H, W) likewise; 0 is no class. None leaves the prediction out.
        names: of the classes 1 and on.
        note: why there is no prediction.
    """
    size = truth.shape[1], truth.shape[0]
    counts = (truth > 0) & (truth <= len(names))
    shown = resized(picture, smooth=True) if picture else blank(size, "the image is not here")
    parts = [("image", shown), ("truth", from_labels(painted(truth), ~counts))]
    lines = [(note, FAINT)] if note else []
    labels = truth[counts]
    if found is not None:
        parts.append(("prediction", from_labels(painted(found), np.zeros_like(counts))))
        parts.append(("wrong pixels", from_labels(differing(picture, counts & (truth != found)), ~counts)))
        right, total = int((counts & (truth == found)).sum()), int(counts.sum())
        share = f"{right / total:.1%} of {total:,} annotated pixels are right" if total else "no pixel is annotated"
        share += "; below, shares of the image: truth / prediction"
        lines.append((share, INK))
        labels = np.concatenate([labels, found.ravel()])
    return side_by_side(heading, parts, lines, legend(labels, truth, found, names))


def painted(labels: Labels) -> Pixels:
    """Return labels (H, W) in the colours (H, W, 3) of their classes; 0 in black."""
    table = np.array([NOTHING, *(colour_of(label) for label in range(255))], np.uint8)
    return table[labels]


def differing(picture: Any, wrong: Flags) -> Pixels:
    """Return a faint grey picture, with the wrong pixels in red."""
    grey = np.full(wrong.shape, 128, np.uint8) if picture is None else np.asarray(picture.convert("L"))
    out = np.repeat((grey // 2 + 127).astype(np.uint8)[..., None], 3, axis=2)
    out[wrong] = WRONG
    return out


def legend(
    labels: Labels, truth: Labels, found: Labels | None, names: Sequence[str]
) -> list[tuple[Colour | None, str]]:
    """Return colours and names of the classes that occur, the most frequent first, with their shares of the image."""
    present = np.bincount(labels[labels > 0].ravel(), minlength=1)
    order = [int(label) for label in np.argsort(-present, kind="stable") if present[label]]
    entries: list[tuple[Colour | None, str]] = []
    for label in order[:MOST_CLASSES]:
        shares = [f"{(one == label).mean():.1%}" for one in (truth, found) if one is not None]
        entries.append((colour_of(label - 1), f"{name_of(label, names)}: {' / '.join(shares)}"))
    if len(order) > MOST_CLASSES:
        entries.append((INK, f"and {len(order) - MOST_CLASSES} more"))
    if ((truth == 0) | (truth > len(names))).any():
        entries.append((None, "does not count"))
    if found is not None and (found == 0).any():
        entries.append((NOTHING, "nothing predicted"))
    return entries


def name_of(label: int, names: Sequence[str]) -> str:
    """Return the number and the first name of a class, counted from 1."""
    name = names[label - 1].partition(",")[0] if label <= len(names) else ""
    return f"{label} {name}" if name and name != str(label) else str(label)
