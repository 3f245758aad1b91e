"""UPerNet, with the auxiliary head in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.registry import SEGMENTERS
from tasks.segmentation import SegmentationProtocol


@SEGMENTERS.register("upernet")
@dataclass(kw_only=True)
class UperNet(SegmentationProtocol):
    """UPerNet, with the auxiliary head in training."""

    head: ClassVar[str] = "upernet"
