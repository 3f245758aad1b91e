"""UPerNet: pyramid pooling on the coarsest map, a feature pyramid network, and an auxiliary head in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.layers.conv import ConvBn
from baselines.layers.segmenter import Segmenter, pixel_classifier
from harness.models import ModelCard
from harness.registry import HEADS

CHANNELS = 512
POOLS = (1, 2, 3, 6)
AUXILIARY_CHANNELS = 256
DROPOUT = 0.1


class UPerHead(nn.Module):
    """The decode head; its parameters have the names of mmsegmentation's, whose state dict loads as it is.

    Source: Xiao et al. 2018 (arXiv:1807.10221), figure 4; sizes and order of things as in mmsegmentation 1.2.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = CHANNELS) -> None:
        super().__init__()
        *finer, coarsest = channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvBn(coarsest, width, kernel=1)) for side in POOLS
        )
        self.bottleneck = ConvBn(coarsest + len(POOLS) * width, width, kernel=3)
        self.lateral_convs = nn.ModuleList(ConvBn(fine, width, kernel=1) for fine in finer)
        self.fpn_convs = nn.ModuleList(ConvBn(width, width, kernel=3) for _ in finer)
        self.fpn_bottleneck = ConvBn(len(channels) * width, width, kernel=3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.conv_seg = pixel_classifier(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) of maps, at the size of the first."""
        laterals = [conv(one) for conv, one in zip(self.lateral_convs, maps, strict=False)]
        laterals.append(self._pooled(maps[-1]))
        for index in range(len(laterals) - 1, 0, -1):
            laterals[index - 1] = laterals[index - 1] + _resize(laterals[index], laterals[index - 1])
        levels = [conv(one) for conv, one in zip(self.fpn_convs, laterals, strict=False)]
        levels = [_resize(one, levels[0]) for one in [*levels, laterals[-1]]]
        return cast(Tensor, self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(levels, dim=1)))))

    def _pooled(self, coarsest: Tensor) -> Tensor:
        """The coarsest map with its averages over grids of several sizes."""
        pooled = [_resize(pool(coarsest), coarsest) for pool in self.psp_modules]
        return cast(Tensor, self.bottleneck(torch.cat([coarsest, *pooled], dim=1)))


class FcnHead(nn.Module):
    """One 3x3 convolution and a classifier: mmsegmentation's auxiliary head, with its names."""

    def __init__(self, channels: int, classes: int, width: int = AUXILIARY_CHANNELS) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvBn(channels, width, kernel=3))
        self.dropout = nn.Dropout2d(DROPOUT)
        self.conv_seg = pixel_classifier(width, classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits (B, classes, h, w) of maps (B, C, h, w)."""
        return cast(Tensor, self.conv_seg(self.dropout(self.convs(maps))))


def _resize(maps: Tensor, other: Tensor) -> Tensor:
    """Maps at the size of others."""
    return functional.interpolate(maps, size=other.shape[-2:], mode="bilinear", align_corners=False)


CARD = ModelCard(
    title="Unified Perceptual Parsing for Scene Understanding",
    paper="arXiv:1807.10221",
    source="sizes: open-mmlab/mmsegmentation",
)


@HEADS.register("upernet", CARD)
def upernet(pyramid: Any, classes: int) -> nn.Module:
    """Build the head, with the auxiliary head on the map of stride 16, on a pyramid."""
    auxiliary = FcnHead(pyramid.channels[Segmenter.auxiliary_index], classes)
    return Segmenter(pyramid, UPerHead(pyramid.channels, classes), auxiliary)
