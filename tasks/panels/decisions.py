"""The panels of a run on classification: which images, as the model saw them, and what it made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from harness.album import Album
from harness.images import decode
from harness.metric import Outcomes
from harness.record import Setup
from tasks.data.labelled import LabelledImages
from tasks.data.loader import Batches, spread
from tasks.frozen import Scale
from tasks.panels.decision import draw_decision, to_shares

if TYPE_CHECKING:
    from torch import Tensor

SEEN = "as the model saw it"


class Decisions:
    """Draws those of the evaluated images that an album takes; none without an album.

    Args:
        setup: with the complete preprocessing; None to draw images as they are.
        scale: what the scores of the protocol are.
    """

    def __init__(self, album: Album | None, images: LabelledImages, setup: Setup | None, scale: Scale) -> None:
        self._album = album
        self._images = images
        self._setup = replace(setup, device="cpu") if setup else None
        self._scale = scale
        if album:
            evaluated = spread(len(images), setup.limit if setup else None)
            places = [evaluated[place] for place in spread(len(evaluated), album.count)]
            self._places = {images.names[place]: place for place in places}
            album.choose(list(self._places))

    def look(self, items: Sequence[str], scores: Tensor, best: Tensor) -> None:
        """Draw those of a batch's images that the album wants.

        Args:
            scores: (B, classes).
            best: (B, k) classes, -1 for none.
        """
        if not self._album:
            return
        for row, item in enumerate(items):
            if self._album.wants(item):
                shares, note = to_shares(scores[row], best[row], self._scale)
                self._draw(item, best[row].tolist(), shares, note)

    def draw_rest(self, outcomes: Outcomes | None) -> None:
        """Draw those of which there is no picture yet, from the outcomes of a record, which hold no probabilities."""
        if not self._album:
            return
        rows = {str(row[0]): [int(label) for label in row[2:]] for row in outcomes.rows} if outcomes else {}
        for item in self._album.absent():
            self._draw(item, rows.get(item, []), None, "best classes; probabilities were not kept")

    def _draw(self, item: str, best: list[int], shares: Sequence[float] | None, note: str) -> None:
        assert self._album
        place, stamp = self._places[item], self._images.stamp
        picture = self._seen(place) if self._setup else self._plain(place)
        heading = f"{item}  ({stamp.name} {stamp.split})"
        title = f"{SEEN}, {picture.width} x {picture.height}" if self._setup else "image"
        target = self._images.targets[place]
        self._album.save(item, draw_decision(heading, picture, title, target, best, shares, self._images.classes, note))

    def _seen(self, place: int) -> Any:
        """The model's input, with the mean and the standard deviation put back."""
        import torch
        from PIL import Image

        assert self._setup
        (batch,) = Batches(self._images, [place], self._setup)
        statistics = self._setup.preprocessing.mean, self._setup.preprocessing.std
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
        pixels = ((batch.images[0] * std + mean) * 255).round().clamp(0, 255).byte()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def _plain(self, place: int) -> Any:
        return decode(self._images.read(place), "pil", self._images.names[place])
