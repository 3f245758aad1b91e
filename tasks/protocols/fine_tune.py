"""The whole model is trained on the training images, from the weights that it was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from harness.device import noise
from harness.optimizer import knows_layers
from harness.record import Setup
from harness.registry import PROTOCOLS
from tasks.data.augmentation import Augmentation
from tasks.data.train_loader import Shuffled
from tasks.head import fit_head
from tasks.protocols.native_head import NativeHead
from tasks.stochastic_depth import set_stochastic_depth
from tasks.trained import Recipe, train_classifier

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.classification import Classification

Preset = Literal["short", "mae", "ijepa_low_shot"]
# Each with epochs, epochs of warm-up, and the share of residual branches that are dropped in the last block.
#   short           this project's: small data sets on one machine, so no mixed images.
#   mae             MAE (arXiv:2111.06377), the official FINETUNE.md for ViT-B: base rate 5e-4 x 1024 / 256.
#   ijepa_low_shot  I-JEPA (arXiv:2301.08243), appendix A.2, ViT-L on 1 % of ImageNet; the warm-up is MAE's.
PRESETS: dict[str, tuple[int, int, float, Recipe]] = {
    "short": (
        30, 3, 0.1,
        Recipe(steps=1, batch=64, lr=3e-4, layer_decay=0.75, lr_min=1e-6, clip_grad=1.0, label_smoothing=0.1,
               augmentation=Augmentation(least_area=0.2, randaugment=9, erasing=0.25)),
    ),
    "mae": (
        100, 5, 0.1,
        Recipe(steps=1, batch=1024, lr=2e-3, layer_decay=0.65, lr_min=1e-6, label_smoothing=0.1, mixup=0.8, cutmix=1.0,
               augmentation=Augmentation(randaugment=9, erasing=0.25)),
    ),
    "ijepa_low_shot": (
        50, 5, 0.0,
        Recipe(steps=1, batch=512, lr=3e-5, layer_decay=0.75, label_smoothing=0.1,
               augmentation=Augmentation(randaugment=9)),
    ),
}  # fmt: skip


@PROTOCOLS.register("fine_tune")
class FineTune:
    """AdamW with layer-wise learning rates, a cosine with warm-up, timm's augmentation; then the model's own logits.

    Options that are not given are those of the preset.

    Args:
        lr: the largest learning rate of the last layer, for batches of `batch`.
        layer_decay: the learning rate of a layer over that of the next; 1 for one rate.
        drop_path: how often the last residual branch is dropped; less so the earlier ones.
        randaugment: magnitude; 0 for none.
        average: decay of a moving average of the weights, which is then evaluated; 0 for none.
    """

    untrained: Literal["rank", "apart", "never"] = "apart"
    uses_classifier: ClassVar[bool] = False
    trains_on: tuple[str, ...] = ("train",)

    def __init__(
        self,
        preset: Preset = "short",
        epochs: int | None = None,
        batch: int | None = None,
        lr: float | None = None,
        warmup_epochs: int | None = None,
        weight_decay: float | None = None,
        layer_decay: float | None = None,
        drop_path: float | None = None,
        label_smoothing: float | None = None,
        mixup: float | None = None,
        cutmix: float | None = None,
        randaugment: int | None = None,
        erasing: float | None = None,
        average: float | None = None,
    ) -> None:
        usual_epochs, usual_warmup, usual_drop, recipe = PRESETS[preset]
        self.epochs = usual_epochs if epochs is None else epochs
        self.warmup = min(usual_warmup, self.epochs // 2) if warmup_epochs is None else warmup_epochs
        self.drop_path = usual_drop if drop_path is None else drop_path
        chosen = {
            "batch": batch, "lr": lr, "weight_decay": weight_decay, "layer_decay": layer_decay, "mixup": mixup,
            "cutmix": cutmix, "label_smoothing": label_smoothing, "average": average or None,
        }  # fmt: skip
        strength = {"randaugment": randaugment, "erasing": erasing}
        self.recipe = replace(
            recipe,
            steps=self.epochs,  # of one step each, until the number of images is known
            augmentation=replace(recipe.augmentation, **_given(strength)),
            **_given(chosen),
        )
        self.details: dict[str, Any] = {"protocol": "fine-tuning of the whole model", "preset": preset}

    @property
    def training_batch(self) -> int:
        """Images a step."""
        return self.recipe.batch

    def adapt(self, model: nn.Module, task: Classification, setup: Setup) -> Callable[[Tensor], Tensor]:
        """Train the model, and return its logits."""
        source = Shuffled(task.split("train"), setup.seed)
        epoch = len(source) / self.recipe.batch
        steps, warmup = max(1, round(self.epochs * epoch)), round(self.warmup * epoch)
        recipe = replace(self.recipe, steps=steps, warmup=warmup).within(task.augmentation)
        head = fit_head(model, task.num_classes, noise(msgspec.structs.replace(setup, batch_size=2)), setup, setup.seed)
        dropped = set_stochastic_depth(model, self.drop_path)
        trained = train_classifier(
            model, task.num_classes, source, recipe, setup,
            seed=setup.seed, workers=task.workers, checkpoint=task.checkpoint, description="fine-tune",
        )  # fmt: skip
        self.details |= {
            "epochs": self.epochs,
            "recipe": recipe.details,
            "layers": "by the model's group_matcher" if knows_layers(model) else "unknown: all have one learning rate",
            "drop_path": f"{self.drop_path:g} in the last of {dropped} branches" if dropped else "none",
            "head": head,
            **trained.details,
        }
        return NativeHead().adapt(trained.module, task, setup)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that the user chose."""
    return {name: value for name, value in options.items() if value is not None}
