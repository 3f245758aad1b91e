"""RetinaNet: boxes of one stage from anchors, with the focal loss."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from baselines.layers.fpn import Fpn
from harness.models import ModelCard
from harness.registry import HEADS


@HEADS.register(
    "retinanet",
    ModelCard(
        title="Focal Loss for Dense Object Detection",
        paper="arXiv:1708.02002",
        source="torchvision's second version",
        notes="group normalisation in the towers, generalised IoU as the loss of boxes",
    ),
)
def retinanet(pyramid: Any, classes: int, anchor: float = 32.0, **transform: Any) -> nn.Module:
    """Build torchvision's detector on a pyramid, with an FPN of strides 8 to 128; labels count from 0.

    It is torchvision's second version, `retinanet_resnet50_fpn_v2`: towers without a norm begin with outputs that
    hardly depend on the image, and a short training ends before they do.

    Args:
        anchor: side of the least anchors of the finest level, in pixels; each next one has twice that.
        transform: torchvision's options of resizing and normalisation.
    """
    sizes = tuple(tuple(int(anchor * 2 ** (level + third / 3)) for third in range(3)) for level in range(5))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    backbone = Fpn(pyramid, 1, LastLevelP6P7(256, 256))
    head = RetinaNetHead(
        backbone.out_channels, anchors.num_anchors_per_location()[0], classes, norm_layer=partial(nn.GroupNorm, 32)
    )
    head.regression_head._loss_type = "giou"
    detector: nn.Module = RetinaNet(
        backbone, classes, anchor_generator=anchors, head=head, size_divisible=pyramid.divisor, **transform
    )
    return detector
