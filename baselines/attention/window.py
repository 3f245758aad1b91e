"""Shifted-window attention: softmax attention inside windows, which move by half a window in every second block."""

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


class WindowAttention(nn.Module):
    """softmax(Q K^T / sqrt(d) + B) V inside each window, with a learned bias B for each offset between two tokens.

    Where windows do not divide the map it is padded below and to the right before the shift; the padding takes part as
    zeros, as in the official detection code. Windows shrink to a map smaller than one, which is then not shifted.

    Args:
        shifted: whether windows start half a window below and to the right of the map's corner, and wrap around.

    Source: arXiv:2103.14030, equation 4 and section 3.2.
    """

    separated: Tensor

    def __init__(self, site: AttentionSite, shifted: bool) -> None:
        super().__init__()
        self.heads, self.grid, self.shifted = site.heads, site.grid, shifted
        self.qkv = linear(site.dim, 3 * site.dim)
        self.proj = linear(site.dim, site.dim)
        table = torch.empty((2 * SIDE - 1) ** 2, site.heads)
        self.bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        separated = separate(site.grid, self._shift(site.grid), self.bias_table.device)
        self.register_buffer("separated", separated, persistent=False)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C) mixed inside their windows."""
        (height, width), (down, right) = context.grid, self._shift(context.grid)
        window = fit(SIDE, context.grid)
        maps = pad_to_multiple(to_map(tokens, context.grid), *window)
        maps = torch.roll(maps, (-down, -right), dims=(2, 3)) if down or right else maps
        windows = attend(self.qkv(cut(maps, window)), self.heads, self._bias(context.grid, window))
        maps = join(windows, (maps.shape[2], maps.shape[3]), window)
        maps = torch.roll(maps, (down, right), dims=(1, 2)) if down or right else maps
        mixed: Tensor = self.proj(maps[:, :height, :width].flatten(1, 2))
        return mixed

    def _bias(self, grid: Pair, window: Pair) -> Tensor:
        """Return the bias of all windows, minus infinity between separated tokens, as `attend` takes it."""
        # The table is Swin's, whose offsets run from key to query.
        bias = self.bias_table[offsets(window, SIDE, self.bias_table.device).mT].permute(2, 0, 1)
        shift = self._shift(grid)
        if not any(shift):
            return bias
        separated = self.separated if grid == self.grid else separate(grid, shift, bias.device)
        return bias.masked_fill(separated.unsqueeze(1), float("-inf"))

    def _shift(self, grid: Pair) -> Pair:
        down, right = (self.shifted and size > SIDE for size in grid)
        return down * (SIDE // 2), right * (SIDE // 2)


def separate(grid: Pair, shift: Pair, device: torch.device) -> Tensor:
    """Return which pairs of tokens (W, n, n) share a window only because the shifted map wraps around."""
    window = fit(SIDE, grid)
    padded = (-(-side // step) * step for side, step in zip(grid, window, strict=True))
    below, beside = (torch.arange(side, device=device) >= side - move for side, move in zip(padded, shift, strict=True))
    wrapped = 2 * below[:, None] + beside[None, :].long()  # (H, W), one number for each piece that wraps its own way
    (pieces,) = cut(wrapped[None, None], window).squeeze(-1)  # (W, n)
    return torch.ne(pieces[:, :, None], pieces[:, None, :])


@ATTENTIONS.register(
    "window",
    AttentionCard(
        title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        paper="arXiv:2103.14030",
        source="equation 4 and section 3.2",
        equation="softmax(Q K^T / sqrt(d) + B) V inside 7x7 windows, which move by 3 in every second block",
        parameters=partial(parameters, side=SIDE),
        macs=partial(macs, side=SIDE),
        notes="blocks of odd index in the whole carrier are shifted; maps that windows do not divide are padded before "
        "the shift, as in the official detection code, where timm pads after it; windows shrink to maps below 7x7, as "
        "in Swin, but the table keeps its size",
    ),
)
def window(site: AttentionSite) -> nn.Module:
    """Build window attention, shifted in odd layers.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "window")
    return WindowAttention(site, shifted=site.layer % 2 == 1)
