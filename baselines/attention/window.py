"""Shifted-window attention: softmax attention inside windows, which move by half a window in every second block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import pad_to_multiple, to_map
from baselines.layers.linear import linear
from baselines.layers.prefix import refuse_prefix
from harness.models import AttentionContext, AttentionSite, ModelCard
from harness.registry import ATTENTIONS

SIDE = 7

Pair = tuple[int, int]


class WindowAttention(nn.Module):
    """softmax(Q K^T / sqrt(d) + B) V inside each window, with a learned bias B for each offset between two tokens.

    Where windows do not divide the map it is padded below and to the right before the shift; the padding takes part as
    zeros, as in the official detection code. A map no larger than one window is not shifted.

    Args:
        window: height and width of a window.
        shifted: whether windows start half a window below and to the right of the map's corner, and wrap around.

    Source: arXiv:2103.14030, equation 4 and section 3.2.
    """

    separated: Tensor
    offsets: Tensor

    def __init__(self, site: AttentionSite, window: Pair, shifted: bool) -> None:
        super().__init__()
        self.heads, self.grid, self.window, self.shifted = site.heads, site.grid, window, shifted
        self.qkv = linear(site.dim, 3 * site.dim)
        self.proj = linear(site.dim, site.dim)
        table = torch.empty((2 * window[0] - 1) * (2 * window[1] - 1), site.heads)
        self.bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("offsets", offsets(window), persistent=False)
        separated = separate(site.grid, window, self._shift(site.grid), self.bias_table.device)
        self.register_buffer("separated", separated, persistent=False)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C) mixed inside their windows."""
        (height, width), (down, right) = context.grid, self._shift(context.grid)
        maps = pad_to_multiple(to_map(tokens, context.grid), *self.window)
        maps = torch.roll(maps, (-down, -right), dims=(2, 3)) if down or right else maps
        windows = self._attend(cut(maps, self.window), self._bias(context.grid))
        maps = join(windows, (maps.shape[2], maps.shape[3]), self.window)
        maps = torch.roll(maps, (down, right), dims=(1, 2)) if down or right else maps
        mixed: Tensor = self.proj(maps[:, :height, :width].flatten(1, 2))
        return mixed

    def _attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        """Return windows (B, W, n, C) mixed inside each, with a bias (W * heads, 1, n, n)."""
        parts = torch.unflatten(self.qkv(windows), -1, (3, self.heads, -1))  # (B, W, n, 3, heads, d)
        # With windows and heads in front and images behind, one bias serves all images without being copied.
        query, key, value = parts.permute(3, 1, 4, 0, 2, 5).flatten(1, 2).unbind(0)  # (W * heads, B, n, d)
        mixed = F.scaled_dot_product_attention(query, key, value, bias)
        return torch.unflatten(mixed, 0, (-1, self.heads)).permute(2, 0, 3, 1, 4).flatten(3)

    def _bias(self, grid: Pair) -> Tensor:
        """Return the bias (W * heads, 1, n, n) of all windows, minus infinity between separated tokens."""
        bias = self.bias_table[self.offsets].permute(2, 0, 1)  # (heads, n, n)
        separated = self.separated
        if grid != self.grid:
            separated = separate(grid, self.window, self._shift(grid), bias.device)
        return bias.masked_fill(separated.unsqueeze(1), float("-inf")).flatten(0, 1).unsqueeze(1)

    def _shift(self, grid: Pair) -> Pair:
        down, right = (self.shifted and size > side for size, side in zip(grid, self.window, strict=True))
        return down * (self.window[0] // 2), right * (self.window[1] // 2)


def cut(maps: Tensor, window: Pair) -> Tensor:
    """Return windows (B, W, n, C) from maps (B, C, H, W)."""
    columns = torch.unflatten(maps, 3, (-1, window[1]))  # (B, C, H, columns, ww)
    pieces = torch.unflatten(columns, 2, (-1, window[0]))  # (B, C, rows, wh, columns, ww)
    return pieces.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def join(windows: Tensor, size: Pair, window: Pair) -> Tensor:
    """Return maps (B, H, W, C), channels last, from windows (B, W, n, C)."""
    pieces = torch.unflatten(windows, 2, window)  # (B, W, wh, ww, C)
    pieces = torch.unflatten(pieces, 1, (size[0] // window[0], -1))  # (B, rows, columns, wh, ww, C)
    return pieces.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def offsets(window: Pair) -> Tensor:
    """Return the row of the bias table (n, n) for each query and key of a window."""
    height, width = window
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    down = row[:, None] - row[None, :] + height - 1
    right = column[:, None] - column[None, :] + width - 1
    return down * (2 * width - 1) + right


def separate(grid: Pair, window: Pair, shift: Pair, device: torch.device) -> Tensor:
    """Return which pairs of tokens (W, n, n) share a window only because the shifted map wraps around."""
    padded = (-(-side // step) * step for side, step in zip(grid, window, strict=True))
    below, beside = (torch.arange(side, device=device) >= side - move for side, move in zip(padded, shift, strict=True))
    wrapped = 2 * below[:, None] + beside[None, :].long()  # (H, W), one number for each piece that wraps its own way
    (pieces,) = cut(wrapped[None, None], window).squeeze(-1)  # (W, n)
    return torch.ne(pieces[:, :, None], pieces[:, None, :])


@ATTENTIONS.register(
    "window",
    ModelCard(
        title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        paper="arXiv:2103.14030",
        source="equation 4 and section 3.2",
        notes="blocks of odd index in the whole carrier are shifted; windows shrink to maps below 7x7, as in Swin",
    ),
)
def window(site: AttentionSite) -> nn.Module:
    """Build window attention, shifted in odd layers.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "window")
    height, width = site.grid
    return WindowAttention(site, (min(SIDE, height), min(SIDE, width)), shifted=site.layer % 2 == 1)
