"""Nearest neighbours on frozen features."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from harness.device import evaluating, to_device
from harness.errors import ModelError
from harness.features import embedder
from harness.progress import track
from harness.record import Setup
from harness.registry import PROTOCOLS

if TYPE_CHECKING:
    from torch import Tensor, nn


@PROTOCOLS.register("knn")
class NearestNeighbours:
    """Cosine similarity, the k nearest training images vote with weight exp(similarity / temperature).

    Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4; k and temperature as in DINO (arXiv:2104.14294).
    """

    untrained: Literal["rank", "apart", "never"] = "apart"
    trains_on: tuple[str, ...] = ("train",)
    k = 20
    temperature = 0.07

    def adapt(self, model: nn.Module, task: Any, setup: Setup) -> Callable[[Tensor], Tensor]:
        """Embed the training images, and return the function from images to votes (B, classes)."""
        import torch
        from torch.nn import functional

        embed = embedder(model)
        keys, labels = [], []
        with evaluating(setup):
            for batch in track(task.split_batches("train", setup), "embed the training images"):
                keys.append(functional.normalize(embed(to_device(batch.images, setup)), dim=1))
                labels.append(batch.targets)
        bank, targets = torch.cat(keys), torch.cat(labels).to(setup.device)
        if not torch.isfinite(bank).all():
            raise ModelError("The embeddings of the training images are not finite: try --precision fp32.")

        def predict(images: Tensor) -> Tensor:
            queries = functional.normalize(embed(images), dim=1)
            return vote(queries, bank, targets, self.k, self.temperature, task.num_classes)

        return predict


def vote(queries: Tensor, keys: Tensor, targets: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Return the votes (B, classes) of the k nearest keys; a class without a neighbour gets minus infinity.

    Args:
        queries: (B, D), of unit length.
        keys: (N, D), of unit length.
        targets: (N,), the keys' classes.
    """
    import torch

    similarities, nearest = (queries @ keys.T).topk(min(k, len(keys)), dim=1)
    weights = (similarities / temperature).exp()
    votes = torch.zeros(len(queries), classes, device=queries.device)
    votes.scatter_add_(1, targets[nearest], weights)
    return torch.where(queries.isfinite().all(dim=1, keepdim=True), votes.masked_fill(votes == 0, -torch.inf), torch.nan)
