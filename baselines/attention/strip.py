"""Strip attention: thin queries and keys, and few keys, beside values of full width. A reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import pad_to_multiple, to_map, to_tokens
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

COARSEST = 32
THINNING = 4


class StripAttention(nn.Module):
    """softmax(Q K^T / sqrt(d')) V per head, with K and V of a map that a strided convolution shrinks.

    Queries and keys have d' channels a head, a quarter of those of the values. The map is padded where the ratio does
    not divide it. Tokens before the map stay among the keys and values as they are.

    Source: S2AFormer, arXiv:2505.22195; ratio, d' and the norm are this project's choice.
    """

    def __init__(self, site: AttentionSite, ratio: int) -> None:
        super().__init__()
        self.heads, self.prefix, self.ratio = site.heads, site.prefix, ratio
        thin = thin_width(site)
        self.q, self.k = linear(site.dim, thin), linear(site.dim, thin)
        self.v, self.proj = linear(site.dim, site.dim), linear(site.dim, site.dim)
        if ratio > 1:
            self.reduction = nn.Conv2d(site.dim, site.dim, kernel_size=ratio, stride=ratio)
            self.norm = nn.LayerNorm(site.dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, prefix + h * w, C) mixed over the prefix and the reduced map."""
        sources = self._reduce(tokens, context.grid) if self.ratio > 1 else tokens
        (query,), (key,), (value,) = (
            split_heads(part, self.heads) for part in (self.q(tokens), self.k(sources), self.v(sources))
        )
        mixed: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value)))
        return mixed

    def _reduce(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        maps = pad_to_multiple(to_map(tokens[:, self.prefix :], grid), self.ratio, self.ratio)
        reduced = self.norm(to_tokens(self.reduction(maps)))
        return torch.cat([tokens[:, : self.prefix], reduced], dim=1) if self.prefix else reduced


def thin_width(site: AttentionSite) -> int:
    """Return the width of all queries: a quarter of the values', and at least one channel a head."""
    return site.heads * max(1, site.dim // site.heads // THINNING)


def ratio_at(site: AttentionSite) -> int:
    """Return the ratio 8, 4, 2, 1 at strides 4, 8, 16, 32."""
    return max(1, COARSEST // site.stride)


def parameters(site: AttentionSite) -> int:
    """Return the closed form: thin and full projections, and where the map shrinks its convolution and norm."""
    dim, ratio = site.dim, ratio_at(site)
    reduction = dim + ratio**2 * dim**2 + 2 * dim if ratio > 1 else 0
    return 2 * (dim + 1) * (thin_width(site) + dim) + reduction


def macs(site: AttentionSite) -> int:
    """Return the closed form: the convolution, the projections, and products with the keys that are left."""
    (height, width), dim, thin, ratio = site.grid, site.dim, thin_width(site), ratio_at(site)
    reduced = -(-height // ratio) * -(-width // ratio)
    queries, keys = height * width + site.prefix, reduced + site.prefix
    convolution = reduced * ratio**2 * dim**2 if ratio > 1 else 0
    return convolution + (queries + keys) * dim * (thin + dim) + queries * keys * (thin + dim)


@ATTENTIONS.register(
    "strip",
    AttentionCard(
        title="S2AFormer: Strip Self-Attention for Efficient Vision Transformer",
        paper="arXiv:2505.22195",
        source="abstract and description of strip self-attention; there is no official code",
        equation="softmax(Q K^T / sqrt(d')) V with Q of N x d', K of n x d', V of n x C, where n << N and d' << C",
        parameters=parameters,
        macs=macs,
        notes="a reconstruction, not checked against any code: ratios 8, 4, 2, 1 at strides 4, 8, 16, 32 by a "
        "convolution and a LayerNorm, and d' a quarter of a head, are this project's choice. The local modules of "
        "S2AFormer's block are left out. Kernels that need queries and values of one width do not serve, so that on a "
        "CPU the N x n map is built",
    ),
)
def strip(site: AttentionSite) -> nn.Module:
    """Build strip attention; it takes any prefix and grid."""
    return StripAttention(site, ratio_at(site))
