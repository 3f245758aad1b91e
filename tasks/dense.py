"""What protocols share that train a head for every pixel or box on a backbone: recipe, schedule, and the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.errors import SetupError
from harness.optimizer import adamw, scaled
from harness.record import Setup
from harness.training import Trained, Training, seed_generators
from tasks.stochastic_depth import set_stochastic_depth

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.checkpoint import Checkpoint

Schedule = Literal["poly", "cosine", "steps"]
WARMUP_START = 1e-6  # of the learning rate
MILESTONES = (8 / 12, 11 / 12)  # of all steps
DECAY = 0.1
BETAS = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class DenseRecipe:
    """How a dense head is trained: AdamW, a linear warm-up, then a schedule.

    Args:
        steps: how many; where `epochs` is given, these decide.
        batch: images a step.
        warmup: steps; where `epochs` is given and it is below 1, a share of all steps.
        schedule: `poly` falls in a line to 0, `cosine` in half a cosine, `steps` to a tenth after 8 and after 11
            twelfths.
        drop_path: how often the last residual branch of the backbone is dropped; less so the earlier ones.
        norm_eval: batch normalisation of the backbone keeps its statistics.
    """

    steps: int = 0
    epochs: float | None = None
    batch: int = 16
    lr: float = 1e-4
    weight_decay: float = 0.05
    warmup: float = 0
    schedule: Schedule = "poly"
    drop_path: float = 0.0
    norm_eval: bool = False
    clip_grad: float | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "lr", "epochs"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise SetupError(f"{name} is {getattr(self, name)}; expected more than 0.")
        for name in ("weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SetupError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        if not 0 <= self.drop_path < 1:
            raise SetupError(f"drop_path is {self.drop_path}; expected 0 or more, and less than 1.")
        if self.epochs is None and self.steps < 1:
            raise SetupError(f"steps is {self.steps}; expected at least 1.")

    def for_images(self, count: int) -> DenseRecipe:
        """Return the recipe with the number of steps that its epochs of so many images come to."""
        steps = self.steps if self.epochs is None else max(1, round(self.epochs * count / self.batch))
        warmup = round(self.warmup * steps) if 0 < self.warmup < 1 else int(self.warmup)
        return replace(self, steps=steps, warmup=min(warmup, steps // 2))

    def rate(self, step: int) -> float:
        """Return the share of the learning rate at a step, from 0."""
        warmup = int(self.warmup)
        if step < warmup:
            return WARMUP_START + (1 - WARMUP_START) * step / warmup
        past = (step - warmup) / (self.steps - warmup)
        if self.schedule == "poly":
            return 1 - past
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * past))
        share: float = DECAY ** sum(step >= self.steps * milestone for milestone in MILESTONES)
        return share

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the recipe."""
        more: dict[str, Any] = {"betas": list(BETAS), "warmup_from": WARMUP_START}
        if self.schedule == "steps":
            more |= {"milestones": [round(share, 4) for share in MILESTONES], "decay": DECAY}
        return {"optimizer": "adamw", **asdict(self), **more}


@dataclass(kw_only=True)
class DenseProtocol:
    """A backbone, a head on its pyramid, and a training of both or of the head alone.

    Options that are not given are those of the preset.

    Args:
        frozen: the backbone is not trained.
        layers: of the backbone, joined by `+`, such as `3+5+7+11` or `layer1+layer2`; by default where it says.
        layout: of a stranger's layers, see `FrozenProtocol`.
    """

    frozen: bool = False
    layers: str = ""
    layout: str = "auto"
    steps: int | None = None
    epochs: float | None = None
    batch: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    warmup: float | None = None
    schedule: Schedule | None = None
    drop_path: float | None = None
    norm_eval: bool | None = None
    details: dict[str, Any] = field(init=False, default_factory=dict)

    untrained: ClassVar[Literal["rank", "apart", "never"]] = "apart"
    trains_on: ClassVar[tuple[str, ...]] = ("train",)
    head: ClassVar[str]
    preset_recipe: DenseRecipe = field(init=False)

    @property
    def training_batch(self) -> int:
        """Images a step."""
        return self.preset_recipe.batch if self.batch is None else self.batch

    def recipe_on(self, preset: DenseRecipe, count: int) -> DenseRecipe:
        """Return the preset's recipe with what the user chose, for so many training images."""
        names = ("epochs", "batch", "lr", "weight_decay", "warmup", "schedule", "drop_path", "norm_eval")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.steps is not None:
            given |= {"steps": self.steps, "epochs": None}
        return replace(preset, **given).for_images(count)

    def pyramid_on(
        self, model: nn.Module, recipe: DenseRecipe, setup: Setup, native: bool = False, any_size: bool = True
    ) -> Any:
        """Return the feature pyramid of a model, its new layers seeded.

        Args:
            native, any_size: see `harness.pyramid.Pyramid`.
        """
        from harness.pyramid import Pyramid

        seed_generators(setup.seed, "head")
        rate = 0.0 if self.frozen else recipe.drop_path
        dropped = set_stochastic_depth(model, rate)
        self.details["drop_path"] = f"{rate:g} in the last of {dropped} branches" if dropped else "none"
        return Pyramid(
            model, tuple(filter(None, self.layers.split("+"))), self.layout,
            size=setup.preprocessing.image_size or (224, 224), frozen=self.frozen, norm_eval=recipe.norm_eval,
            native=native, any_size=any_size,
        )  # fmt: skip


def train_dense(
    module: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Callable[[int], Iterable[Any]],
    recipe: DenseRecipe,
    setup: Setup,
    checkpoint: Checkpoint | None,
) -> Trained:
    """Train a placed module, and return it in eval mode."""
    optimizer = adamw(module, recipe.lr, recipe.weight_decay, betas=BETAS)
    training = Training(
        module=module,
        loss=loss,
        optimizer=optimizer,
        schedule=scaled(optimizer, recipe.rate),
        batches=batches,
        steps=recipe.steps,
        setup=setup,
        seed=setup.seed,
        clip_grad=recipe.clip_grad,
        checkpoint=checkpoint,
    )
    return training.run("train the head")
