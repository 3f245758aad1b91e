"""Spatial-reduction attention: softmax attention from all tokens to a shrunken map of keys and values."""

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


class SpatialReductionAttention(nn.Module):
    """Attention(Q, SR(K), SR(V)), where SR is a strided convolution of the map and a LayerNorm.

    The map is padded where the ratio does not divide it. Tokens before the map stay among the keys and values as they
    are. With ratio 1 this is softmax attention.

    Source: arXiv:2102.12122, equations 1 to 3.
    """

    def __init__(self, dim: int, heads: int, prefix: int, ratio: int) -> None:
        super().__init__()
        self.heads, self.prefix, self.ratio = heads, prefix, ratio
        self.q = linear(dim, dim)
        self.kv = linear(dim, 2 * dim)
        self.proj = linear(dim, dim)
        if ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=ratio, stride=ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, prefix + h * w, C) mixed over the prefix and the reduced map."""
        sources = self._reduce(tokens, context.grid) if self.ratio > 1 else tokens
        (query,) = split_heads(self.q(tokens), self.heads)
        key, value = split_heads(self.kv(sources), self.heads, parts=2)
        mixed: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value)))
        return mixed

    def _reduce(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        maps = pad_to_multiple(to_map(tokens[:, self.prefix :], grid), self.ratio, self.ratio)
        reduced = self.norm(to_tokens(self.sr(maps)))
        return torch.cat([tokens[:, : self.prefix], reduced], dim=1) if self.prefix else reduced


def ratio_at(site: AttentionSite) -> int:
    """Return the ratio 8, 4, 2, 1 at strides 4, 8, 16, 32."""
    return max(1, COARSEST // site.stride)


def parameters(site: AttentionSite) -> int:
    """Return the closed form: four projections with bias, and where the map shrinks its convolution and norm."""
    dim, ratio = site.dim, ratio_at(site)
    return 4 * (dim + 1) * dim + (ratio**2 * dim**2 + 3 * dim if ratio > 1 else 0)


def macs(site: AttentionSite) -> int:
    """Return the closed form: the convolution, the projections, and two products with the keys that are left."""
    (height, width), dim, ratio = site.grid, site.dim, ratio_at(site)
    reduced = -(-height // ratio) * -(-width // ratio)
    queries, keys = height * width + site.prefix, reduced + site.prefix
    convolution = reduced * ratio**2 * dim**2 if ratio > 1 else 0
    return convolution + 2 * (queries + keys) * dim**2 + 2 * queries * keys * dim


@ATTENTIONS.register(
    "spatial_reduction",
    AttentionCard(
        title="Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions",
        paper="arXiv:2102.12122",
        source="equations 1 to 3; ratios 8, 4, 2, 1 of table 1",
        equation="softmax(Q SR(K)^T / sqrt(d)) SR(V) with SR a strided convolution of the map",
        parameters=parameters,
        macs=macs,
        notes="the ratio follows from the stride; maps that it does not divide are padded, not cropped",
    ),
)
def spatial_reduction(site: AttentionSite) -> nn.Module:
    """Build spatial-reduction attention that leaves 7x7 keys of an image of 224 pixels."""
    return SpatialReductionAttention(site.dim, site.heads, site.prefix, ratio_at(site))
