"""Spatial-reduction attention: softmax attention from all tokens to a shrunken map of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import pad_to_multiple, to_map, to_tokens
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from harness.models import AttentionContext, AttentionSite, ModelCard
from harness.registry import ATTENTIONS

REDUCED_SIDE = 7


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


@ATTENTIONS.register(
    "spatial_reduction",
    ModelCard(
        title="Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions",
        paper="arXiv:2102.12122",
        source="equations 1 to 3; ratios 8, 4, 2, 1 of table 1",
        notes="ratios follow from the grid that the site was built for, so weights fit only builds of like image size; "
        "maps that the ratio does not divide are padded, not cropped",
    ),
)
def spatial_reduction(site: AttentionSite) -> nn.Module:
    """Build spatial-reduction attention that leaves about 7x7 keys at the site's own grid."""
    return SpatialReductionAttention(site.dim, site.heads, site.prefix, ratio=max(1, min(site.grid) // REDUCED_SIDE))
