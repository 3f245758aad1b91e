"""A linear classifier on the backbone's own maps, frozen unless asked otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.registry import SEGMENTERS
from tasks.segmentation import SegmentationProtocol


@SEGMENTERS.register("linear")
@dataclass(kw_only=True)
class Linear(SegmentationProtocol):
    """A linear classifier on the backbone's own maps, frozen unless asked otherwise."""

    head: ClassVar[str] = "linear"
    frozen: bool = True
