"""CLEVR as classification: how many objects an image shows, and how far away the nearest is."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.errors import DataError
from harness.features import Pooling, prefix_tokens
from harness.metric import Evaluation, Measurement, Metric
from harness.record import Setup
from harness.registry import TASKS, Entry
from tasks.classification import Classification
from tasks.data.clevr_scenes import COUNTS, THRESHOLDS, Scene, count_class, distance_class, read_scenes
from tasks.data.labelled import LabelledImages, from_files
from tasks.data.roots import data_name, find

if TYPE_CHECKING:
    from torch import nn

FOLDERS = ("CLEVR_v1.0", "clevr", "CLEVR")
MARKS = ("scenes/CLEVR_*_scenes.json",)
EXPECTED = "images/<split>/*.png and scenes/CLEVR_<split>_scenes.json"
OFFICIAL = {"train": 70_000, "val": 15_000}
# What the best constant prediction scores; and the one that training alone would choose.
MAJORITY = Metric("majority", "%", higher_is_better=True)
TRAIN_MAJORITY = Metric("train_majority", "%", higher_is_better=True, minor=True)

Name = Literal["all", "dseq", "vtab", "vissl"]


def by_name(scenes: Sequence[Scene]) -> list[Scene]:
    """Return scenes in the order of their images' names."""
    return sorted(scenes, key=lambda scene: scene.image)


def by_hash(scenes: Sequence[Scene]) -> list[Scene]:
    """Return the training scenes in the order of TensorFlow Datasets, which VTAB's splits count in.

    Source: `core/hashing.py` and `core/shuffle.py` there: by the MD5 of the split's name and the file's.
    """
    return sorted(scenes, key=lambda scene: _md5(f"train{scene.image}"))


def _md5(text: str) -> bytes:
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


@dataclass(frozen=True)
class Preset:
    """Which of the official training scenes are trained on, and which are for choosing; all of val is evaluated.

    Args:
        order: of the official training scenes, before they are divided.
        share: of them, from the front, is for training, in per cent; the rest is for choosing.
        train: at most so many of the first are taken, and
        held_out: of the second; None for all.
        source: of the rule.
    """

    source: str
    order: Callable[[Sequence[Scene]], list[Scene]] = by_name
    share: int = 100
    train: int | None = None
    held_out: int | None = None

    def parts(self, scenes: Sequence[Scene]) -> dict[str, list[Scene]]:
        """Return the splits that official training scenes are divided into."""
        ordered = self.order(scenes)
        cut = len(ordered) * self.share // 100
        return {"train": ordered[:cut][: self.train], "held_out": ordered[cut:][: self.held_out]}

    def official(self) -> dict[str, int]:
        """Return how many scenes each split has on the whole data set."""
        cut = OFFICIAL["train"] * self.share // 100
        left = OFFICIAL["train"] - cut
        return {"train": min(cut, self.train or cut), "held_out": min(left, self.held_out or left),
                "val": OFFICIAL["val"]}  # fmt: skip


PRESETS: Mapping[Name, Preset] = MappingProxyType({
    "all": Preset("every scene that is there"),
    "vissl": Preset("VISSL: all of train, all of val"),
    "vtab": Preset(
        "VTAB (arXiv:1910.04867): train[:90%] in the order of TensorFlow Datasets' clevr 3, which is computed here "
        "from the file names by its published rule and was not compared with a copy that it built",
        by_hash, 90,
    ),
    "dseq": Preset("DSeq-JEPA: the sizes of VTAB-1k, in the order of the file names", by_name, 90, 800, 200),
})  # fmt: skip


class Clevr(Classification):
    """A question about CLEVR's scenes, on the official validation images, the whole image squeezed to the input size.

    Splits: `train`, `val`, and with some presets `held_out`, a part of the official training scenes for choosing.

    Args:
        preset: which scenes are trained on, see `PRESETS`. Where fewer are there than it takes, those that are there
            are taken; the data then has another name, and the record says how many were expected.

    Source: Johnson et al. 2017 (arXiv:1612.06890).
    """

    # A crop would cut objects off.
    preprocessing = MappingProxyType({"crop_mode": "squash", "crop_pct": 1.0})
    augmentation = "flip"
    labels: ClassVar[tuple[str, ...]]

    def __init__(
        self, data: Path | None = None, workers: int = 0, variant: Entry[Any] | None = None, preset: Name = "all"
    ) -> None:
        super().__init__(data, workers, variant)
        self.preset = preset
        self._scenes: dict[str, list[Scene]] = {}

    @staticmethod
    @abstractmethod
    def label(scene: Scene) -> int:
        """Return the class of a scene.

        Raises:
            DataError: it has none.
        """

    def read(self, split: str) -> LabelledImages:
        """Read the scenes of a split, and label their images.

        Raises:
            DataError: scenes or images are absent, do not match, or have no class.
        """
        if split not in (expected := self._expected()):
            raise DataError(f"clevr has no split {split!r} with scenes: expected one of {', '.join(expected)}.")
        home = find(FOLDERS, self.root, EXPECTED, MARKS)
        official = "val" if split == "val" else "train"
        scenes = self._official(home, official)
        if split != "val":
            scenes = PRESETS[self.preset].parts(scenes)[split]
        if not scenes:
            raise DataError(
                f"clevr's preset {self.preset!r} has no scenes in its split {split!r}, of {len(self._scenes['train'])} "
                "official training scenes. Add scenes, or take another preset."
            )
        names = [f"{official}/{scene.image}" for scene in scenes]
        targets = [self.label(scene) for scene in scenes]
        usual = "clevr" if len(scenes) == expected[split] else "clevr-part"
        return from_files(home / "images", names, targets, self.labels, data_name(home, usual), split)

    def _official(self, home: Path, split: str) -> list[Scene]:
        """An official split, read once."""
        if split not in self._scenes:
            self._scenes[split] = read_scenes(home, split)
        return self._scenes[split]

    def _expected(self) -> dict[str, int]:
        """How many scenes each split has on the whole data set."""
        return PRESETS[self.preset].official()

    def default_pooling(self, model: nn.Module) -> Pooling:
        """Return `mean` for a model with a class token, which tells less of where things are."""
        return "mean" if prefix_tokens(model) else "default"

    def stream(self, seed: int) -> Callable[[int], tuple[bytes, int, str]]:
        """Return training scenes without end, from a position to file content, class and name.

        Raises:
            SetupError: the data set was not generated here.
        """
        from tasks.data.mini_clevr import EndlessScenes

        return EndlessScenes.of(find(FOLDERS, self.root, EXPECTED, MARKS), self.label, seed)

    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Evaluate, and put beside the result what always guessing one class scores."""
        evaluation = super().evaluate(model, setup)
        from tasks.data.loader import spread

        splits = {name: self._histogram(self.split(name).targets) for name in self.protocol.trains_on}
        targets = self.split(self.evaluated_on).targets
        evaluated = [targets[index] for index in spread(len(targets), setup.limit)]
        splits[self.evaluated_on] = self._histogram(evaluated)
        guesses, best = self._guesses(splits)
        details = {**evaluation.details, "splits": self._chosen(splits), "label_histogram": splits, "guesses": best}
        return replace(evaluation, measurements=(*evaluation.measurements, *guesses), details=details)

    def _histogram(self, targets: Sequence[int]) -> dict[str, int]:
        """How many images each class has."""
        counts = Counter(targets)
        return {label: counts[target] for target, label in enumerate(self.labels)}

    def _guesses(self, splits: Mapping[str, Mapping[str, int]]) -> tuple[list[Measurement], dict[str, Any]]:
        """What always guessing the most frequent class scores on the evaluated images: theirs, and that of training."""
        evaluated = splits[self.evaluated_on]
        best = {name: max(counts, key=lambda label: counts[label]) for name, counts in splits.items()}
        scores = {name: 100 * evaluated[label] / sum(evaluated.values()) for name, label in best.items()}
        guesses = [Measurement(MAJORITY, scores[self.evaluated_on])]
        if "train" in scores:
            guesses.append(Measurement(TRAIN_MAJORITY, scores["train"]))
        return guesses, {
            f"most frequent in {name}": {"class": best[name], f"score on {self.evaluated_on}": scores[name]}
            for name in splits
        }

    def _chosen(self, splits: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        """Which scenes the preset took, and how many it takes of the whole data set."""
        return {
            "preset": self.preset,
            "rule": PRESETS[self.preset].source,
            "scenes": {name: sum(counts.values()) for name, counts in splits.items()},
            "scenes_of_the_whole_data_set": {name: self._expected()[name] for name in splits},
        }


@TASKS.register("clevr_count")
class ClevrCount(Clevr):
    """How many objects there are, 3 to 10: eight classes."""

    labels = tuple(map(str, COUNTS))
    label = staticmethod(count_class)
    probe_family = "clevr_count"


@TASKS.register("clevr_dist")
class ClevrDist(Clevr):
    """How far away the nearest object is: six classes of its depth."""

    labels = tuple(
        f"({low:g}, {high:g}]" for low, high in zip((0, *THRESHOLDS), (*THRESHOLDS, float("inf")), strict=True)
    )
    label = staticmethod(distance_class)
    probe_family = "clevr_dist"
