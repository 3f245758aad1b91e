"""Multi-axis attention: inside windows in even blocks, between tokens spread evenly over the map in odd ones."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from baselines.layers.grid import pad_to_multiple, to_map
from baselines.layers.linear import linear
from baselines.layers.prefix import refuse_prefix
from baselines.layers.windows import Pair, attend, cut, fit, join, macs, offsets, parameters
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

SIDE = 7


class PartitionAttention(nn.Module):
    """softmax(Q K^T / sqrt(d) + B) V inside each part of the map, with a learned bias B for each offset in a part.

    A part is a window of 7x7 neighbours, or a grid of 7x7 tokens that spans the map. A map that parts do not divide is
    padded, and no token attends to the padding. Parts shrink to a map smaller than one.

    Args:
        spread: whether parts are grids.

    Source: MaxViT, arXiv:2204.01697, section 3.2.
    """

    def __init__(self, site: AttentionSite, spread: bool) -> None:
        super().__init__()
        self.heads, self.spread = site.heads, spread
        self.qkv = linear(site.dim, 3 * site.dim)
        self.proj = linear(site.dim, site.dim)
        table = torch.empty(site.heads, 2 * SIDE - 1, 2 * SIDE - 1)
        self.bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C) mixed inside their parts."""
        (height, width), side = context.grid, fit(SIDE, context.grid)
        maps = pad_to_multiple(to_map(tokens, context.grid), *side)
        size = (maps.shape[2], maps.shape[3])
        bias = self.bias_table.flatten(1)[:, offsets(side, SIDE, tokens.device)]  # (heads, n, n)
        if size != context.grid:
            bias = bias.masked_fill(self._padding(context.grid, size, side, tokens.device), float("-inf"))
        parts = attend(self.qkv(self._part(maps, side)), self.heads, bias)
        mixed: Tensor = self.proj(self._whole(parts, size, side)[:, :height, :width].flatten(1, 2))
        return mixed

    def _part(self, maps: Tensor, side: Pair) -> Tensor:
        """Return parts (B, W, n, C) of maps (B, C, H, W)."""
        return spread_out(maps, side) if self.spread else cut(maps, side)

    def _whole(self, parts: Tensor, size: Pair, side: Pair) -> Tensor:
        """Return maps (B, H, W, C) of parts (B, W, n, C)."""
        return gather_in(parts, size, side) if self.spread else join(parts, size, side)

    def _padding(self, grid: Pair, size: Pair, side: Pair, device: torch.device) -> Tensor:
        """Return which keys (W, 1, 1, n) are padding."""
        below, beside = (torch.arange(long, device=device) >= own for long, own in zip(size, grid, strict=True))
        (padding,) = self._part((below[:, None] | beside)[None, None], side).squeeze(-1)
        masked: Tensor = padding[:, None, None]
        return masked


def spread_out(maps: Tensor, side: Pair) -> Tensor:
    """Return grids (B, W, n, C) of evenly spread tokens from maps (B, C, H, W)."""
    rows = torch.unflatten(maps, 2, (side[0], -1))  # (B, C, gh, H / gh, W)
    pieces = torch.unflatten(rows, 4, (side[1], -1))  # (B, C, gh, H / gh, gw, W / gw)
    return pieces.permute(0, 3, 5, 2, 4, 1).flatten(3, 4).flatten(1, 2)


def gather_in(parts: Tensor, size: Pair, side: Pair) -> Tensor:
    """Return maps (B, H, W, C), channels last, from the grids (B, W, n, C) that `spread_out` gave."""
    pieces = torch.unflatten(parts, 2, side)  # (B, W, gh, gw, C)
    pieces = torch.unflatten(pieces, 1, (size[0] // side[0], -1))  # (B, H / gh, W / gw, gh, gw, C)
    return pieces.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


@ATTENTIONS.register(
    "multi_axis",
    AttentionCard(
        title="MaxViT: Multi-Axis Vision Transformer",
        paper="arXiv:2204.01697",
        source="section 3.2; window and grid 7 of the released models for 224 pixels",
        equation="softmax(Q K^T / sqrt(d) + B) V inside 7x7 windows, in odd blocks inside 7x7 grids that span the map",
        parameters=partial(parameters, side=SIDE),
        macs=partial(macs, side=SIDE),
        notes="a MaxViT block is MBConv, window attention, MLP, grid attention, MLP; here blocks of even index in the "
        "whole carrier have its window attention, those of odd index its grid attention, each with the carrier's MLP, "
        "and MBConv is left out. Official code refuses maps that 7 does not divide; here they are padded, and the "
        "padding is masked. Heads are the carrier's; MaxViT's are of width 32",
    ),
)
def multi_axis(site: AttentionSite) -> nn.Module:
    """Build window attention in even layers, grid attention in odd ones.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "multi_axis")
    return PartitionAttention(site, spread=site.layer % 2 == 1)
