"""Linear attention: a kernel in the place of the softmax, so that keys and values are summed once for all queries."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear as linear_layer
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

# elu(x) + 1 rounds to zero for very negative x; a query whose features are all zero then mixes in nothing.
EPSILON = 1e-6


class LinearAttention(nn.Module):
    """phi(Q) (phi(K)^T V) / (phi(Q) sum phi(K)) per head with phi(x) = elu(x) + 1, not causal.

    Source: arXiv:2006.16236, equations 5 to 7.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear_layer(dim, 3 * dim)
        self.proj = linear_layer(dim, dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, N, C) mixed over all N."""
        query, key, value = split_heads(self.qkv(tokens), self.heads, parts=3)
        query, key = F.elu(query) + 1, F.elu(key) + 1
        summary = key.transpose(-2, -1) @ value  # (B, heads, d, d)
        weight = query @ key.sum(dim=-2).unsqueeze(-1)  # (B, heads, N, 1)
        mixed: Tensor = self.proj(merge_heads(query @ summary / (weight + EPSILON)))
        return mixed


def parameters(site: AttentionSite) -> int:
    """Return the closed form: four projections with bias."""
    return 4 * (site.dim + 1) * site.dim


def macs(site: AttentionSite) -> int:
    """Return the closed form: four projections, and for each head two products and the sum of weights, d wide."""
    tokens = site.prefix + site.grid[0] * site.grid[1]
    return tokens * (4 * site.dim**2 + 2 * site.dim**2 // site.heads + site.dim)


@ATTENTIONS.register(
    "linear",
    AttentionCard(
        title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        paper="arXiv:2006.16236",
        source="equations 5 to 7",
        equation="phi(Q) (phi(K)^T V) / (phi(Q) sum phi(K)) with phi(x) = elu(x) + 1",
        parameters=parameters,
        macs=macs,
        notes="not causal; query, key and value have biases, as in ViT",
    ),
)
def linear(site: AttentionSite) -> nn.Module:
    """Build linear attention; it takes any prefix and grid."""
    return LinearAttention(site.dim, site.heads)
