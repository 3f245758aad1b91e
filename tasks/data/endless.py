"""Pictures of the embedded data set that neither of its splits has, as many as a training asks for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import DataError
from tasks.data.mini import CLASSES, GENERATOR, SPLITS, draw, encode


@dataclass(frozen=True)
class Endless:
    """Pictures without end, from a position to JPEG content, class and name; each class is as likely at each position.

    Args:
        number: of the sequence; no two share a picture, and none has one of the splits.
        seed: of the data set.
        difficulty: of the data set.
    """

    number: int
    seed: int
    difficulty: float

    @classmethod
    def of(cls, folder: Path, number: int) -> Endless:
        """Return a sequence of pictures drawn as those of a folder were.

        Raises:
            DataError: the folder was made by another generator.
        """
        card = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        if card.get("generator") != GENERATOR:
            raise DataError(f"{folder} was made by another version of the generator. Make it anew: delete the folder.")
        return cls(number, card["seed"], card["difficulty"])

    def __call__(self, position: int) -> tuple[bytes, int, str]:
        """Draw the picture at a position."""
        split = len(SPLITS) + self.number
        label = int(np.random.default_rng([self.seed, split, position]).integers(len(CLASSES)))
        picture = draw(label, split, position, seed=self.seed, difficulty=self.difficulty)
        return encode(picture), label, f"drawn {position}"
