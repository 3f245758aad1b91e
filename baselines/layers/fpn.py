"""A feature pyramid network as torchvision's detectors want it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

WIDTH = 256


class Fpn(nn.Module):
    """Named maps of 256 channels, finest first.

    Args:
        pyramid: with `features`, `channels` and `strides`.
        first: the first level that is used.
        extra: makes coarser levels.

    Source: Lin et al. 2017 (arXiv:1612.03144), as torchvision has it.
    """

    out_channels = WIDTH

    def __init__(self, pyramid: Any, first: int, extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.first = first
        self.fpn = FeaturePyramidNetwork(list(pyramid.channels[first:]), WIDTH, extra_blocks=extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels of images (B, 3, H, W)."""
        maps = self.pyramid.features(images)[self.first :]
        found: dict[str, Tensor] = self.fpn({str(index): one.float() for index, one in enumerate(maps)})
        return found
