"""Panoptic FPN: Mask R-CNN for things, and a branch on the same levels for stuff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.registry import PANOPTIC_SEGMENTERS
from tasks.panoptic import PanopticProtocol


@PANOPTIC_SEGMENTERS.register("panoptic_fpn")
@dataclass(kw_only=True)
class PanopticFpn(PanopticProtocol):
    """Panoptic FPN: Mask R-CNN for things, and a branch on the same levels for stuff."""

    head: ClassVar[str] = "panoptic_fpn"
    anchor: ClassVar[float] = 32.0
