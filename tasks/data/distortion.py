"""Photometric distortion: the same things in other light and other colours."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

BRIGHTNESS = 32.0  # of 255, the most that is added
FACTORS = (0.5, 1.5)  # of contrast, and of saturation
HUE = 36.0  # degrees on the circle of colours


def distort(pixels: Pixels) -> Pixels:
    """Return pixels (H, W, 3) in RGB with brightness, contrast, saturation and hue changed, each half the time.

    Contrast comes before the colours or after them. The channels stay in their order, which torchvision's
    `RandomPhotometricDistort` does not leave them in. What is drawn comes from Python's generator.

    Source: mmsegmentation's `PhotoMetricDistortion`.
    """
    pixels = _linear(pixels, shift=_drawn(-BRIGHTNESS, BRIGHTNESS, usual=0.0))
    contrast, before = _drawn(*FACTORS, usual=1.0), random.random() < 0.5
    if before:
        pixels = _linear(pixels, contrast)
    pixels = _coloured(pixels, saturation=_drawn(*FACTORS, usual=1.0), hue=_drawn(-HUE, HUE, usual=0.0))
    return pixels if before else _linear(pixels, contrast)


def _drawn(least: float, most: float, usual: float) -> float:
    """A number between two half the time, and what changes nothing in the other half."""
    return random.uniform(least, most) if random.random() < 0.5 else usual


def _linear(pixels: Pixels, factor: float = 1.0, shift: float = 0.0) -> Pixels:
    """Pixels times a factor plus a shift, within 0 and 255."""
    import numpy as np

    if factor == 1.0 and shift == 0.0:
        return pixels
    changed: Pixels = np.clip(pixels.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)
    return changed


def _coloured(pixels: Pixels, saturation: float, hue: float) -> Pixels:
    """Pixels with their saturation times a factor and their hue turned by so many degrees."""
    import numpy as np
    from PIL import Image

    if saturation == 1.0 and hue == 0.0:
        return pixels
    planes = np.array(Image.fromarray(pixels).convert("HSV"))
    planes[..., 0] = (planes[..., 0].astype(int) + round(hue / 360 * 256)) % 256
    planes[..., 1] = _linear(planes[..., 1], saturation)
    return np.asarray(Image.fromarray(planes, "HSV").convert("RGB"))
