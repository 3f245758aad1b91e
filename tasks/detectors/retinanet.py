"""RetinaNet: boxes, from anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.registry import DETECTORS
from tasks.detection import DetectionProtocol


@DETECTORS.register("retinanet")
@dataclass(kw_only=True)
class RetinaNet(DetectionProtocol):
    """RetinaNet: boxes, from anchors."""

    head: ClassVar[str] = "retinanet"
    anchor: ClassVar[float] = 32.0
