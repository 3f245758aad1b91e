"""Pictures whose annotation says how large they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.images import decode


def read_picture(path: Path, size: tuple[int, int]) -> Any:
    """Return an image file as a PIL picture in RGB.

    Args:
        size: width and height that the annotation is for.

    Raises:
        DataError: it is not there, cannot be read, or is of another size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The image {path.name} cannot be read ({error.strerror}). Restore it.") from error
    picture = decode(content, "pil", path.name)
    if picture.size != size:
        raise DataError(
            f"{path.name} is {picture.size[0]} x {picture.size[1]} pixels; expected {size[0]} x {size[1]}, as its "
            "annotation says. Restore both."
        )
    return picture
