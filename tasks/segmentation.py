"""What protocols share that make a segmenter of a backbone: presets, training, and how images are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from harness.device import evaluating, to_device
from harness.preprocessing import normalize
from harness.record import Setup
from harness.registry import HEADS
from harness.training import seed_generators
from harness.weights import state_sha256
from tasks.data.dense_samples import Samples, Scales, SegmentationSample
from tasks.data.train_loader import SampledSteps
from tasks.dense import DenseProtocol, DenseRecipe, train_dense

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.ade20k import Ade20k

Preset = Literal["short", "mini", "160k", "dseq"]
Test = Literal["whole", "slide", "ms_whole", "ms_slide"]
Logits = Callable[["Tensor"], "Tensor"]

ADE = Scales(short=512, long=2048, crop=(512, 512))
# With how images are scored by default.
#   160k   Swin (arXiv:2103.14030), appendix A2.3, and its official UPerNet configuration of 160k steps.
#   dseq   DSeq-JEPA (github.com/SkyShunsuke/DSeq-JEPA, configs/segmentation): the same data, other rates, windows.
#   short  this project's: for one GPU.
#   mini   this project's: for the embedded scenes on a CPU.
PRESETS: dict[str, tuple[DenseRecipe, Scales, Test]] = {
    "160k": (DenseRecipe(steps=160_000, lr=6e-5, weight_decay=0.01, warmup=1500, drop_path=0.2), ADE, "whole"),
    "dseq": (DenseRecipe(steps=160_000, lr=1e-4, weight_decay=0.05, warmup=1500, drop_path=0.1), ADE, "slide"),
    "short": (DenseRecipe(steps=10_000, lr=1e-4, weight_decay=0.05, warmup=500), ADE, "whole"),
    "mini": (
        DenseRecipe(steps=120, batch=4, lr=2e-3, weight_decay=0.01, warmup=10),
        Scales(short=128, long=512, crop=(96, 96), least=0.75, most=1.25, distort=False),
        "whole",
    ),
}
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
OVERLAP = 3  # windows move by all but a third of their side


@dataclass(kw_only=True)
class SegmentationProtocol(DenseProtocol):
    """A head that gives each pixel a class, trained on crops.

    Args:
        test: `whole`: each image at once; `slide`: windows of the crop's size, whose logits are averaged where they
            overlap; `ms_`: the same at six sizes and mirrored, whose probabilities are averaged.
    """

    preset: Preset = "short"
    test: Test | None = None

    def __post_init__(self) -> None:
        self.preset_recipe, self.scales, usual = PRESETS[self.preset]
        self.test = self.test or usual
        self.preprocessing = {"image_size": self.scales.crop}
        self.details = {"protocol": "segmentation", "head": self.head, "preset": self.preset}

    def adapt(self, model: nn.Module, task: Ade20k, setup: Setup) -> Callable[[Sequence[Any]], list[Any]]:
        """Train the head, and return the function from PIL images to logits (C, h, w)."""
        crop = setup.preprocessing.image_size or self.scales.crop
        sample = SegmentationSample(task.training, task.training_file, replace(self.scales, crop=crop))
        recipe = self.recipe_on(self.preset_recipe, len(task.training.names))
        # Windows are of one size where no side of a picture is shorter.
        alike = self.test == "slide" and max(crop) <= self.scales.short
        pyramid = self.pyramid_on(model, recipe, setup, native=self.head == "linear", any_size=not alike)
        seed_generators(setup.seed, "head", self.head)
        module = HEADS.get(self.head).build(pyramid, task.training.stamp.classes).to(setup.device)
        trained = train_dense(
            module, partial(_loss, module, setup),
            lambda first: SampledSteps(
                Samples(len(task.training.names), setup.seed, sample), setup, recipe.batch,
                range(first, recipe.steps), task.workers,
            ),
            recipe, setup, task.checkpoint,
        )  # fmt: skip
        self.details |= {
            "recipe": recipe.details,
            "augmentation": {**asdict(sample.scales), "flip": 0.5},
            "loss": "cross-entropy, mean over annotated pixels",
            "test": self.test,
            "test_resize": f"short side {self.scales.short}, long side at most {self.scales.long}, bilinear, Pillow",
            "pyramid": pyramid.details,
            **trained.details,
            "trained_sha256": state_sha256(trained.module),
        }
        return partial(self._predict, trained.module, crop, setup)

    def _predict(self, module: nn.Module, crop: tuple[int, int], setup: Setup, pictures: Sequence[Any]) -> list[Any]:
        several, _, way = (self.test or "").rpartition("_")
        logits: Logits = partial(slide, module, crop) if way == "slide" else module
        score = several_sizes if several else one_size
        with evaluating(setup):
            return [score(logits, picture, self.scales, setup) for picture in pictures]


def _loss(module: Any, setup: Setup, samples: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    import torch

    images, labels = (torch.stack(part) for part in zip(*samples, strict=True))
    loss: Tensor = module.loss(
        normalize(to_device(images, setup), setup.preprocessing), labels.to(setup.device, non_blocking=True)
    )
    return loss


def one_size(logits: Logits, picture: Any, scales: Scales, setup: Setup, ratio: float = 1.0) -> Tensor:
    """Return logits (C, h, w) of a picture that is resized as the training images are before their random scale."""
    import numpy as np
    import torch

    resized = picture.resize(scales.size(picture.size, ratio), 2)  # bilinear
    image = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    return logits(normalize(to_device(image, setup), setup.preprocessing))[0].float()


def several_sizes(logits: Logits, picture: Any, scales: Scales, setup: Setup) -> Tensor:
    """Return probabilities (C, H, W) at the picture's size: the mean over six sizes, each also mirrored.

    Source: mmsegmentation's `SegTTAModel`, with the ratios of its ADE20K configurations.
    """
    from torch.nn import functional

    def mirrored(images: Tensor) -> Tensor:
        return logits(images.flip(-1)).flip(-1)

    total: Any = 0.0
    for ratio in RATIOS:
        for look in (logits, mirrored):
            found = one_size(look, picture, scales, setup, ratio)
            size = picture.size[::-1]
            found = functional.interpolate(found[None], size=size, mode="bilinear", align_corners=False)[0]
            total = total + found.softmax(dim=0)
    mean: Tensor = total / (2 * len(RATIOS))
    return mean


def slide(logits: Logits, crop: tuple[int, int], images: Tensor) -> Tensor:
    """Return logits (B, C, H, W): the mean over the windows that a pixel is in.

    Source: mmsegmentation's `slide_inference`; with a crop of 512 windows move by 341.
    """
    total: Any = None
    counts = images.new_zeros(1, 1, *images.shape[-2:])
    rows, columns = (
        starts(side, length) for side, length in zip(images.shape[-2:], crop, strict=True)
    )  # fmt: skip
    for top in rows:
        for left in columns:
            window = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
            found = logits(images[window]).float()
            if total is None:
                total = found.new_zeros(len(found), found.shape[1], *images.shape[-2:])
            total[window] += found
            counts[window] += 1
    mean: Tensor = total / counts
    return mean


def starts(side: int, length: int) -> list[int]:
    """Return where windows of a length begin along a side, the last flush with its end."""
    step = length - -(-length // OVERLAP)
    count = max(0, -(-(side - length) // step)) + 1
    return [max(0, min(index * step, side - length)) for index in range(count)]
