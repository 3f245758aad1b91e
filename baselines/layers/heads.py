"""Tokens to attention heads and back."""

from __future__ import annotations

import torch
from torch import Tensor


def split_heads(tokens: Tensor, heads: int, parts: int = 1) -> tuple[Tensor, ...]:
    """Cut tokens (B, N, parts * C) into `parts` tensors (B, heads, N, C / heads), such as query, key and value."""
    return torch.unflatten(tokens, -1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(values: Tensor) -> Tensor:
    """Return tokens (B, N, C) from heads (B, heads, N, C / heads)."""
    return values.transpose(1, 2).flatten(2)
