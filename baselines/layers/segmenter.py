"""A feature pyramid with a head that gives each pixel a class."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import distributed

IGNORED = 255


class Segmenter(nn.Module):
    """Logits of every pixel; in training a loss of those that are annotated.

    Args:
        pyramid: with `features`, `channels` and `strides`.
        decode_head: from maps to logits (B, classes, h, w) at the stride of the first map.
        auxiliary_head: the same from the map `auxiliary_index` alone; its loss has the weight `auxiliary_weight`.
    """

    auxiliary_index = 2
    auxiliary_weight = 0.4

    def __init__(self, pyramid: Any, decode_head: nn.Module, auxiliary_head: nn.Module | None = None) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes, H, W) of images (B, 3, H, W)."""
        maps = self.pyramid.features(images)
        return to_pixels(self.decode_head(maps), self.pyramid.strides[0], images)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy over the annotated pixels, with that of the auxiliary head and the backbone's own.

        Args:
            labels: (B, H, W) classes, 255 where nothing is annotated.
        """
        maps = self.pyramid.features(images)
        total = cross_entropy(to_pixels(self.decode_head(maps), self.pyramid.strides[0], images), labels)
        if self.auxiliary_head is not None:
            index = self.auxiliary_index
            logits = to_pixels(self.auxiliary_head(maps[index]), self.pyramid.strides[index], images)
            total = total + self.auxiliary_weight * cross_entropy(logits, labels)
        return cast(Tensor, total + self.pyramid.own_losses)


def pixel_classifier(channels: int, classes: int) -> nn.Conv2d:
    """Return a 1x1 convolution with small weights and no bias to begin with."""
    classifier = nn.Conv2d(channels, classes, kernel_size=1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.constant_(cast(Tensor, classifier.bias), 0.0)
    return classifier


def to_pixels(logits: Tensor, stride: int, images: Tensor) -> Tensor:
    """Return logits (B, C, H, W) of maps (B, C, ceil(H / stride), ceil(W / stride)), bilinear."""
    height, width = images.shape[-2:]
    size = [side * stride for side in logits.shape[-2:]]
    # Cells that reach over the border are resized with the others, so that none moves.
    whole = functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    return whole[..., :height, :width]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the pixels that are annotated; 0 where there are none.

    Of several ranks each returns its sum over the mean number, so that the mean over the ranks is that of all pixels.
    """
    total = functional.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum")
    annotated = distributed.total((labels != IGNORED).sum())
    return total * distributed.count() / torch.clamp(annotated, min=1)
