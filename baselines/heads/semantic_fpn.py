"""Semantic FPN: a feature pyramid network whose levels are added up at stride 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.layers.conv import ConvBn
from baselines.layers.segmenter import Segmenter, pixel_classifier
from harness.models import ModelCard
from harness.registry import HEADS


class SemanticFpn(nn.Module):
    """A top-down path of 256 channels; each level is brought to stride 4 by 3x3 convolutions and doublings.

    Source: Kirillov et al. 2019 (arXiv:1901.02446), figure 3; batch normalisation and sizes as mmsegmentation has them.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(width, 256, kernel_size=1) for width in channels)
        self.fpn_convs = nn.ModuleList(nn.Conv2d(256, 256, kernel_size=3, padding=1) for _ in channels)
        self.scale_heads = nn.ModuleList(_scale_head(round(math.log2(stride / strides[0]))) for stride in strides)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = pixel_classifier(128, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) at the size of the first map."""
        laterals = [conv(one) for conv, one in zip(self.lateral_convs, maps, strict=True)]
        for fine, coarse in reversed(list(pairwise(range(len(laterals))))):
            laterals[fine] = laterals[fine] + functional.interpolate(laterals[coarse], size=laterals[fine].shape[-2:])
        levels = [conv(one) for conv, one in zip(self.fpn_convs, laterals, strict=True)]
        sizes = [head(one) for head, one in zip(self.scale_heads, levels, strict=True)]
        size = sizes[0].shape[-2:]
        resized = [functional.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in sizes]
        logits: Tensor = self.conv_seg(self.dropout(torch.stack(resized).sum(dim=0)))
        return logits


def _scale_head(doublings: int) -> nn.Sequential:
    """Convolutions to 128 channels, each but that of the finest level with a doubling of the size."""
    layers: list[nn.Module] = []
    for step in range(max(1, doublings)):
        layers.append(ConvBn(128 if step else 256, 128, kernel=3))
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


@HEADS.register("semantic_fpn", ModelCard(title="Panoptic Feature Pyramid Networks", paper="arXiv:1901.02446"))
def semantic_fpn(pyramid: Any, classes: int) -> nn.Module:
    """Build the head on a pyramid."""
    return Segmenter(pyramid, SemanticFpn(pyramid.channels, pyramid.strides, classes))
