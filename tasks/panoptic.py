"""What protocols share that make a panoptic segmenter of a backbone: presets, training, and how segments are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from harness.device import evaluating
from harness.errors import SetupError
from harness.record import Setup
from tasks.data.panoptic_samples import OTHER, PanopticSample
from tasks.detection import DetectionProtocol
from tasks.finite import finite_heads
from tasks.metrics.panoptic import VOID, Ids, Segment

if TYPE_CHECKING:
    from torch import nn

Preset = Literal["short", "mini", "1x"]


@dataclass(frozen=True)
class Merging:
    """What becomes a segment.

    Args:
        score: that a thing exceeds.
        overlap: the largest share of a thing's mask that better ones may hold already.
        stuff_area: pixels that are left of a kind of stuff in an image, at least.

    Source: Kirillov et al. 2019 (arXiv:1901.02446), section 3.2; the numbers are detectron2's.
    """

    score: float = 0.5
    overlap: float = 0.5
    stuff_area: int = 4096

    def __post_init__(self) -> None:
        for name in ("score", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise SetupError(f"{name} is {getattr(self, name)}; expected 0 to 1.")
        if self.stuff_area < 0:
            raise SetupError(f"stuff_area is {self.stuff_area}; expected 0 or more pixels.")


def merge(
    masks: NDArray[np.bool_], things: Sequence[int], scores: Sequence[float], semantic: Ids, rule: Merging
) -> tuple[Ids, list[Segment]]:
    """Return the map (H, W) of segment ids, 0 where there is none, and the segments: things by score, then stuff.

    A pixel belongs to the best thing whose mask holds it, else to its kind of stuff.

    Args:
        masks: (N, H, W) of things.
        things: their categories.
        semantic: (H, W) category of stuff, 0 for things.
    """
    ids = np.full(semantic.shape, VOID, np.int64)
    segments: list[Segment] = []

    def add(mask: NDArray[np.bool_], category: int) -> None:
        segments.append(Segment(len(segments) + 1, category, int(mask.sum())))
        ids[mask] = len(segments)

    for index in np.argsort(-np.asarray(scores, float), kind="stable").tolist():
        free = masks[index] & (ids == VOID)
        area = int(masks[index].sum())
        if free.any() and scores[index] > rule.score and area - int(free.sum()) <= rule.overlap * area:
            add(free, things[index])
    for category in np.unique(semantic).tolist():
        left = (semantic == category) & (ids == VOID)
        if category != OTHER and left.sum() >= max(rule.stuff_area, 1):
            add(left, category)
    return ids, segments


# The embedded scenes are a twelfth of COCO's images in area, and so is the least area of stuff.
MERGING: dict[Preset, Merging] = {"1x": Merging(), "short": Merging(), "mini": Merging(stuff_area=340)}


@dataclass(kw_only=True)
class PanopticProtocol(DetectionProtocol):
    """Mask R-CNN with a semantic branch on the backbone's pyramid; recipes and sizes are those of detectors.

    Args:
        semantic_weight: of the loss of the semantic branch, beside those of Mask R-CNN.
        score, overlap, stuff_area: see `Merging`; those that are not given are the preset's.
    """

    preset: Preset = "short"
    semantic_weight: float = 0.5
    score: float | None = None
    overlap: float | None = None
    stuff_area: int | None = None

    masks: ClassVar[bool] = True
    first_label: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("score", "overlap", "stuff_area")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        self.merging = replace(MERGING[self.preset], **given)
        self.details |= {
            "protocol": "panoptic segmentation",
            "semantic_weight": self.semantic_weight,
            "merging": asdict(self.merging),
        }

    def samples(self, task: Any) -> tuple[int, Callable[[int], Any]]:
        """Return how many training images there are, and the function from a number to the sample of an image."""
        from tasks.data.coco import image_folder

        truth = task.training
        return len(truth.images), PanopticSample(truth, image_folder(task.root, task.training_path))

    def classes(self, task: Any) -> dict[str, Any]:
        """Return what the head is told of the classes and of the branches."""
        counts = {name: len(task.training.labels(name == "things")) for name in ("things", "stuff")}
        # Masks of things that are too unsure to become segments need not be made.
        return {**counts, "semantic_weight": self.semantic_weight, "box_score_thresh": self.merging.score}

    def predictor(self, module: nn.Module, task: Any, setup: Setup) -> Callable[[Sequence[Any]], list[Any]]:
        """Return the function from PIL images to a map of ids and its segments for each."""
        things, stuff = (np.array([OTHER, *task.training.labels(kind)]) for kind in (True, False))
        return partial(_predict, module, things, stuff, self.merging, setup)


def _predict(
    module: nn.Module, things: Ids, stuff: Ids, rule: Merging, setup: Setup, pictures: Sequence[Any]
) -> list[tuple[Ids, list[Segment]]]:
    from tasks.data.dense_samples import to_tensor

    with evaluating(setup), finite_heads(module):
        found = module([to_tensor(picture).to(setup.device) for picture in pictures])
    merged = []
    for one in found:
        masks = (one["masks"][:, 0] >= 0.5).cpu().numpy()
        categories, scores = things[one["labels"].cpu().numpy()].tolist(), one["scores"].tolist()
        merged.append(merge(masks, categories, scores, stuff[one["semantic"].cpu().numpy()], rule))
    return merged
