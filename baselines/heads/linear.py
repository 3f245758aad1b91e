"""A linear classifier of every place of the backbone's own maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.layers.segmenter import Segmenter, pixel_classifier
from harness.models import ModelCard
from harness.registry import HEADS


class LinearHead(nn.Module):
    """Batch normalisation and a 1x1 convolution of all maps, side by side at the size of the first.

    Source: DINOv2 (arXiv:2304.07193), section 7.4.
    """

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(sum(channels))
        self.conv_seg = pixel_classifier(sum(channels), classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) of maps."""
        size = maps[0].shape[-2:]
        resized = [functional.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in maps[1:]]
        logits: Tensor = self.conv_seg(self.bn(torch.cat([maps[0], *resized], dim=1)))
        return logits


CARD = ModelCard(
    title="DINOv2: Learning Robust Visual Features without Supervision",
    paper="arXiv:2304.07193",
    notes="on the maps at the backbone's own strides",
)


@HEADS.register("linear", CARD)
def linear(pyramid: Any, classes: int) -> nn.Module:
    """Build the classifier on a pyramid."""
    return Segmenter(pyramid, LinearHead(pyramid.channels, classes))
