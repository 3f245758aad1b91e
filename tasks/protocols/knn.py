"""Nearest neighbours on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.features import Features
from harness.record import Setup
from harness.registry import PROTOCOLS
from tasks.frozen import FrozenProtocol, Predict

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 2**24  # between similarities 0 and 1
MOST_KEYS = 2**32


@PROTOCOLS.register("knn")
@dataclass(kw_only=True)
class NearestNeighbours(FrozenProtocol):
    """Cosine similarity, the k nearest training images vote with weight exp(similarity / temperature).

    Similarities are compared in steps of 2**-24; of equal ones, the training image that comes first is nearer.

    Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4; k and temperature as in DINO (arXiv:2104.14294).
    """

    k: int = 20
    temperature: float = 0.07

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the protocol."""
        return {"protocol": "nearest neighbours by cosine", "k": self.k, "temperature": self.temperature}

    def fit(self, train: Features, classes: int, setup: Setup) -> Predict:
        """Keep the directions of the training features."""
        bank, targets = _directions(train.values).to(setup.device), train.targets.to(setup.device)
        return lambda features: vote(_directions(features), bank, targets, self.k, self.temperature, classes)


def vote(
    queries: Tensor, keys: Tensor, targets: Tensor, k: int, temperature: float, classes: int, block: int = 16384
) -> Tensor:
    """Return the votes (B, classes) of the k nearest keys; a class without a neighbour gets minus infinity.

    Args:
        queries: (B, D), of unit length; a row that is not finite gets NaN.
        keys: (N, D), of unit length.
        targets: (N,), the keys' classes.
        block: how many keys are compared at once; the result is the same for any number.
    """
    import torch

    finite = queries.isfinite().all(dim=1, keepdim=True)
    similarities, nearest = _nearest(queries.masked_fill(~finite, 0), keys, k, block)
    voted = targets[nearest]
    votes = torch.zeros(len(queries), classes, dtype=torch.float64, device=queries.device)
    votes.scatter_add_(1, voted, (similarities / temperature).exp())
    absent = torch.ones_like(votes, dtype=torch.bool).scatter_(1, voted, False)
    return torch.where(finite, votes.masked_fill(absent, -torch.inf), torch.nan).float()


def _nearest(queries: Tensor, keys: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Return similarities (B, k), highest first, and indices of the k nearest keys.

    Similarity, in whole steps, and index share one integer, so that no two are equal. The products are made in double
    precision: single precision (and less, under autocast) differs with the shape of the block by more than a step.
    """
    import torch

    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(keys), block):
        some = keys[start : start + block].double()
        index = torch.arange(start, start + len(some), device=keys.device)
        ranks = ((queries.double() @ some.T) * STEPS).round().long() * MOST_KEYS - index
        best = torch.cat([best, ranks], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    nearest = -best % MOST_KEYS
    return (best + nearest).double() / (STEPS * MOST_KEYS), nearest


def _directions(embeddings: Tensor) -> Tensor:
    """Return embeddings (B, D) at unit length; in double precision on the way, where no length overflows."""
    from torch.nn import functional

    return functional.normalize(embeddings.double(), dim=1).float()
