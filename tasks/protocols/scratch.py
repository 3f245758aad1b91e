"""A small budget, the same for every architecture, from random weights: for architectures that come without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from harness import distributed
from harness.device import evaluating, to_device
from harness.errors import ModelError, SetupError
from harness.metric import Evaluation, Measurement
from harness.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from harness.record import Setup, digest
from harness.registry import PROTOCOLS
from harness.statistics import PERCENT, mean_interval
from harness.training import Trained
from tasks.data.augmentation import Augmentation
from tasks.data.loader import Batches
from tasks.data.train_loader import Shuffled, Source
from tasks.protocols.native_head import NativeHead
from tasks.trained import Recipe, train_classifier, training_batches

if TYPE_CHECKING:
    from torch import nn

    from tasks.classification import Classification

HELD_OUT = 5  # one in so many training images
FACTOR = 3.0


@dataclass(frozen=True)
class Budget:
    """What options that are not given come to."""

    steps: int
    batch: int
    lr: float
    size: int
    seeds: int


BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        "usual": Budget(steps=300, batch=32, lr=1e-3, size=64, seeds=3),
        # For a CPU: few images, so many small steps with a large rate.
        "mini": Budget(steps=120, batch=16, lr=2e-3, size=64, seeds=3),
    }
)


@PROTOCOLS.register("scratch")
class Scratch:
    """Trained from random weights with one recipe, budget, image size and order of images for all models.

    Args:
        budget: what the options that are not given come to.
        steps: of the optimiser.
        batch: images a step.
        lr: the largest learning rate; the same for all models unless `tune`.
        tune: choose for each model between a third of `lr`, `lr` and three times `lr`, by its accuracy on training
            images that are held out; as much work as three more seeds.
        size: sides of the images in pixels.
        seeds: trainings, of seeds that follow on the setup's; each has its own weights and order of images.
        fresh: draw new training images without end instead of repeating the training split, where a data set can.
    """

    untrained: Literal["rank", "apart", "never"] = "rank"

    def __init__(
        self,
        budget: Literal["usual", "mini"] = "usual",
        steps: int | None = None,
        batch: int | None = None,
        lr: float | None = None,
        tune: bool = False,
        size: int | None = None,
        seeds: int | None = None,
        fresh: bool = False,
    ) -> None:
        given: dict[str, Any] = {"steps": steps, "batch": batch, "lr": lr, "size": size, "seeds": seeds}
        chosen = replace(BUDGETS[budget], **{name: value for name, value in given.items() if value is not None})
        if chosen.seeds < 1:
            raise SetupError(f"seeds is {chosen.seeds}; expected 1 or more.")
        self.recipe = Recipe(
            steps=chosen.steps,
            batch=chosen.batch,
            lr=chosen.lr,
            warmup=chosen.steps // 10,
            clip_grad=1.0,
            augmentation=Augmentation(least_area=0.35),
        )
        self.tune = tune
        self.size = chosen.size
        self.seeds = chosen.seeds
        self.fresh = fresh
        self.trains_on: tuple[str, ...] = ("train",) if tune or not fresh else ()
        self.details: dict[str, Any] = {
            "protocol": "training from random weights with one recipe for all models",
            "budget": budget,
            "images": "drawn without end" if fresh else "the training split, in a new order each time",
        }

    @property
    def training_batch(self) -> int:
        """Images a step."""
        return self.recipe.batch

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
        # What boards hold all models to; a rate that is tuned is a model's own.
        equal = {"recipe": digest({**recipe.details, "lr": "tuned"} if self.tune else recipe.details)}
        if self.tune:
            recipe, self.details["tuning"] = tuned(recipe, task, setup, self._source)
        seeds = range(setup.seed, setup.seed + self.seeds)
        trainings: list[dict[str, Any]] = []
        evaluations: list[Evaluation] = []
        for seed in seeds:
            module = model if seed == setup.seed and not self.tune else rebuilt(task, seed)
            source = self._source(task, seed)
            fed = training_batches(source, recipe, setup, seed=seed).fingerprint()
            trained = _train(module, recipe, task, setup, seed, source, f"seed {seed}")
            evaluations.append(task.score(NativeHead().adapt(trained.module, task, setup), setup))
            trainings.append({"order": fed, **over_images(evaluations[-1]), **trained.details})
        self.details |= {
            "recipe": recipe.details,
            "seeds": list(seeds),
            "equal": {**equal, "order": digest([training["order"] for training in trainings])},
            "trainings": trainings,
            "outcomes_of_seed": setup.seed,
        }
        return replace(evaluations[0], measurements=tuple(summarize(evaluations)))

    def _source(self, task: Classification, seed: int, among: Sequence[int] | None = None) -> Source:
        return task.stream(seed) if self.fresh else Shuffled(task.split("train"), seed, among)


def tuned(
    recipe: Recipe, task: Classification, setup: Setup, source: Callable[..., Source]
) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe with the best of three learning rates, and what each of them came to.

    A fifth of the training images is held out; a stream has none of them in any case.
    """
    import numpy

    order = numpy.random.default_rng(setup.seed).permutation(len(task.split("train"))).tolist()
    held_out, rest = numpy.split(order, [-(-len(order) // HELD_OUT)])
    tried: dict[float, tuple[float, float]] = {}
    failures: dict[float, ModelError] = {}
    for rate in (recipe.lr / FACTOR, recipe.lr, recipe.lr * FACTOR):
        module, label = rebuilt(task, setup.seed), f"lr {rate:.3g}"
        some = source(task, setup.seed, rest.tolist())
        try:
            trained = _train(module, replace(recipe, lr=rate), task, setup, setup.seed, some, label)
        except ModelError as error:
            failures[rate] = error
            continue
        tried[rate] = distributed.by_first(partial(_accuracy, trained.module, task, setup, held_out.tolist()))
    if not tried:
        raise failures[recipe.lr]
    best = max(tried, key=lambda rate: (tried[rate][0], -tried[rate][1]))
    found: dict[str, Any] = {
        f"{rate:.3g}": {"accuracy": accuracy, "loss": loss} for rate, (accuracy, loss) in tried.items()
    }
    found |= {f"{rate:.3g}": {"error": str(error)} for rate, error in failures.items()}
    return replace(recipe, lr=best), {"held_out": len(held_out), "rates": found, "chosen": best}


def _train(
    module: nn.Module, recipe: Recipe, task: Classification, setup: Setup, seed: int, source: Source, label: str
) -> Trained:
    """Train one model of several, with a checkpoint of its own."""
    return train_classifier(
        module, task.num_classes, source, recipe, setup, seed=seed, workers=task.workers,
        checkpoint=task.checkpoint.part(label.replace(" ", "")) if task.checkpoint else None,
        description=f"train with {label}",
    )  # fmt: skip


def _accuracy(module: nn.Module, task: Classification, setup: Setup, indices: Sequence[int]) -> tuple[float, float]:
    """The accuracy in % and the mean cross-entropy on some training images."""
    from torch.nn import functional

    predict = NativeHead().adapt(module, task, setup)
    right, loss = 0, 0.0
    with evaluating(setup):
        for batch in Batches(task.split("train"), indices, setup, task.workers):
            logits = predict(to_device(batch.images, setup)).float().cpu()
            right += int((logits.argmax(dim=1) == batch.targets).sum())
            loss += float(functional.cross_entropy(logits, batch.targets, reduction="sum"))
    return 100 * right / len(indices), loss / len(indices)


def over_images(evaluation: Evaluation) -> dict[str, Any]:
    """What records say of one seed's headline: value, and the interval that other images would have changed it by."""
    headline = evaluation.measurements[0]
    interval = headline.interval and list(headline.interval)
    return {headline.metric.name: headline.value, "interval_over_images": interval}


def rebuilt(task: Classification, seed: int) -> nn.Module:
    """The model with the weights of another seed."""
    assert task.rebuild is not None, "only a running job can build the model again"
    return task.rebuild(seed)


def summarize(evaluations: Sequence[Evaluation]) -> list[Measurement]:
    """Return the mean of each metric over some seeds, and the 95 % interval of that mean by Student's t.

    The value of each seed stays as a sample of the mean.
    """
    means = []
    for same in zip(*(evaluation.measurements for evaluation in evaluations), strict=True):
        values = tuple(float(measurement.value) for measurement in same if measurement.value is not None)
        if not values:
            means.append(same[0])
            continue
        interval = mean_interval(values, within=PERCENT) if same[0].metric.unit == "%" else mean_interval(values)
        means.append(Measurement(same[0].metric, fmean(values), values, interval=interval))
    return means
