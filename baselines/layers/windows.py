"""Maps cut into windows, attention inside each, and maps again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from harness.models import AttentionSite

Pair = tuple[int, int]


def fit(window: int, grid: Pair) -> Pair:
    """Return height and width of a square window that shrinks to a map smaller than itself."""
    return min(window, grid[0]), min(window, grid[1])


def counts(grid: Pair, window: Pair) -> tuple[int, int]:
    """Return how many windows cover a map, and how many tokens each has."""
    rows, columns = (-(-size // side) for size, side in zip(grid, window, strict=True))
    return rows * columns, window[0] * window[1]


def cut(maps: Tensor, window: Pair) -> Tensor:
    """Return windows (B, W, n, C) of neighbouring tokens from maps (B, C, H, W)."""
    columns = torch.unflatten(maps, 3, (-1, window[1]))  # (B, C, H, columns, ww)
    pieces = torch.unflatten(columns, 2, (-1, window[0]))  # (B, C, rows, wh, columns, ww)
    return pieces.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def join(windows: Tensor, size: Pair, window: Pair) -> Tensor:
    """Return maps (B, H, W, C), channels last, from the windows (B, W, n, C) that `cut` gave."""
    pieces = torch.unflatten(windows, 2, window)  # (B, W, wh, ww, C)
    pieces = torch.unflatten(pieces, 1, (size[0] // window[0], -1))  # (B, rows, columns, wh, ww, C)
    return pieces.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def attend(windows: Tensor, heads: int, bias: Tensor) -> Tensor:
    """Return softmax attention (B, W, n, C) inside each window.

    Args:
        windows: (B, W, n, 3 * C), queries, keys and values.
        bias: (heads, n, n), or (W, heads, n, n) where windows differ.
    """
    parts = torch.unflatten(windows, -1, (3, heads, -1))  # (B, W, n, 3, heads, d)
    # With windows and heads in front and images behind, one bias serves all images without being copied.
    query, key, value = parts.permute(3, 1, 4, 0, 2, 5).flatten(1, 2).unbind(0)  # (W * heads, B, n, d)
    bias = bias.expand(windows.shape[1], -1, -1, -1).flatten(0, 1).unsqueeze(1)
    mixed = F.scaled_dot_product_attention(query, key, value, bias)
    return torch.unflatten(mixed, 0, (-1, heads)).permute(2, 0, 3, 1, 4).flatten(3)


def offsets(window: Pair, largest: int, device: torch.device) -> Tensor:
    """Return the row (n, n) of a bias table for each query and key of a window.

    The table has a row for each offset from query to key in a square window of the largest size, row by row; the same
    offset has the same row in any smaller window.
    """
    height, width = (torch.arange(side, device=device) for side in window)
    down = (height[None, :] - height[:, None] + largest - 1)[:, None, :, None]  # (wh, 1, wh, 1)
    right = (width[None, :] - width[:, None] + largest - 1)[None, :, None, :]  # (1, ww, 1, ww)
    return (down * (2 * largest - 1) + right).flatten(2).flatten(0, 1)


def parameters(site: AttentionSite, side: int) -> int:
    """Return the closed form of attention in windows: four projections with bias, and the table of positions."""
    return 4 * (site.dim + 1) * site.dim + (2 * side - 1) ** 2 * site.heads


def macs(site: AttentionSite, side: int) -> int:
    """Return the closed form: projections of the padded map, products inside windows, one projection of the map."""
    (height, width), dim = site.grid, site.dim
    windows, tokens = counts(site.grid, fit(side, site.grid))
    return windows * tokens * (3 * dim**2 + 2 * tokens * dim) + height * width * dim**2
