"""Mask R-CNN: boxes and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.registry import DETECTORS
from tasks.detection import DetectionProtocol


@DETECTORS.register("mask_rcnn")
@dataclass(kw_only=True)
class MaskRcnn(DetectionProtocol):
    """Mask R-CNN: boxes and masks."""

    head: ClassVar[str] = "mask_rcnn"
    anchor: ClassVar[float] = 32.0
    masks: ClassVar[bool] = True
    first_label: ClassVar[int] = 1
