"""A small budget, the same for every architecture, from random weights: for architectures that come without weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import SetupError
from harness.metric import Evaluation, Measurement
from harness.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from harness.record import Setup
from harness.registry import PROTOCOLS
from harness.scaling import t_quantile
from harness.training import Trained
from tasks.data.augmentation import Augmentation
from tasks.data.train_loader import Shuffled, Source
from tasks.protocols.native_head import NativeHead
from tasks.trained import Recipe, train_classifier

if TYPE_CHECKING:
    from torch import nn

    from tasks.classification import Classification

CONFIDENCE = 0.95


@PROTOCOLS.register("scratch")
class Scratch:
    """Trained from random weights with one recipe, budget, image size and order of images for all models.

    Args:
        steps: of the optimiser.
        batch: images a step.
        lr: the largest learning rate; the same for all models, as none is tuned.
        size: sides of the images in pixels.
        seeds: trainings, of seeds that follow on the setup's; each has its own weights and order of images.
        fresh: draw new training images without end instead of repeating the training split, where a data set can.
    """

    untrained: Literal["rank", "apart", "never"] = "rank"

    def __init__(
        self, steps: int = 300, batch: int = 32, lr: float = 1e-3, size: int = 64, seeds: int = 3, fresh: bool = False
    ) -> None:
        if seeds < 1:
            raise SetupError(f"seeds is {seeds}; expected 1 or more.")
        self.recipe = Recipe(
            steps=steps,
            batch=batch,
            lr=lr,
            warmup=steps // 10,
            clip_grad=1.0,
            augmentation=Augmentation(least_area=0.35),
        )
        self.size = size
        self.seeds = seeds
        self.fresh = fresh
        self.trains_on: tuple[str, ...] = () if fresh else ("train",)
        self.details: dict[str, Any] = {
            "protocol": "training from random weights with one recipe for all models",
            "images": "drawn without end" if fresh else "the training split, in a new order each time",
        }

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """The same pixels for every model, whatever it declares."""
        return MappingProxyType(
            {
                "image_size": (self.size, self.size), "crop_pct": 1.0, "crop_mode": "center", "decoder": "pil",
                "interpolation": "bicubic", "antialias": True, "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
            }
        )  # fmt: skip

    def check(self, setup: Setup) -> None:
        """Refuse weights that are not random, and another image size than that of all."""
        if setup.weights.source != "random":
            given = setup.weights.file or setup.weights.source
            raise SetupError(
                f"scratch trains from random weights; there is no use for --weights {given}. Leave it out, or train "
                "from these weights with the protocol fine_tune."
            )
        size = setup.preprocessing.image_size
        if size not in (None, (self.size, self.size)):
            raise SetupError(
                f"scratch trains all models at {self.size} x {self.size} pixels, not {size}: give the size in the task "
                "id, such as imagenet:scratch,size=96."
            )

    def evaluate(self, model: nn.Module, task: Classification, setup: Setup) -> Evaluation:
        """Train and evaluate with each seed, and return the mean of each metric with its interval."""
        recipe = self.recipe.within(task.augmentation)
        trainings: list[Trained] = []
        evaluations: list[Evaluation] = []
        for number in range(self.seeds):
            seed = setup.seed + number
            trained = train_classifier(
                model if number == 0 else _rebuilt(task, seed), task.num_classes, self._source(task, seed), recipe,
                setup, seed=seed, workers=task.workers, description=f"train with seed {seed}",
                checkpoint=task.checkpoint.part(f"seed{seed}") if task.checkpoint else None,
            )  # fmt: skip
            trainings.append(trained)
            evaluations.append(task.score(NativeHead().adapt(trained.module, task, setup), setup))
        self.details |= {
            "recipe": recipe.details,
            "seeds": [setup.seed + number for number in range(self.seeds)],
            "trainings": [trained.details for trained in trainings],
            "outcomes_of_seed": setup.seed,
        }
        return replace(evaluations[0], measurements=tuple(summarize(evaluations)))

    def _source(self, task: Classification, seed: int) -> Source:
        return task.stream(seed) if self.fresh else Shuffled(task.split("train"), seed)


def _rebuilt(task: Classification, seed: int) -> nn.Module:
    """The model with the weights of another seed."""
    assert task.rebuild is not None, "several seeds need a job that can build the model again"
    return task.rebuild(seed)


def summarize(evaluations: Sequence[Evaluation]) -> list[Measurement]:
    """Return the mean of each metric over some seeds, and the 95 % interval of that mean by Student's t.

    The value of each seed stays as a sample of the mean.
    """
    means, bounds = [], []
    for same in zip(*(evaluation.measurements for evaluation in evaluations), strict=True):
        metric = same[0].metric
        values = tuple(float(measurement.value) for measurement in same if measurement.value is not None)
        if not values:
            means.append(same[0])
            continue
        means.append(Measurement(metric, fmean(values), values))
        if len(values) > 1:
            reach = t_quantile(CONFIDENCE, len(values) - 1) * stdev(values) / math.sqrt(len(values))
            for word, bound in (("low", fmean(values) - reach), ("high", fmean(values) + reach)):
                bounds.append(Measurement(replace(metric, name=f"{metric.name}_{word}", minor=True), bound))
    return means + bounds
