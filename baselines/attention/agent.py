"""Agent attention: a few agent tokens gather from all keys, then all queries read from the agents."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from harness.models import AttentionContext, AttentionSite, ModelCard
from harness.registry import ATTENTIONS

TABLE_SIDE = 7


class PositionBias(nn.Module):
    """A learned bias between agents and tokens: a coarse map, plus a term a row, plus a term a column.

    The terms have the site's height and width; on another grid all three are interpolated.

    Source: arXiv:2312.08874, section 4.2.
    """

    def __init__(self, heads: int, agents: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__()
        self.map = _table(heads, agents, TABLE_SIDE, TABLE_SIDE)
        self.row = _table(heads, agents, grid[0], 1)
        self.column = _table(heads, agents, 1, grid[1])
        self.prefix = _table(heads, agents, prefix) if prefix else None

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
        self.gathering = PositionBias(site.heads, side**2, site.grid, site.prefix)
        self.reading = PositionBias(site.heads, side**2, site.grid, site.prefix)

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


@ATTENTIONS.register(
    "agent",
    ModelCard(
        title="Agent Attention: On the Integration of Softmax and Linear Attention",
        paper="arXiv:2312.08874",
        source="section 4.2; agent numbers of the released configurations",
        notes="agents follow from the site's grid: 9 from 56x56 up, 16 from 28x28 up, else 49, as released for 224 "
        "pixels (the released Agent-DeiT-S has 49 at 448 pixels too); all blocks of vit_b16_cls have agents, where the "
        "released Agent-DeiT-B has 81 in its first four blocks only",
    ),
)
def agent(site: AttentionSite) -> nn.Module:
    """Build agent attention; it takes any prefix and grid."""
    shorter = min(site.grid)
    return AgentAttention(site, side=3 if shorter >= 56 else 4 if shorter >= 28 else 7)
