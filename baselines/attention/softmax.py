"""Softmax attention over all tokens: the control that every other mixer is held against."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS


class SoftmaxAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V per head, fused; query, key and value have biases.

    Source: arXiv:1706.03762, equation 1; biases as in ViT, arXiv:2010.11929.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(dim, 3 * dim)
        self.proj = linear(dim, dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, N, C) mixed over all N."""
        query, key, value = split_heads(self.qkv(tokens), self.heads, parts=3)
        mixed: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value)))
        return mixed


def parameters(site: AttentionSite) -> int:
    """Return the closed form: four projections with bias."""
    return 4 * (site.dim + 1) * site.dim


def macs(site: AttentionSite) -> int:
    """Return the closed form: four projections and two products over all tokens."""
    tokens = site.prefix + site.grid[0] * site.grid[1]
    return tokens * (4 * site.dim**2 + 2 * tokens * site.dim)


@ATTENTIONS.register(
    "softmax",
    AttentionCard(
        title="Attention Is All You Need",
        paper="arXiv:1706.03762",
        source="equation 1",
        equation="softmax(Q K^T / sqrt(d)) V",
        parameters=parameters,
        macs=macs,
        notes="query, key and value have biases, as in ViT",
    ),
)
def softmax(site: AttentionSite) -> nn.Module:
    """Build softmax attention; it takes any prefix and grid."""
    return SoftmaxAttention(site.dim, site.heads)
