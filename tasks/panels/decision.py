"""Panels of classification: the image as the model saw it, its class, and the classes that were predicted."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tasks.frozen import Scale
from tasks.panels.canvas import FAINT, INK, RIGHT, SMALL, TEXT, WRONG, Colour, fit, font, resized, side_by_side

WIDE, HIGH = 420, 250


def draw_decision(
    heading: str,
    picture: Any,
    title: str,
    target: int,
    best: Sequence[int],
    shares: Sequence[float] | None,
    names: Sequence[str],
    note: str = "",
) -> Any:
    """Return the panel of one image.

    Args:
        picture: a PIL image.
        title: what the picture is.
        best: the predicted classes, the best first; negative where there is none.
        shares: of each of them, in 0..1; None where they are not known.
        note: what the shares are, or why there are none.
    """
    table = Image.new("RGB", (WIDE, HIGH), (255, 255, 255))
    for place, label in enumerate(best):
        share = shares[place] if shares is not None else None
        _row(table, place, "no class" if label < 0 else describe(label, names), share, label == target)
    verdict: tuple[str, Colour] = (f"true class: {describe(target, names)}", INK)
    return side_by_side(
        heading,
        [(title, resized(picture)), (note, table)] if best else [(title, resized(picture))],
        [verdict, said(target, best)] if best else [verdict],
    )


def said(target: int, best: Sequence[int]) -> tuple[str, Colour]:
    """Return whether the prediction is right."""
    if best[0] == target:
        return "right", RIGHT
    if best[0] < 0:
        return "wrong: the scores are not finite", WRONG
    place = best.index(target) + 1 if target in best else 0
    return (f"wrong: the true class has place {place}" if place else f"wrong: not among the best {len(best)}"), WRONG


def _row(table: Any, place: int, text: str, share: float | None, right: bool) -> None:
    """One class with a bar as long as its share."""
    pen, top, colour = ImageDraw.Draw(table), 4 + place * 48, RIGHT if right else FAINT
    pen.text((0, top), fit(text, WIDE, TEXT), colour if right else INK, font(TEXT))
    if share is None or not math.isfinite(share):
        return
    length = round(min(max(share, 0.0), 1.0) * (WIDE - 70))
    pen.rectangle((0, top + 22, length, top + 34), colour)
    pen.text((length + 6, top + 20), f"{share:.1%}", INK, font(SMALL))


def to_shares(scores: Any, best: Any, scale: Scale) -> tuple[list[float] | None, str]:
    """Return the share of each of the best classes of one image, and what these shares are.

    Args:
        scores: (C,).
        best: (k,) classes, -1 for none.
        scale: what the scores are.
    """
    if scale == "scores":
        return None, "best classes, scores that are no probabilities"
    scores = scores.double().cpu()
    shares, note = scores.softmax(dim=0), "probability (softmax)"
    if scale == "votes":
        shares, note = scores.clamp(min=0) / scores[scores.isfinite()].sum(), "share of the neighbours' votes"
    return [float(shares[label]) if label >= 0 else math.nan for label in best.tolist()], note


def describe(label: int, names: Sequence[str]) -> str:
    """Return a class's name; of a WordNet id also the first word of what it stands for."""
    name = str(names[label])
    meaning = _synsets().get(name, "") if re.fullmatch(r"n\d{8}", name) else ""
    return f"{name} {meaning.partition(',')[0]}".strip()


@cache
def _synsets() -> dict[str, str]:
    """What WordNet ids stand for, from timm's list; it is found without importing timm, which takes seconds."""
    spec = importlib.util.find_spec("timm")
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0]) / "data" / "_info" / "imagenet_synset_to_lemma.txt" if places else Path()
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)
