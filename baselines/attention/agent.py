"""Agent attention: a few agent tokens gather from all keys, then all queries read from the agents."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

TABLE_SIDE = 7
IMAGE_SIDE = 224


class PositionBias(nn.Module):
    """A learned bias between agents and tokens: a coarse map, plus a term a row, plus a term a column.

    The terms of rows and columns have the length of a map of 224 pixels; on another grid all three are interpolated.

    Source: arXiv:2312.08874, section 4.2.
    """

    def __init__(self, site: AttentionSite, agents: int) -> None:
        super().__init__()
        self.map = _table(site.heads, agents, TABLE_SIDE, TABLE_SIDE)
        self.row = _table(site.heads, agents, map_side(site), 1)
        self.column = _table(site.heads, agents, 1, map_side(site))
        self.prefix = _table(site.heads, agents, site.prefix) if site.prefix else None

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Return the bias (heads, agents, prefix + h * w) of a token map (h, w)."""
        height, width = grid
        maps = _resize(self.map, (height, width)) + _resize(self.row, (height, 1)) + _resize(self.column, (1, width))
        bias = maps.flatten(2)
        return bias if self.prefix is None else torch.cat([self.prefix, bias], dim=2)


class AgentAttention(nn.Module):
    """softmax(Q A^T / sqrt(d) + B2) softmax(A K^T / sqrt(d) + B1) V + DWC(V) per head.

    The agents A are the queries of the map, averaged over a coarse grid. The depthwise convolution DWC sees the map of
    values alone, and tokens before the map get nothing from it.

    Args:
        side: agents along each side of the coarse grid.

    Source: arXiv:2312.08874, section 4.2.
    """

    def __init__(self, site: AttentionSite, side: int) -> None:
        super().__init__()
        self.heads, self.prefix, self.side = site.heads, site.prefix, side
        self.qkv = linear(site.dim, 3 * site.dim)
        self.proj = linear(site.dim, site.dim)
        self.convolution = nn.Conv2d(site.dim, site.dim, kernel_size=3, padding=1, groups=site.dim)
        self.gathering = PositionBias(site, side**2)
        self.reading = PositionBias(site, side**2)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, prefix + h * w, C) mixed over all of them."""
        queries, keys, values = self.qkv(tokens).chunk(3, dim=-1)
        pooled = F.adaptive_avg_pool2d(to_map(queries[:, self.prefix :], context.grid), self.side)
        (query,), (key,), (value,), (agents,) = (
            split_heads(part, self.heads) for part in (queries, keys, values, to_tokens(pooled))
        )
        gathered = F.scaled_dot_product_attention(agents, key, value, self.gathering(context.grid).unsqueeze(0))
        bias = self.reading(context.grid).transpose(1, 2).unsqueeze(0)
        mixed = merge_heads(F.scaled_dot_product_attention(query, agents, gathered, bias))
        projected: Tensor = self.proj(mixed + self._local(values, context.grid))
        return projected

    def _local(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        local = to_tokens(self.convolution(to_map(values[:, self.prefix :], grid)))
        return F.pad(local, (0, 0, self.prefix, 0)) if self.prefix else local


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=size, mode="bilinear")


def map_side(site: AttentionSite) -> int:
    """Return the side of a map of 224 pixels."""
    return -(-IMAGE_SIDE // site.stride)


def side_at(site: AttentionSite) -> int:
    """Return the released 3, 4, 7, 7 agents along a side at strides 4, 8, 16, 32."""
    return 3 if site.stride <= 4 else 4 if site.stride <= 8 else 7


def parameters(site: AttentionSite) -> int:
    """Return the closed form: four projections with bias, the depthwise convolution, and two position biases."""
    terms = TABLE_SIDE**2 + 2 * map_side(site) + site.prefix
    return 4 * (site.dim + 1) * site.dim + 10 * site.dim + 2 * site.heads * side_at(site) ** 2 * terms


def macs(site: AttentionSite) -> int:
    """Return the closed form: four projections, four products with the agents, and the depthwise convolution."""
    places = site.grid[0] * site.grid[1]
    return (places + site.prefix) * 4 * (site.dim**2 + side_at(site) ** 2 * site.dim) + 9 * places * site.dim


@ATTENTIONS.register(
    "agent",
    AttentionCard(
        title="Agent Attention: On the Integration of Softmax and Linear Attention",
        paper="arXiv:2312.08874",
        source="section 4.2; agent numbers of the released configurations",
        equation="softmax(Q A^T / sqrt(d) + B2) softmax(A K^T / sqrt(d) + B1) V + DWC(V)",
        parameters=parameters,
        macs=macs,
        notes="agents follow from the stride: 9, 16, 49, 49 at strides 4, 8, 16, 32, as released; terms of rows and "
        "columns have the length for 224 pixels at any image size, where the released models for more pixels have "
        "longer ones; all blocks of vit_b16_cls have agents, where the released Agent-DeiT-B has 81 in its first four "
        "blocks only",
    ),
)
def agent(site: AttentionSite) -> nn.Module:
    """Build agent attention; it takes any prefix and grid."""
    return AgentAttention(site, side_at(site))
