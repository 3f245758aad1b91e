"""Linear heads trained by published recipes, several settings at once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from harness.errors import SetupError
from harness.progress import track
from harness.record import Setup

if TYPE_CHECKING:
    from torch import Tensor


class Setting(NamedTuple):
    """What is swept: the learning rate for a batch of 256, and the weight decay."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a linear head is trained on frozen features.

    Biases and the normalisation's parameters have no weight decay.

    Args:
        learning_rates: for a batch of 256; of another size in proportion.
        schedule: `cosine` to `last_rate`, or the epochs after which the rate falls to a tenth.
        last_rate: for a batch of 256, as the learning rates.
        normalize: batch normalisation with scale and shift before the linear layer.
        note: where the recipe departs from its source.
    """

    source: str
    optimizer: Literal["sgd", "lars", "adamw"]
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    batch: int
    epochs: int
    schedule: tuple[int, ...] | Literal["cosine"]
    last_rate: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    normalize: bool = True
    note: str = ""

    @property
    def settings(self) -> list[Setting]:
        """Every learning rate with every weight decay."""
        return [Setting(*each) for each in product(self.learning_rates, self.weight_decays)]

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the recipe."""
        return {"recipe": asdict(self)}

    def rate(self, highest: Tensor, done: float) -> Tensor:
        """Return the learning rates, for a batch of 256, after some epochs."""
        if self.schedule == "cosine":
            return self.last_rate + (highest - self.last_rate) * (1 + math.cos(math.pi * done / self.epochs)) / 2
        return highest * 0.1 ** sum(done >= epoch for epoch in self.schedule)


RECIPES: dict[tuple[str, str], Recipe] = {
    ("dseq", ""): Recipe(
        source="DSeq-JEPA, official code: linear probe", optimizer="sgd", learning_rates=(0.01,),
        weight_decays=(5e-4,), batch=256, epochs=28, schedule=(8, 16, 24), nesterov=True,
        note="momentum 0.9 with Nesterov is configured and, by mistake, not passed on: momentum=0 is what the code ran",
    ),
    ("dseq", "clevr"): Recipe(
        source="DSeq-JEPA, official code: Clevr heads", optimizer="adamw", learning_rates=(1e-3,),
        weight_decays=(0.05,), batch=256, epochs=100, schedule="cosine", normalize=False,
    ),
    ("vissl", ""): Recipe(
        source="I-JEPA (arXiv:2301.08243), appendix A.2", optimizer="lars", learning_rates=(0.05, 0.01, 0.001),
        weight_decays=(5e-4, 0.0), batch=16384, epochs=50, schedule=(15, 30, 45),
        note="learning rates are taken for a batch of 256, as VISSL does; fewer images than a batch are one batch",
    ),
    ("vissl", "clevr_count"): Recipe(
        source="VISSL: Clevr/Count", optimizer="sgd", learning_rates=(0.01,), weight_decays=(5e-4,), batch=256,
        epochs=50, schedule="cosine", last_rate=1e-4, nesterov=True,
    ),
    ("vissl", "clevr_dist"): Recipe(
        source="VISSL: Clevr/Dist", optimizer="sgd", learning_rates=(0.01,), weight_decays=(5e-4,), batch=256,
        epochs=100, schedule="cosine", last_rate=1e-4, nesterov=True,
    ),
}  # fmt: skip


def recipe(preset: str, family: str, momentum: float | None = None) -> Recipe:
    """Return the recipe of a preset for a family of tasks: that of `clevr_count`, else `clevr`, else of all.

    Raises:
        SetupError: a momentum where the recipe has none.
    """
    names = (family, family.partition("_")[0], "")
    found = next(RECIPES[preset, name] for name in names if (preset, name) in RECIPES)
    if momentum is None:
        return found
    if found.optimizer == "adamw":
        raise SetupError(f"momentum={momentum:g} cannot be used: {found.source} trains with AdamW. Leave it out.")
    return replace(found, momentum=momentum, nesterov=found.nesterov and momentum > 0)


@dataclass
class Heads:
    """S linear heads, each behind a batch normalisation of its own or behind none.

    Inputs are the same for all, so that the mean and variance of a batch are, too; scale and shift are each head's.
    """

    weights: list[Tensor]  # (S, D, C), (S, 1, C), and where there is a normalisation (S, 1, D) twice
    mean: Tensor
    variance: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return scores (S, B, C) of features (B, D)."""
        if len(self.weights) == 2:
            return self.scores(features)
        return self.scores(((features - self.mean) / (self.variance + 1e-5).sqrt()).float())

    def scores(self, inputs: Tensor) -> Tensor:
        """Return scores (S, B, C) of inputs (B, D) that are normalised where there is a normalisation."""
        import torch

        many = inputs.expand(len(self.weights[0]), -1, -1)
        if len(self.weights) > 2:
            many = many * self.weights[2] + self.weights[3]
        return torch.baddbmm(self.weights[1], many, self.weights[0])


@dataclass
class _Steps:
    """The optimizer of several heads, each with its own learning rate and weight decay.

    SGD and AdamW (arXiv:1711.05101) are torch's; LARS (arXiv:1708.03888) has the trust coefficient 0.001 and leaves
    biases and the normalisation's parameters to SGD.
    """

    plan: Recipe
    decay: Tensor  # (S, 1, 1)
    state: list[list[Tensor]]
    count: int = 0

    def __call__(self, weights: list[Tensor], gradients: tuple[Tensor, ...], rate: Tensor) -> None:
        """Change the weights in place, by rates (S, 1, 1)."""
        self.count += 1
        step = self._adamw if self.plan.optimizer == "adamw" else self._sgd
        for place, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            # The first are the linear layer's weights, the others biases and the normalisation's parameters.
            step(weight, gradient, self.state[place], rate, place == 0)

    def _sgd(self, weight: Tensor, gradient: Tensor, state: list[Tensor], rate: Tensor, layer: bool) -> None:
        if layer:
            gradient = gradient + self.decay * weight
        if self.plan.optimizer == "lars" and layer:
            sizes = [each.flatten(1).norm(dim=1)[:, None, None] for each in (weight, gradient)]
            gradient = gradient * 0.001 * sizes[0] / sizes[1].clamp(min=1e-12)
        state[0].mul_(self.plan.momentum).add_(gradient)
        weight -= rate * (gradient + self.plan.momentum * state[0] if self.plan.nesterov else state[0])

    def _adamw(self, weight: Tensor, gradient: Tensor, state: list[Tensor], rate: Tensor, layer: bool) -> None:
        if layer:
            weight *= 1 - rate * self.decay
        state[0].lerp_(gradient, 0.1)
        state[1].lerp_(gradient.square(), 0.001)
        first, second = (each / (1 - beta**self.count) for each, beta in zip(state, (0.9, 0.999), strict=True))
        weight -= rate * first / (second.sqrt() + 1e-8)


def train_heads(
    features: Tensor, targets: Tensor, classes: int, plan: Recipe, settings: list[Setting], setup: Setup
) -> Heads:
    """Return one trained head for each setting; all see the same batches, and begin alike.

    Args:
        features: (N, D) in single precision, on any device.
        targets: (N,) class indices below `classes`, on the setup's device.
    """
    import torch

    generator = torch.Generator().manual_seed(setup.seed)
    heads = _heads(features.shape[1], classes, len(settings), plan.normalize, generator, setup.device)
    rates, decay = torch.tensor(settings, device=setup.device).T[:, :, None, None]
    steps = _Steps(plan, decay, [[torch.zeros_like(each), torch.zeros_like(each)] for each in heads.weights])
    batch = min(plan.batch, len(features))
    for epoch in track(range(plan.epochs), f"train {len(settings)} linear heads"):
        order = torch.randperm(len(features), generator=generator)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            rows = features[chosen.to(features.device)].to(setup.device)
            gradients = _gradients(heads, _normalized(heads, rows), targets[chosen.to(targets.device)])
            # A cosine falls with every batch, steps with the epochs.
            steps(heads.weights, gradients, plan.rate(rates, epoch + start / len(order)) * batch / 256)
    return heads


def _heads(width: int, classes: int, count: int, normalize: bool, generator: Any, device: str) -> Heads:
    """Return heads as torch initialises a linear layer and a batch normalisation."""
    import torch

    bound = 1 / math.sqrt(width)
    weights = [
        torch.empty(1, rows, classes).uniform_(-bound, bound, generator=generator).repeat(count, 1, 1)
        for rows in (width, 1)
    ]
    if normalize:
        weights += [torch.ones(count, 1, width), torch.zeros(count, 1, width)]
    mean = torch.zeros(width, dtype=torch.float64, device=device)
    return Heads([each.to(device) for each in weights], mean, torch.ones_like(mean))


def _normalized(heads: Heads, rows: Tensor) -> Tensor:
    """Return a batch (B, D) normalised by its own statistics, and follow these for the evaluation."""
    if len(heads.weights) == 2:
        return rows
    # In double precision, where no square overflows.
    rows = rows.double()
    mean, variance, count = rows.mean(dim=0), rows.var(dim=0, correction=0), len(rows)
    heads.mean.lerp_(mean, 0.1)
    heads.variance.lerp_(variance * count / max(count - 1, 1), 0.1)
    return ((rows - mean) / (variance + 1e-5).sqrt()).float()


def _gradients(heads: Heads, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of each head's mean cross-entropy."""
    import torch
    from torch.nn import functional

    weights = [each.requires_grad_() for each in heads.weights]
    with torch.enable_grad():
        scores = heads.scores(inputs)
        loss = functional.cross_entropy(scores.flatten(0, 1), targets.repeat(len(scores)), reduction="sum")
        gradients = torch.autograd.grad(loss / len(inputs), weights)
    for each in weights:
        each.requires_grad_(False)
    return gradients
