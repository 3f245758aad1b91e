"""Tokens and maps: the same features as a sequence and as a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def grid_of(image_size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """Return height and width of the map that a padded image of this size gives at a stride."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return -(-height // stride), -(-width // stride)


def pad_to_multiple(maps: Tensor, height: int, width: int) -> Tensor:
    """Add zeros below and to the right until the sides of maps (B, C, H, W) are multiples of a height and a width."""
    below, right = -maps.shape[-2] % height, -maps.shape[-1] % width
    return F.pad(maps, (0, right, 0, below)) if below or right else maps


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return maps (B, C, h, w) from tokens (B, h * w, C), without a copy."""
    return torch.unflatten(tokens.transpose(1, 2), 2, grid)


def to_tokens(maps: Tensor) -> Tensor:
    """Return tokens (B, H * W, C) from maps (B, C, H, W)."""
    return maps.flatten(2).transpose(1, 2)
