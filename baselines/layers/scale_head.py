"""The branch that adds up the levels of a feature pyramid at the size of the finest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 128


def scale_heads(channels: int, strides: Sequence[int], conv: Callable[[int, int, int], nn.Module]) -> nn.ModuleList:
    """Return what brings each level to the stride of the first and to 128 channels.

    It is a 3x3 convolution for each doubling of the size that follows it; one convolution for the finest level.

    Args:
        channels: of every level.
        conv: builds a convolution with its norm from channels, channels and kernel size.

    Source: Kirillov et al. 2019 (arXiv:1901.02446), figure 3.
    """
    return nn.ModuleList(_scale_head(channels, round(math.log2(stride / strides[0])), conv) for stride in strides)


def _scale_head(channels: int, doublings: int, conv: Callable[[int, int, int], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for step in range(max(1, doublings)):
        layers.append(conv(WIDTH if step else channels, WIDTH, 3))
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


def add_up(heads: nn.ModuleList, levels: Iterable[Tensor]) -> Tensor:
    """Return the sum (B, 128, h, w) of the levels that the heads bring to one size."""
    sizes = [head(one) for head, one in zip(heads, levels, strict=True)]
    size = sizes[0].shape[-2:]
    resized = [functional.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in sizes]
    return torch.stack(resized).sum(dim=0)
