"""Gated positional self-attention: each head chooses between attending to contents and attending to places."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from baselines.layers.prefix import refuse_prefix
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS


class GatedPositionalAttention(nn.Module):
    """((1 - s(g)) softmax(Q K^T / sqrt(d)) + s(g) softmax(W r)) V per head, with a gate g and s the sigmoid.

    The places r of a key, seen from a query, are (x, y, x^2 + y^2). W r is thus a sum of a term in x and one in y, and
    its softmax a product: places are attended to along rows, then along columns, without an N x N matrix.

    Queries, keys and values have no bias. Values start as the tokens themselves, and heads start as the taps of a
    convolution whose kernel has as many rows as the square root of the number of heads.

    Source: ConViT, arXiv:2103.10697, section 3.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk = linear(dim, 2 * dim, bias=False)
        self.v = linear(dim, dim, bias=False)
        nn.init.eye_(self.v.weight)
        self.proj = linear(dim, dim)
        self.pos_proj = linear(3, heads, bias=False)
        _point_at_taps(self.pos_proj.weight)
        self.gating_param = nn.Parameter(torch.ones(heads))

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C) mixed over all of them."""
        query, key = split_heads(self.qk(tokens), self.heads, parts=2)
        (value,) = split_heads(self.v(tokens), self.heads)
        gate = torch.sigmoid(self.gating_param)[:, None, None]
        contents = F.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.proj(merge_heads((1 - gate) * contents + gate * self._places(value, context.grid)))
        return mixed

    def _places(self, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return values (B, heads, h * w, d) averaged over the places that each head looks at."""
        right, down, square = self.pos_proj.weight.float().unbind(1)
        vertical, horizontal = (
            _along(size, slope, square).to(value.dtype) for size, slope in zip(grid, (down, right), strict=True)
        )
        rows = torch.unflatten(value.mT, 3, grid)  # (B, heads, d, h, w)
        columns = torch.unflatten(rows.flatten(2, 3) @ horizontal.mT, 2, (-1, grid[0])).mT  # (B, heads, d, w, h)
        mixed = torch.unflatten(columns.flatten(2, 3) @ vertical.mT, 2, (-1, grid[1]))
        return mixed.permute(0, 1, 4, 3, 2).flatten(2, 3)


def _along(size: int, slope: Tensor, square: Tensor) -> Tensor:
    """Return the positional attention (heads, size, size) along one axis."""
    place = torch.arange(size, device=slope.device, dtype=slope.dtype)
    distance = place[None, :] - place[:, None]
    return (slope[:, None, None] * distance + square[:, None, None] * distance**2).softmax(dim=-1)


@torch.no_grad()
def _point_at_taps(weight: Tensor) -> None:
    """Let heads look at the taps of the largest square kernel that has no more taps than there are heads."""
    side = math.isqrt(len(weight))
    centre = (side - 1) / 2 if side % 2 == 0 else side // 2
    for head in range(side**2):
        below, beside = head % side - centre, head // side - centre
        weight[head] = torch.tensor([2 * beside, 2 * below, -1.0])


def parameters(site: AttentionSite) -> int:
    """Return the closed form: four projections, one of them with bias, three slopes and a gate a head."""
    return 4 * site.dim**2 + site.dim + 4 * site.heads


def macs(site: AttentionSite) -> int:
    """Return the closed form: four projections, two products over all tokens, one along each axis."""
    (height, width), dim = site.grid, site.dim
    tokens = height * width
    return tokens * (4 * dim**2 + 2 * tokens * dim + (height + width) * dim)


@ATTENTIONS.register(
    "gated_positional",
    AttentionCard(
        title="ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
        paper="arXiv:2103.10697",
        source="section 3",
        equation="((1 - s(g)) softmax(Q K^T / sqrt(d)) + s(g) softmax(W (x, y, x^2 + y^2))) V",
        parameters=parameters,
        macs=macs,
        notes="the positional map is applied along rows and columns, which is the same and costs less than the paper's "
        "N x N; its bias, which the softmax cancels, and the division by the sum of a row, which is one, are left out. "
        "In all blocks, where ConViT has plain attention in the last two, behind its class token. Where the number of "
        "heads is no square, the rest of them start at random, as in the official code",
    ),
)
def gated_positional(site: AttentionSite) -> nn.Module:
    """Build gated positional self-attention.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "gated_positional")
    return GatedPositionalAttention(site.dim, site.heads)
