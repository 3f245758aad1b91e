"""What protocols share that train the whole model: a recipe, its loss, and the classifier that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness import distributed
from harness.checkpoint import Checkpoint
from harness.device import to_device
from harness.errors import SetupError
from harness.optimizer import adamw, cosine
from harness.record import Setup
from harness.task import Batch
from harness.training import Trained, Training, forward_with_losses
from tasks.data.augmentation import Augmentation, Geometry, train_transform
from tasks.data.train_loader import Source, TrainingBatches
from tasks.protocols.native_head import check_logits

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained: AdamW, a linear warm-up, half a cosine.

    Args:
        lr: the largest learning rate, at the batch size given here.
        layer_decay: the learning rate of a layer over that of the next; None for one rate.
        warmup: steps.
        lr_min: the rate that the cosine ends at.
        clip_grad: the largest norm of the gradients; None for no limit.
        mixup: alpha of mixup; 0 for none. With `cutmix` too, each batch has one of the two.
        average: decay of a moving average of the weights, which is then evaluated; None for none.
    """

    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = None
    warmup: int = 0
    lr_min: float = 0.0
    clip_grad: float | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    average: float | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "lr"):
            if getattr(self, name) <= 0:
                raise SetupError(f"{name} is {getattr(self, name)}; expected more than 0.")
        if self.batch % 2 and (self.mixup or self.cutmix):
            raise SetupError(f"batch is {self.batch}; mixup and cutmix mix pairs of images: give an even number.")

    def within(self, geometry: Geometry) -> Recipe:
        """Return the recipe without what would make the labels of a task untrue."""
        if geometry == "crop":
            return self
        return replace(self, mixup=0.0, cutmix=0.0, augmentation=Augmentation(geometry=geometry))

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the recipe."""
        return {"optimizer": "adamw", "schedule": "linear warm-up, cosine", **asdict(self), "betas": list(self.betas)}


def train_classifier(
    module: nn.Module,
    classes: int,
    source: Source,
    recipe: Recipe,
    setup: Setup,
    *,
    seed: int,
    workers: int = 0,
    checkpoint: Checkpoint | None = None,
    description: str = "train",
) -> Trained:
    """Train a placed module, and return it in eval mode.

    Raises:
        ModelError: its output is no logits (B, classes), or the loss is not finite.
    """
    optimizer = adamw(module, recipe.lr, recipe.weight_decay, recipe.layer_decay, recipe.betas)

    def batches(first: int) -> TrainingBatches:
        return training_batches(source, recipe, setup, seed=seed, workers=workers, first=first)

    training = Training(
        module=module,
        loss=classification_loss(module, classes, recipe, setup),
        optimizer=optimizer,
        schedule=cosine(optimizer, recipe.steps, recipe.warmup, recipe.lr_min),
        batches=batches,
        steps=recipe.steps,
        setup=setup,
        seed=seed,
        clip_grad=recipe.clip_grad,
        average=recipe.average,
        checkpoint=checkpoint,
    )
    return training.run(description)


def training_batches(
    source: Source, recipe: Recipe, setup: Setup, *, seed: int, workers: int = 0, first: int = 0
) -> TrainingBatches:
    """Return the augmented batches that a recipe trains with, from one of its steps on."""
    transform = train_transform(recipe.augmentation, setup.preprocessing)
    return TrainingBatches(
        source, transform, setup, seed=seed, batch=recipe.batch, steps=recipe.steps, first=first, workers=workers
    )


def classification_loss(module: nn.Module, classes: int, recipe: Recipe, setup: Setup) -> Callable[[Batch], Tensor]:
    """Return the cross-entropy of a batch, with smoothed and mixed labels, plus the losses that the module leaves."""
    from timm.data import Mixup
    from torch.nn import functional

    forward = forward_with_losses(module)
    mixed = bool(recipe.mixup or recipe.cutmix)
    if mixed and distributed.share(recipe.batch) % 2:
        raise SetupError(
            f"batch is {recipe.batch}, of which each of {distributed.count()} ranks takes "
            f"{distributed.share(recipe.batch)}; mixup and cutmix mix pairs of images: give an even number for each."
        )
    mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)
    smoothing = 0.0 if mixed else recipe.label_smoothing  # mixed labels are smoothed already

    def loss(batch: Batch) -> Tensor:
        images, targets = to_device(batch.images, setup), batch.targets.to(setup.device)
        if mixed:
            images, targets = mix(images, targets)
        output, own = forward(images)
        logits = check_logits(getattr(output, "logits", output), len(images), classes)
        return functional.cross_entropy(logits.float(), targets, label_smoothing=smoothing) + own

    return loss
