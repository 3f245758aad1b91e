"""Semantic FPN: a feature pyramid network whose levels are added up at stride 4."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from baselines.layers.conv import ConvBn
from baselines.layers.scale_head import WIDTH, add_up, scale_heads
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
        self.scale_heads = scale_heads(256, strides, ConvBn)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = pixel_classifier(WIDTH, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) at the size of the first map."""
        laterals = [conv(one) for conv, one in zip(self.lateral_convs, maps, strict=True)]
        for fine, coarse in reversed(list(pairwise(range(len(laterals))))):
            laterals[fine] = laterals[fine] + functional.interpolate(laterals[coarse], size=laterals[fine].shape[-2:])
        levels = [conv(one) for conv, one in zip(self.fpn_convs, laterals, strict=True)]
        logits: Tensor = self.conv_seg(self.dropout(add_up(self.scale_heads, levels)))
        return logits


@HEADS.register("semantic_fpn", ModelCard(title="Panoptic Feature Pyramid Networks", paper="arXiv:1901.02446"))
def semantic_fpn(pyramid: Any, classes: int) -> nn.Module:
    """Build the head on a pyramid."""
    return Segmenter(pyramid, SemanticFpn(pyramid.channels, pyramid.strides, classes))
