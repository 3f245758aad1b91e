"""Token merging (ToMe): in every block the r most similar pairs of tokens become one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.reduction import OpenBlocks, reduced, take
from harness.models import AttentionContext, ModelCard
from harness.registry import WRAPPERS

CARD = ModelCard(
    title="Token Merging: Your ViT But Faster",
    paper="arXiv:2210.09461",
    source="section 3; README of facebookresearch/ToMe for r = 13 at DeiT-S",
    notes=(
        "r pairs a block (tome: 13, tome_r4, tome_r8, tome_r16), at most half of the tokens; proportional attention. "
        "After the last block each token returns to all places that it stands for, so that pooling weighs it by its "
        "size and maps exist; the official code leaves the merged tokens. Registers are protected as the class token is"
    ),
)


def match(metric: Tensor, r: int, prefix: int) -> Tensor:
    """Return for each token (B, N) its index after merging the r most similar pairs.

    Tokens alternate between two sets. Each of the first set has one candidate in the second, that of the highest
    cosine; the r best of these pairs are merged. Kept tokens of the first set come before the second set, except that
    the prefix stays in front.

    Args:
        metric: (B, N, D), what is compared.
        r: at most half of the tokens without the prefix.
        prefix: tokens at the start that are never merged.

    Source: arXiv:2210.09461, section 3, bipartite soft matching.
    """
    batch, count, _ = metric.shape
    metric = F.normalize(metric, dim=-1)
    scores = metric[:, ::2] @ metric[:, 1::2].mT
    first, second = (prefix + 1) // 2, prefix // 2
    scores[:, :first] = -torch.inf
    scores[..., :second] = -torch.inf
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    merged, kept = order[:, :r], order[:, r:]
    if prefix:
        kept = kept.sort(dim=-1).values
    in_kept = torch.arange(kept.shape[1], device=metric.device)
    in_kept = torch.where(in_kept < first, 2 * in_kept, second + in_kept)
    in_second = torch.arange(count // 2, device=metric.device)
    in_second = torch.where(in_second < second, 2 * in_second + 1, kept.shape[1] + in_second)
    in_first = torch.zeros_like(order).scatter(1, kept, in_kept.expand_as(kept))
    in_first = in_first.scatter(1, merged, in_second[partner.gather(1, merged)])
    both = in_first.new_zeros(batch, count)
    both[:, ::2], both[:, 1::2] = in_first, in_second
    return both


class Merged:
    """The state of merging: of which token each original one is part, and how many each token stands for.

    Args:
        source: (B, N), from the original tokens to the current ones.
        sizes: (B, K) of the current tokens, in single precision; None before the first merge.
    """

    def __init__(self, tokens: Tensor, r: int, prefix: int) -> None:
        self.r, self.prefix = r, prefix
        self.source = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        self.sizes: Tensor | None = None

    def bias(self) -> Tensor | None:
        """Return log sizes (B, 1, 1, K): what proportional attention adds to the logits."""
        return None if self.sizes is None else self.sizes.log()[:, None, None]

    def merge(self, tokens: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return tokens (B, K - r, C), averages weighted by size."""
        r = min(self.r, (tokens.shape[1] - self.prefix) // 2)
        if r <= 0:
            return tokens
        index = match(key.detach().mean(dim=1), r, self.prefix)
        old = self.sizes if self.sizes is not None else torch.ones_like(tokens[..., 0], dtype=torch.float32)
        shape = (len(tokens), tokens.shape[1] - r)
        sizes = old.new_zeros(shape).scatter_add(1, index, old)
        weighted = tokens * old[..., None]
        sums = weighted.new_zeros(*shape, tokens.shape[-1])
        sums = sums.scatter_add(1, index[..., None].expand_as(tokens), weighted)
        self.source, self.sizes = index.gather(1, self.source), sizes
        return (sums / sizes[..., None]).to(tokens.dtype)


class ToMeBlocks(OpenBlocks):
    """Blocks that merge r pairs of tokens each, between attention and MLP.

    Source: arXiv:2210.09461, section 3.
    """

    def __init__(self, model: nn.Module, r: int) -> None:
        super().__init__(model, "tome")
        self.r = r

    def forward(self, tokens: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return tokens (B, prefix + h * w, C), each the one that it was merged into.

        `context.auxiliary["source"]` (B, prefix + h * w) tells which were merged.
        """
        merged = Merged(tokens, self.r, self.prefix)
        for block in self:
            tokens = block(tokens, merged.bias(), merged.merge)
        if context is not None:
            context.auxiliary["source"] = merged.source
        return take(tokens, merged.source) if merged.sizes is not None else tokens


def tome(model: Any, r: int = 13) -> nn.Module:
    """Merge r pairs of tokens in each block.

    Raises:
        ModelError: the model is no isotropic ViT with softmax attention.
    """
    return reduced(model, ToMeBlocks(model, r))


WRAPPERS.register("tome", CARD)(tome)
for pairs in (4, 8, 16):
    WRAPPERS.register(f"tome_r{pairs}", CARD)(partial(tome, r=pairs))
