"""FCOS: boxes of one stage from the points in them, without anchors."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from baselines.layers.fpn import Fpn
from harness.models import ModelCard
from harness.registry import HEADS


@HEADS.register(
    "fcos",
    ModelCard(
        title="FCOS: Fully Convolutional One-Stage Object Detection", paper="arXiv:1904.01355", source="torchvision"
    ),
)
def fcos(pyramid: Any, classes: int, anchor: float = 8.0, **transform: Any) -> nn.Module:
    """Build torchvision's detector on a pyramid, with an FPN of strides 8 to 128; labels count from 0.

    Args:
        anchor: side that the finest level counts boxes in, in pixels; each next one has twice that.
        transform: torchvision's options of resizing and normalisation.
    """
    anchors = AnchorGenerator(tuple((round(anchor * 2**level),) for level in range(5)), ((1.0,),) * 5)
    detector: nn.Module = FCOS(
        Fpn(pyramid, 1, LastLevelP6P7(256, 256)), classes, anchor_generator=anchors,
        size_divisible=pyramid.divisor, **transform,
    )  # fmt: skip
    return detector
