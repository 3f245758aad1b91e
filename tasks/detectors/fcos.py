"""FCOS: boxes, without anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.registry import DETECTORS
from tasks.detection import DetectionProtocol


@DETECTORS.register("fcos")
@dataclass(kw_only=True)
class Fcos(DetectionProtocol):
    """FCOS: boxes, without anchors."""

    head: ClassVar[str] = "fcos"
    anchor: ClassVar[float] = 8.0
