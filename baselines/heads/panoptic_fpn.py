"""Panoptic FPN: Mask R-CNN for things, and a branch on the same levels that gives each pixel a kind of stuff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from baselines.layers.conv import ConvGn
from baselines.layers.fpn import Fpn
from baselines.layers.scale_head import WIDTH, add_up, scale_heads
from baselines.layers.segmenter import IGNORED, cross_entropy, pixel_classifier, to_pixels
from harness.models import ModelCard
from harness.registry import HEADS


class PanopticFpn(MaskRCNN):  # type: ignore[misc]
    """Torchvision's Mask R-CNN with a semantic branch on its feature pyramid network.

    Targets and results have an entry more: `semantic`, the class (H, W) of each pixel. 0 stands for all things, 1 and
    above for stuff; 255 in targets where nothing is annotated.

    Args:
        stuff: kinds of stuff.
        semantic_weight: of the branch's loss, beside those of Mask R-CNN.

    Source: Kirillov et al. 2019 (arXiv:1901.02446), section 3; the loss as in detectron2's `PanopticFPN`.
    """

    def __init__(self, backbone: Fpn, classes: int, stuff: int, semantic_weight: float, **options: Any) -> None:
        super().__init__(backbone, classes, **options)
        self.strides = backbone.pyramid.strides
        self.semantic_weight = semantic_weight
        self.scale_heads = scale_heads(backbone.out_channels, self.strides, ConvGn)
        self.conv_seg = pixel_classifier(WIDTH, 1 + stuff)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return the losses by name in training, else what is found in each image, at its size.

        Args:
            images: (3, H, W), of any sizes, in 0..1.
        """
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        levels = self.backbone(batch.tensors)
        logits = self._semantic(levels, batch.tensors)
        proposals, losses = self.rpn(batch, levels, targets)
        found, more = self.roi_heads(levels, proposals, batch.image_sizes, targets)
        if targets is not None and self.training:
            labels = _labels(targets, batch.image_sizes, logits)
            return {**losses, **more, "loss_semantic": self.semantic_weight * cross_entropy(logits, labels)}
        found = self.transform.postprocess(found, batch.image_sizes, sizes)
        for one, own, (height, width), size in zip(found, logits, batch.image_sizes, sizes, strict=True):
            # What was padded is cut off before pixels are moved to where they were in the picture.
            resized = functional.interpolate(
                own[None, :, :height, :width], size=size, mode="bilinear", align_corners=False
            )
            one["semantic"] = resized[0].argmax(dim=0)
        return found

    def _semantic(self, levels: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits (B, 1 + stuff, H, W) of a batch of images."""
        shared = [levels[str(index)] for index in range(len(self.strides))]
        return to_pixels(self.conv_seg(add_up(self.scale_heads, shared)), self.strides[0], images)


def _labels(targets: Sequence[Mapping[str, Tensor]], sizes: Sequence[tuple[int, int]], logits: Tensor) -> Tensor:
    """The classes (B, H, W) of a batch that was resized and padded."""
    labels = logits.new_full((len(targets), *logits.shape[-2:]), IGNORED, dtype=torch.long)
    for one, target, (height, width) in zip(labels, targets, sizes, strict=True):
        semantic = target["semantic"][None, None].float()
        one[:height, :width] = functional.interpolate(semantic, size=(height, width), mode="nearest")[0, 0].long()
    return labels


@HEADS.register(
    "panoptic_fpn",
    ModelCard(
        title="Panoptic Feature Pyramid Networks",
        paper="arXiv:1901.02446",
        source="torchvision's Mask R-CNN; the branch and the weight of its loss: facebookresearch/detectron2",
    ),
)
def panoptic_fpn(
    pyramid: Any, things: int, stuff: int, anchor: float = 32.0, semantic_weight: float = 0.5, **transform: Any
) -> nn.Module:
    """Build the segmenter on a pyramid, with an FPN of strides 4 to 64; labels of things and of stuff count from 1.

    Args:
        anchor: side of the anchors of the finest level, in pixels; each next one has twice that.
        transform: torchvision's options of resizing and normalisation.
    """
    sizes = tuple((round(anchor * 2**level),) for level in range(5))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return PanopticFpn(
        Fpn(pyramid, 0, LastLevelMaxPool()), things + 1, stuff, semantic_weight, rpn_anchor_generator=anchors,
        size_divisible=pyramid.divisor, **transform,
    )  # fmt: skip
