"""Decoding image files."""

from __future__ import annotations

import io
import warnings
from typing import Any

from harness.errors import DataError, reason


def decode(content: bytes, decoder: str, name: str) -> Any:
    """Decode an image file to RGB.

    Args:
        decoder: `pil` gives a PIL image, `torchvision` a (3, H, W) uint8 tensor.
        name: of the file, for messages.

    Raises:
        DataError: the content is not a whole, readable image.
    """
    try:
        with warnings.catch_warnings():
            # Damaged EXIF warns and does not touch the pixels; a bomb is an error at twice the size that warns.
            warnings.simplefilter("ignore")
            return _decode_torchvision(content) if decoder == "torchvision" else _decode_pil(content)
    except ImportError:
        raise
    except Exception as error:
        # Pillow names the address of a buffer, which differs from run to run.
        cause = "of no format that is known" if "cannot identify" in str(error) else reason(error)
        raise DataError(f"{name} is not a readable image ({cause}). Restore the file, or remove it.") from error


def _decode_pil(content: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGB")


def _decode_torchvision(content: bytes) -> Any:
    import torch
    from torchvision.io import ImageReadMode, decode_image

    image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    if image.ndim != 3:
        raise ValueError(f"it holds {len(image)} frames")
    return image
