"""The panels of a run on label maps: which images, where their pictures are, and which predictions are gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.album import Album
from harness.errors import DataError
from harness.images import decode
from tasks.data.ade20k import CLASSES, LabelMaps, image_file
from tasks.data.loader import spread
from tasks.panels.labels import Labels, draw_labels

GONE = "The prediction was made before an interruption, and no panel of it was saved then."


class LabelPanels:
    """Draws those of some images that an album takes; none without an album.

    Args:
        names: of the images that are evaluated, in their order.
    """

    def __init__(self, album: Album | None, annotated: LabelMaps, root: Path | None, names: Sequence[str]) -> None:
        self._album = album
        self._annotated = annotated
        self._root = root
        if album:
            album.choose([names[place] for place in spread(len(names), album.count)])

    def draw(self, name: str, annotation: Labels, found: Labels | None, note: str = "") -> None:
        """Draw an image with its annotation and its prediction, both (H, W), if the album wants it."""
        if not self._album or not self._album.wants(name):
            return
        stamp = self._annotated.stamp
        heading = f"{name}  ({stamp.name} {stamp.split}, {annotation.shape[1]} x {annotation.shape[0]})"
        classes = self._annotated.classes or [str(label) for label in range(1, CLASSES + 1)]
        self._album.save(name, draw_labels(heading, self._picture(name, annotation), annotation, found, classes, note))

    def draw_rest(self, note: str = GONE) -> None:
        """Draw the truth of those images of which there is no picture yet."""
        for name in self._album.absent() if self._album else ():
            self.draw(name, self._annotated.read(name), None, note)

    def _picture(self, name: str, annotation: Labels) -> Any:
        """The image; None where there is none, as with annotations alone."""
        split = {"validation": "val", "training": "train"}.get(self._annotated.stamp.split, "val")
        try:
            file = image_file(self._root, split, name)
            picture = decode(file.read_bytes(), "pil", file.name)
        except (DataError, OSError):
            return None
        return picture if picture.size == annotation.shape[::-1] else picture.resize(annotation.shape[::-1])
