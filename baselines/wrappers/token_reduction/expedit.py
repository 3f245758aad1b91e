"""Expedit: the tokens are clustered after some blocks and reconstructed after the last, without training."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.reduction import OpenBlocks, reduced
from harness.errors import ModelError
from harness.models import AttentionContext, ModelCard
from harness.registry import WRAPPERS

ITERATIONS = 5
RADIUS = 2

CARD = ModelCard(
    title="Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning",
    paper="arXiv:2210.01035",
    source="section 3; configs of Expedit-Segmenter: ADE20K, ViT-L/16, 28x28 clusters of 40x40 tokens after 10 of 24",
    notes=(
        "clusters after 5 of 12 blocks to 0.7 of each side of the grid (expedit; expedit_s50: 0.5), as that config; "
        "temperature 0.02 and k = 20 as there: the temperature belongs to the scale of the features. Tokens are "
        "reconstructed before the final LayerNorm, where Segmenter does it on class logits. Weights add up to one as "
        "in the paper; the official code divides by their Euclidean norm, which the LayerNorm undoes"
    ),
)


def distances(tokens: Tensor, centroids: Tensor) -> Tensor:
    """Return squared Euclidean distances (B, N, M) of tokens (B, N, C) to centroids (B, M, C)."""
    squares = tokens.square().sum(-1)[:, :, None] + centroids.square().sum(-1)[:, None]
    return squares - 2 * tokens @ centroids.mT


def beyond_window(grid: tuple[int, int], cells: tuple[int, int], device: torch.device) -> Tensor:
    """Return (h * w, M), true where a centroid is more than `RADIUS` cells from the cell that a token lies in."""
    far = []
    for side, count in zip(grid, cells, strict=True):
        own = torch.arange(side, device=device) * count // side
        far.append((own[:, None] - torch.arange(count, device=device)).abs() > RADIUS)
    rows, columns = far
    return (rows[:, None, :, None] | columns[None, :, None, :]).flatten(2).flatten(0, 1)


def cluster(tokens: Tensor, grid: tuple[int, int], cells: tuple[int, int], temperature: float) -> Tensor:
    """Return centroids (B, M, C) of tokens (B, h * w, C), by soft k-means from the means of the cells of a coarse grid.

    Source: arXiv:2210.01035, section 3, token clustering layer.
    """
    far = beyond_window(grid, cells, tokens.device)
    centroids = to_tokens(F.adaptive_avg_pool2d(to_map(tokens, grid), cells))
    for _ in range(ITERATIONS):
        logits = (-temperature * distances(tokens, centroids)).masked_fill(far, -torch.inf)
        affinity = logits.softmax(dim=-1).detach()
        centroids = affinity.mT @ tokens / affinity.sum(dim=1)[..., None].clamp(min=1e-16)
    return centroids


def reconstruction(tokens: Tensor, centroids: Tensor, neighbors: int, temperature: float) -> Tensor:
    """Return the weights (B, N, M) by which each of the tokens (B, N, C) is a mean of its nearest centroids (B, M, C).

    Source: arXiv:2210.01035, section 3, token reconstruction layer.
    """
    logits = -temperature * distances(tokens, centroids)
    nearest, indices = logits.topk(min(neighbors, logits.shape[-1]), dim=-1)
    return torch.zeros_like(logits).scatter(-1, indices, nearest.softmax(dim=-1))


class ExpeditBlocks(OpenBlocks):
    """Blocks of which the later ones see clusters.

    Args:
        after: blocks that see all tokens.
        share: of each side of the grid, what the grid of clusters has.
        neighbors: clusters that a token is reconstructed from.
    """

    def __init__(self, model: nn.Module, after: int, share: float, neighbors: int, temperature: float) -> None:
        super().__init__(model, "expedit")
        self.after, self.share, self.neighbors, self.temperature = after, share, neighbors, temperature

    def forward(self, tokens: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return tokens (B, prefix + h * w, C), those of the map from the clusters that they are near to."""
        grid = context.grid if context is not None else self.grid
        weights = None
        for place, block in enumerate(self):
            if place == self.after and self.share < 1:
                tokens, weights = self._cluster(tokens, grid)
            tokens = block(tokens, None, None)
        if weights is None:
            return tokens
        whole = weights @ tokens[:, self.prefix :].float()
        return torch.cat([tokens[:, : self.prefix], whole.to(tokens.dtype)], dim=1)

    def _cluster(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the prefix with the clusters, and the weights (B, h * w, M) of the way back."""
        cells = (max(round(int(grid[0]) * self.share), 1), max(round(int(grid[1]) * self.share), 1))
        # Differences of large squares have no digits left in half precision.
        map_tokens = tokens[:, self.prefix :].float()
        centroids = cluster(map_tokens, grid, cells, self.temperature)
        weights = reconstruction(map_tokens, centroids, self.neighbors, self.temperature)
        return torch.cat([tokens[:, : self.prefix], centroids.to(tokens.dtype)], dim=1), weights


def expedit(model: Any, share: float = 0.7, neighbors: int = 20, temperature: float = 0.02) -> nn.Module:
    """Let the blocks after the first five twelfths see clusters.

    Raises:
        ModelError: the model is no isotropic ViT with softmax attention, or its blocks are not told the grid.
    """
    if getattr(model, "dynamic_img_size", False):
        raise ModelError("'expedit' needs the grid of the tokens: build the model without dynamic_img_size.")
    blocks = ExpeditBlocks(model, round(len(getattr(model, "blocks", ())) * 5 / 12), share, neighbors, temperature)
    return reduced(model, blocks)


WRAPPERS.register("expedit", CARD)(expedit)
WRAPPERS.register("expedit_s50", CARD)(partial(expedit, share=0.5))
