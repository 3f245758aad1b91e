"""A feature pyramid network whose levels are added up at stride 4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.registry import SEGMENTERS
from tasks.segmentation import SegmentationProtocol


@SEGMENTERS.register("semantic_fpn")
@dataclass(kw_only=True)
class SemanticFpn(SegmentationProtocol):
    """A feature pyramid network whose levels are added up at stride 4."""

    head: ClassVar[str] = "semantic_fpn"
