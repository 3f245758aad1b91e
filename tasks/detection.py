"""What protocols share that make a detector of a backbone: presets, training, and how images are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.device import evaluating
from harness.errors import DataError
from harness.record import Setup
from harness.registry import HEADS
from harness.training import seed_generators
from harness.weights import state_sha256
from tasks.data.dense_samples import DetectionSample, Samples, objects_by_image
from tasks.data.train_loader import SampledSteps
from tasks.dense import DenseProtocol, DenseRecipe, train_dense
from tasks.finite import finite_heads

if TYPE_CHECKING:
    from torch import Tensor, nn

Preset = Literal["short", "mini", "1x", "dseq"]
MOST = 100  # detections an image


@dataclass(frozen=True)
class Sizes:
    """How images are resized: the short and the long side stay within these pixels.

    Args:
        anchors: sides of the anchors, over the usual ones.
        proposals: that the first of two stages hands on.
        rois: of these, how many an image the second stage is trained on.
    """

    short: int
    long: int
    anchors: float = 1.0
    proposals: int = 1000
    rois: int = 512


# The preprocessing is torchvision's, with a mirror image half the time.
#   1x     Swin's official 12 epochs of Mask R-CNN with Swin-T (github.com/SwinTransformer/Swin-Transformer-Object-
#          Detection); without its several scales.
#   dseq   DSeq-JEPA (github.com/SkyShunsuke/DSeq-JEPA, configs/detection): 25 epochs at 1024 pixels; its neck has no
#          top-down path, and this one has.
#   short  this project's: for one GPU.
#   mini   this project's: for the embedded scenes on a CPU.
PRESETS: dict[str, tuple[DenseRecipe, Sizes]] = {
    "1x": (
        DenseRecipe(epochs=12, lr=1e-4, weight_decay=0.05, warmup=500, schedule="steps", drop_path=0.1, norm_eval=True),
        Sizes(800, 1333),
    ),
    "dseq": (
        DenseRecipe(epochs=25, lr=1e-4, weight_decay=0.1, warmup=1 / 25, schedule="cosine", drop_path=0.1,
                    norm_eval=True),
        Sizes(1024, 1024),
    ),
    "short": (
        DenseRecipe(epochs=2, lr=1e-4, weight_decay=0.05, warmup=500, schedule="cosine", norm_eval=True),
        Sizes(512, 853),
    ),
    "mini": (
        DenseRecipe(steps=100, batch=4, lr=1e-3, weight_decay=0.01, warmup=20, schedule="cosine", clip_grad=10.0),
        Sizes(128, 256, anchors=0.5, proposals=100, rois=32),
    ),
}  # fmt: skip


@dataclass(kw_only=True)
class DetectionProtocol(DenseProtocol):
    """A detector of torchvision on the backbone's pyramid."""

    preset: Preset = "short"

    masks: ClassVar[bool] = False
    first_label: ClassVar[int] = 0
    anchor: ClassVar[float]

    def __post_init__(self) -> None:
        self.preset_recipe, self.sizes = PRESETS[self.preset]
        self.preprocessing = {"image_size": (self.sizes.short, self.sizes.long)}
        self.details = {"protocol": "detection", "head": self.head, "preset": self.preset}

    def adapt(self, model: nn.Module, task: Any, setup: Setup) -> Callable[[Sequence[Any]], list[Any]]:
        """Train the detector, and return the function from PIL images to what it finds in each."""
        count, sample = self.samples(task)
        if not count:
            raise DataError(
                f"{task.training_path.name} has no image to train on: expected objects that are no crowds. Restore it."
            )
        recipe = self.recipe_on(self.preset_recipe, count)
        module = self._detector(model, self.classes(task), recipe, setup)
        trained = train_dense(
            module, partial(_loss, module, setup),
            lambda first: SampledSteps(
                Samples(count, setup.seed, sample), setup, recipe.batch, range(first, recipe.steps), task.workers
            ),
            recipe, setup, task.checkpoint,
        )  # fmt: skip
        self.details |= {
            "recipe": recipe.details,
            "sizes": asdict(self.sizes),
            "augmentation": "mirror image, half the time",
            "training_images": count,
            "detections_per_image": MOST,
            "pyramid": module.backbone.pyramid.details,
            **trained.details,
            "trained_sha256": state_sha256(trained.module),
        }
        return self.predictor(trained.module, task, setup)

    def samples(self, task: Any) -> tuple[int, Callable[[int], Any]]:
        """Return how many training images there are, and the function from a number to the sample of an image."""
        from tasks.data.coco import image_folder

        objects = objects_by_image(task.training)
        folder = image_folder(task.root, task.training_path)
        sample = DetectionSample(task.training, folder, tuple(objects), objects, self.masks, self.first_label)
        return len(objects), sample

    def classes(self, task: Any) -> dict[str, Any]:
        """Return what the head is told of the classes."""
        return {"classes": len(task.training.categories)}

    def predictor(self, module: nn.Module, task: Any, setup: Setup) -> Callable[[Sequence[Any]], list[Any]]:
        """Return the function from PIL images to what a trained detector finds in each."""
        return partial(_predict, module, self.first_label, setup)

    def _detector(self, model: nn.Module, classes: dict[str, Any], recipe: DenseRecipe, setup: Setup) -> Any:
        """The detector, placed; its new layers seeded."""
        pyramid = self.pyramid_on(model, recipe, setup)
        seed_generators(setup.seed, "head", self.head)
        short, long = setup.preprocessing.image_size or (self.sizes.short, self.sizes.long)
        limit = self._two_stages() if self.masks else {"detections_per_img": MOST}
        module = HEADS.get(self.head).build(
            pyramid, **classes, anchor=self.anchor * self.sizes.anchors, min_size=min(short, long),
            max_size=max(short, long), image_mean=setup.preprocessing.mean, image_std=setup.preprocessing.std, **limit,
        )  # fmt: skip
        return module.to(setup.device)

    def _two_stages(self) -> dict[str, int]:
        """Torchvision's options of a detector with two stages."""
        count = self.sizes.proposals
        return {
            "box_detections_per_img": MOST,
            "box_batch_size_per_image": self.sizes.rois,
            **{f"rpn_{when}_nms_top_n_test": count for when in ("pre", "post")},
            **{f"rpn_{when}_nms_top_n_train": 2 * count for when in ("pre", "post")},
        }


def _loss(module: Any, setup: Setup, samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> Tensor:
    images = [image.to(setup.device, non_blocking=True) for image, _ in samples]
    targets = [{name: tensor.to(setup.device) for name, tensor in target.items()} for _, target in samples]
    losses: dict[str, Tensor] = module(images, targets)
    total: Tensor = sum(losses.values()) + module.backbone.pyramid.own_losses
    return total


def _predict(module: nn.Module, first_label: int, setup: Setup, pictures: Sequence[Any]) -> list[Mapping[str, Any]]:
    from tasks.data.dense_samples import to_tensor

    with evaluating(setup), finite_heads(module):
        found = module([to_tensor(picture).to(setup.device) for picture in pictures])
    return [_plain(one, first_label) for one in found]


def _plain(found: Mapping[str, Tensor], first_label: int) -> Mapping[str, Any]:
    """One image's detections on the CPU, masks as run-length codes."""
    plain: dict[str, Any] = {name: found[name].float().cpu() for name in ("boxes", "scores")}
    plain["labels"] = found["labels"].cpu() - first_label
    if "masks" in found:
        import numpy as np

        from tasks.metrics.overlap import mask_codes

        masks = (found["masks"][:, 0] >= 0.5).permute(1, 2, 0).to("cpu").numpy()
        plain["masks"] = mask_codes().encode(np.asfortranarray(masks, dtype=np.uint8))
    return plain
