"""Softmax attention of each token to a window around it that never leaves the map."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from baselines.layers.flexible import attend_flexibly
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from baselines.layers.prefix import refuse_prefix
from harness.models import AttentionContext, AttentionSite

KERNEL = 7
# Gathered keys, in numbers, that are held at once: 4 MiB in single precision, which caches hold. Sixteen times as
# many take twice the time.
GATHERED = 2**20
# Tokens from which a GPU runs one fused kernel; on smaller maps it could skip next to nothing.
FUSED_FROM = 1024

# Each token's neighbours along an axis, and their rows of the bias table, both (size, k).
Axis = tuple[Tensor, Tensor]


class NeighborhoodAttention(nn.Module):
    """softmax(q K^T / sqrt(d) + B) V over the k x k nearest tokens of each query, with a bias B for each offset.

    Along an axis tokens whose places agree modulo the dilation form a group, and neighbours are of one group. At the
    border the window is shifted inside, and the bias with it, so that each query has k x k neighbours. On a map with
    fewer than k * dilation tokens along an axis the dilation shrinks until they suffice, then the window does.

    Keys and values are gathered for some rows of queries at a time and, for training, gathered anew in the backward
    pass: the memory grows linearly with the number of tokens. On a GPU large maps go through one fused kernel.

    Args:
        dilation: distance between neighbours, in tokens.

    Source: NAT, arXiv:2204.07143, section 3.1; DiNAT, arXiv:2209.15001, section 3.1.
    """

    def __init__(self, site: AttentionSite, dilation: int) -> None:
        super().__init__()
        self.heads, self.dilation = site.heads, dilation
        self.qkv = linear(site.dim, 3 * site.dim)
        self.proj = linear(site.dim, site.dim)
        table = torch.empty(site.heads, 2 * KERNEL - 1, 2 * KERNEL - 1)
        self.rpb = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C) mixed inside their neighbourhoods."""
        query, key, value = split_heads(self.qkv(tokens), self.heads, parts=3)
        key, value = key.contiguous(), value.contiguous()
        rows, columns = (neighbors(size, self.dilation, tokens.device) for size in context.grid)
        if tokens.is_cuda and tokens.shape[1] >= FUSED_FROM:
            mixed = attend_flexibly(query, key, value, self.rpb, relation(*rows), relation(*columns))
        else:
            mixed = self._attend_in_blocks(query, key, value, rows, columns)
        projected: Tensor = self.proj(merge_heads(mixed))
        return projected

    def _attend_in_blocks(self, query: Tensor, key: Tensor, value: Tensor, rows: Axis, columns: Axis) -> Tensor:
        grid = len(rows[0]), len(columns[0])
        gathered = query.numel() * rows[0].shape[1] * columns[0].shape[1]
        height = max(1, grid[0] * GATHERED // gathered)
        blocks = zip(
            torch.split(query, height * grid[1], dim=2),
            *(torch.split(part, height) for part in rows),
            strict=True,
        )
        again = height < grid[0] and torch.is_grad_enabled()
        run = partial(checkpoint, attend, use_reentrant=False) if again else attend
        return torch.cat([run(part, key, value, self.rpb, (*block,), columns) for part, *block in blocks], dim=2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    rows: tuple[Tensor, ...],
    columns: tuple[Tensor, ...],
) -> Tensor:
    """Return values (B, heads, n, d) of the queries of some whole rows of the map.

    Args:
        query: (B, heads, n, d); key and value hold all tokens.
        table: the bias (heads, 2k - 1, 2k - 1).
        rows: neighbours and offsets of those rows, each (n / w, k).
        columns: neighbours and offsets of all columns, each (w, k).
    """
    width = columns[0].shape[0]
    places = (rows[0][:, None, :, None] * width + columns[0][None, :, None, :]).flatten()
    offsets = rows[1][:, None, :, None], columns[1][None, :, None, :]
    bias = table[:, offsets[0], offsets[1]].flatten(3).flatten(1, 2)  # (heads, n, k * k)
    keys, values = (torch.unflatten(part.index_select(2, places), 2, bias.shape[1:]) for part in (key, value))
    query = query * query.shape[-1] ** -0.5
    scores = (query.unsqueeze(3) @ keys.mT).squeeze(3) + bias
    return (scores.softmax(dim=-1).unsqueeze(3) @ values).squeeze(3)


def neighbors(size: int, dilation: int, device: torch.device) -> Axis:
    """Return the places of each token's neighbours along an axis, and the rows of the bias table for their offsets.

    Both are (size, k). An offset counts in steps of the dilation, and zero has row `KERNEL - 1`.
    """
    kernel = min(KERNEL, size)
    step = max(1, min(dilation, size // kernel))
    place = torch.arange(size, device=device)
    group, index = place % step, place // step
    members = (size - 1 - group) // step + 1
    start = torch.minimum((index - kernel // 2).clamp(min=0), members - kernel)
    taken = start[:, None] + torch.arange(kernel, device=device)
    return group[:, None] + taken * step, taken - index[:, None] + KERNEL - 1


def relation(places: Tensor, offsets: Tensor) -> Tensor:
    """Return the row of the bias table (size, size) for each query and key along an axis, -1 for no neighbours."""
    apart = torch.full((len(places), len(places)), -1, device=places.device)
    return apart.scatter(1, places, offsets)


def build_neighborhood(site: AttentionSite, name: str, dilation: int) -> NeighborhoodAttention:
    """Build neighbourhood attention.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, name)
    return NeighborhoodAttention(site, dilation)


def parameters(site: AttentionSite) -> int:
    """Return the closed form: four projections with bias and the table."""
    return 4 * (site.dim + 1) * site.dim + site.heads * (2 * KERNEL - 1) ** 2


def macs(site: AttentionSite) -> int:
    """Return the closed form: four projections, and two products with k x k neighbours."""
    (height, width), dim = site.grid, site.dim
    return height * width * (4 * dim**2 + 2 * dim * min(KERNEL, height) * min(KERNEL, width))
