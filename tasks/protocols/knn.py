"""Nearest neighbours on frozen features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import SetupError
from harness.features import Features
from harness.metric import Evaluation, Measurement, Metric
from harness.progress import track
from harness.record import Setup
from harness.registry import PROTOCOLS
from harness.task import Batch
from tasks.frozen import FrozenProtocol, Predict, Scale
from tasks.heads.scaling import ROWS

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.classification import Classification

STEPS = 2**24  # between similarities 0 and 1
MOST_KEYS = 2**32
SPARE = 32  # candidates beyond k


@PROTOCOLS.register("knn")
@dataclass(kw_only=True)
class NearestNeighbours(FrozenProtocol):
    """Cosine similarity, the k nearest training images vote with weight exp(similarity / temperature).

    Similarities are compared in steps of 2**-24; of equal ones, the training image that comes first is nearer. An image
    is no neighbour of itself: where the evaluated split is the training split, the image of the same name is left out.

    Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4; k and temperature as in DINO (arXiv:2104.14294).

    Args:
        k: of the headline; top-1 with 10, 20, 100 and 200 neighbours stands beside it.
    """

    k: int = 20
    temperature: float = 0.07
    others: ClassVar[tuple[int, ...]] = (10, 20, 100, 200)
    scale: ClassVar[Scale] = "votes"
    _itself: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.k < 1 or not self.temperature > 0:
            raise SetupError(
                f"k={self.k}, temperature={self.temperature:g} cannot be used: expected at least one neighbour and a "
                "positive temperature."
            )

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the protocol."""
        return {
            "protocol": "nearest neighbours by cosine",
            "k": self.k,
            "temperature": self.temperature,
            "left_out_themselves": self._itself,
        }

    def fit(self, train: Features, classes: int, setup: Setup) -> Predict:
        """Keep the directions of the training features."""
        bank, targets = _directions(train.values).to(setup.device), train.targets.to(setup.device)
        return lambda features: vote(_directions(features), bank, targets, self.k, self.temperature, classes)

    def measure(self, train: Features, test: Features, task: Classification, setup: Setup) -> Evaluation:
        """Search once for the largest k, and vote with each."""
        import torch

        bank, targets = _directions(train.values).to(setup.device), train.targets.to(setup.device)
        counts = (self.k, *(other for other in self.others if other != self.k))
        meters = [task.meter() for _ in counts]
        same = task.evaluated_on in self.trains_on
        places = {name: index for index, name in enumerate(train.names)} if same else {}
        self._itself = 0
        for start in track(range(0, len(test), self.block), "search the nearest neighbours"):
            rows = slice(start, start + self.block)
            values, names = test.values[rows], tuple(test.names[rows])
            own = torch.tensor([places.get(name, -1) for name in names])
            self._itself += int((own >= 0).sum())
            queries = _directions(values.to(setup.device))
            found = nearest(queries, bank, max(counts), own.to(setup.device))
            batch = Batch(values, test.targets[rows], names)
            for count, meter in zip(counts, meters, strict=True):
                meter.update(votes(queries, *found, targets, count, self.temperature, task.num_classes), batch)
        headline, *beside = (meter.compute() for meter in meters)
        minor = [
            Measurement(Metric(f"top1_k{count}", "%", higher_is_better=True, minor=True), each.measurements[0].value)
            for count, each in zip(counts[1:], beside, strict=True)
        ]
        return Evaluation((*headline.measurements, *minor), headline.details, headline.outcomes)


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
    return votes(queries, *nearest(queries, keys, k, block=block), targets, k, temperature, classes)


def votes(
    queries: Tensor, similarities: Tensor, neighbours: Tensor, targets: Tensor, k: int, temperature: float, classes: int
) -> Tensor:
    """Return the votes (B, classes) of the first k of what `nearest` found."""
    import torch

    finite = queries.isfinite().all(dim=1, keepdim=True)
    voted, similarities = targets[neighbours[:, :k]], similarities[:, :k]
    # A neighbour that stands for none has the similarity minus infinity.
    known = similarities.isfinite()
    out = torch.zeros(len(queries), classes, dtype=torch.float64, device=queries.device)
    out.scatter_add_(1, voted, (similarities / temperature).exp())
    counts = torch.zeros_like(out).scatter_add_(1, voted, known.double())
    return torch.where(finite, out.masked_fill(counts == 0, -torch.inf), torch.nan).float()


def nearest(
    queries: Tensor, keys: Tensor, k: int, own: Tensor | None = None, block: int = 16384
) -> tuple[Tensor, Tensor]:
    """Return similarities (B, k), highest first, and indices of the k nearest keys, as an exact search finds them.

    Single precision finds the candidates, double precision ranks them. Where a key that is no candidate could still be
    nearer, by the bound on the rounding of a sum of D products, all keys are ranked in double precision.

    Args:
        own: (B,), the index of a key that does not count, -1 for none; its place is taken by minus infinity where there
            are too few keys.
    """
    import torch

    width = queries.shape[1]
    queries = queries.masked_fill(~queries.isfinite().all(dim=1, keepdim=True), 0)
    own = torch.full((len(queries),), -1, device=queries.device) if own is None else own
    # One place more for the key that does not count.
    k = min(k, len(keys))
    with torch.autocast(queries.device.type, enabled=False):
        if torch.get_float32_matmul_precision() == "highest" and len(keys) > k + SPARE:
            least, places = _candidates(queries, keys, k + 1 + SPARE, block)
            parts = zip(torch.split(queries, 64), torch.split(places, 64), strict=True)
            ranks = torch.cat([_exact(*part, keys) for part in parts])
            ranks = ranks.masked_fill(places == own[:, None], -MOST_KEYS * STEPS * 2).topk(k, dim=1).values
            bound = least.double() + (width + 8) * 2**-24 + 1 / STEPS
            doubtful = (ranks[:, -1] // MOST_KEYS).double() / STEPS <= bound
        else:
            ranks = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
            doubtful = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
        if doubtful.any():
            ranks[doubtful] = _all(queries[doubtful], keys, k, own[doubtful], block)
    indices = -ranks % MOST_KEYS
    similarities = (ranks + indices).double() / (STEPS * MOST_KEYS)
    return similarities.masked_fill(similarities < -1.5, -torch.inf), indices.clamp(max=len(keys) - 1)


def _candidates(queries: Tensor, keys: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
    """Return the least similarity (B,) and the indices (B, count) of the nearest keys in single precision."""
    import torch

    best = torch.empty(len(queries), 0, device=queries.device)
    places = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(keys), block):
        product = queries @ keys[start : start + block].T
        values, index = product.topk(min(count, product.shape[1]), dim=1)
        best, places = torch.cat([best, values], dim=1), torch.cat([places, index + start], dim=1)
        best, order = best.topk(min(count, best.shape[1]), dim=1)
        places = places.gather(1, order)
    return best[:, -1], places


def _exact(queries: Tensor, places: Tensor, keys: Tensor) -> Tensor:
    """Return ranks (B, M): similarity, in whole steps, and index share one integer, so that no two are equal."""
    products = (keys[places].double() @ queries.double()[:, :, None]).squeeze(2)
    return (products * STEPS).round().long() * MOST_KEYS - places


def _all(queries: Tensor, keys: Tensor, k: int, own: Tensor, block: int) -> Tensor:
    """Return the ranks (B, k) of the nearest keys, every product made in double precision."""
    import torch

    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(keys), block):
        some = keys[start : start + block].double()
        index = torch.arange(start, start + len(some), device=keys.device)
        ranks = ((queries.double() @ some.T) * STEPS).round().long() * MOST_KEYS - index
        best = torch.cat([best, ranks.masked_fill(index == own[:, None], -MOST_KEYS * STEPS * 2)], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    return best


def _directions(embeddings: Tensor) -> Tensor:
    """Return embeddings (N, D) at unit length; in double precision on the way, where no length overflows."""
    import torch
    from torch.nn import functional

    out = torch.empty(embeddings.shape, device=embeddings.device)
    for start in range(0, len(embeddings), ROWS):
        rows = embeddings[start : start + ROWS].double()
        out[start : start + ROWS] = functional.normalize(rows, dim=1, eps=1e-300)
    return out
