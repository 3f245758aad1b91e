"""Token-aware average pooling before softmax attention, and a loss that keeps the attention of tokens apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

SCALES = 4
LOSS = "attention_diversification_loss"
# Attention below so many times the uniform one does not count in the loss.
THRESHOLD = 2.0


class TokenAwarePooling(nn.Module):
    """The sum over k of m_k * pooled_k: the map itself, and 3x3 means of dilation 1 to 3 with zeros around the map.

    The weights m are a softmax over k at each place, of a convolution, a norm and a convolution.

    Source: arXiv:2303.11126, section 3.2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(dim, SCALES, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(SCALES),
            nn.Conv2d(SCALES, SCALES, kernel_size=3, padding=1, bias=False),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, C, h, w) pooled as far as suits each token."""
        weights = self.weigh(maps).softmax(dim=1).unsqueeze(2).unbind(dim=1)
        pooled: Tensor = weights[0] * maps
        for dilation in range(1, SCALES):
            pooled = pooled + weights[dilation] * mean_around(maps, dilation)
        return pooled


class TokenAwareAttention(nn.Module):
    """Softmax attention of LayerNorm(TAP(map)); tokens before the map go past the pooling.

    In training the loss of attention diversification is added to the context's auxiliary, as the mean over all blocks
    of the carrier; only then is the attention matrix built.

    Source: TAP and ADL, arXiv:2303.11126, section 3.
    """

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.heads, self.prefix, self.depth = site.heads, site.prefix, site.depth
        self.pool = TokenAwarePooling(site.dim)
        self.norm = nn.LayerNorm(site.dim, eps=1e-6)
        self.qkv, self.proj = linear(site.dim, 3 * site.dim), linear(site.dim, site.dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, prefix + h * w, C) mixed over all of them."""
        pooled = to_tokens(self.pool(to_map(tokens[:, self.prefix :], context.grid)))
        sources = self.norm(torch.cat([tokens[:, : self.prefix], pooled], dim=1))
        query, key, value = split_heads(self.qkv(sources), self.heads, parts=3)
        if self.training:
            weights = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1)
            loss = similarity(weights[:, :, self.prefix :, self.prefix :]) / self.depth
            context.auxiliary[LOSS] = context.auxiliary[LOSS] + loss if LOSS in context.auxiliary else loss
            mixed = weights @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(merge_heads(mixed))
        return projected


def mean_around(maps: Tensor, dilation: int) -> Tensor:
    """Return the means of 3x3 tokens that lie a dilation apart; those beyond the edge are zero and count."""
    height, width = maps.shape[2:]
    padded = F.pad(maps, [dilation] * 4)
    above, level, below = (padded[:, :, step * dilation :][:, :, :height] for step in range(3))
    rows = above + level + below
    left, middle, right = (rows[:, :, :, step * dilation :][:, :, :, :width] for step in range(3))
    return (left + middle + right) / 9


def similarity(weights: Tensor) -> Tensor:
    """Return how similar the attention (B, heads, N, N) of tokens is to their mean attention, from 0 to 1.

    Source: arXiv:2303.11126, section 3.3.
    """
    attention = weights.float().mean(dim=1)
    least = THRESHOLD / attention.shape[-1]
    mean = attention.mean(dim=1, keepdim=True)
    kept, shared = (torch.where(part > least, part, 0) for part in (attention, mean))
    return F.cosine_similarity(shared, kept, dim=-1).mean()


def parameters(site: AttentionSite) -> int:
    """Return the closed form: four projections, two convolutions and two norms."""
    return 4 * (site.dim + 1) * site.dim + 9 * SCALES * (site.dim + SCALES) + 2 * SCALES + 2 * site.dim


def macs(site: AttentionSite) -> int:
    """Return the closed form: the convolutions, four projections and two products over all tokens."""
    places = site.grid[0] * site.grid[1]
    tokens = site.prefix + places
    return places * 9 * SCALES * (site.dim + SCALES) + tokens * (4 * site.dim**2 + 2 * tokens * site.dim)


@ATTENTIONS.register(
    "token_aware",
    AttentionCard(
        title="Robustifying Token Attention for Vision Transformers",
        paper="arXiv:2303.11126",
        source="section 3; four scales and the threshold of two: the official code",
        equation="softmax(Q K^T / sqrt(d)) V of LayerNorm(sum over k of m_k * mean of dilation k)",
        parameters=parameters,
        macs=macs,
        notes="the paper pools the residual stream and norms it then; the carriers norm it before as well. A class "
        "token is not pooled, and has no part in the loss. The loss is left in the context in training only; whoever "
        "trains adds it, with weight 1 in the paper. MACs leave out the means",
    ),
)
def token_aware(site: AttentionSite) -> nn.Module:
    """Build token-aware attention; it takes any prefix and grid."""
    return TokenAwareAttention(site)
