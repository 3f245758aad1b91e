"""Mask R-CNN: boxes of two stages, and a mask in each."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from baselines.layers.fpn import Fpn
from harness.models import ModelCard
from harness.registry import HEADS


@HEADS.register("mask_rcnn", ModelCard(title="Mask R-CNN", paper="arXiv:1703.06870", source="torchvision"))
def mask_rcnn(pyramid: Any, classes: int, anchor: float = 32.0, **transform: Any) -> nn.Module:
    """Build torchvision's detector on a pyramid, with an FPN of strides 4 to 64; labels count from 1.

    Args:
        anchor: side of the anchors of the finest level, in pixels; each next one has twice that.
        transform: torchvision's options of resizing and normalisation.
    """
    sizes = tuple((round(anchor * 2**level),) for level in range(5))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    detector: nn.Module = MaskRCNN(
        Fpn(pyramid, 0, LastLevelMaxPool()), classes + 1, rpn_anchor_generator=anchors,
        size_divisible=pyramid.divisor, **transform,
    )  # fmt: skip
    return detector
