"""What is done to training images before a model sees them, through timm's transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from harness.preprocessing import crop, normalize
from harness.record import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

# The most that leaves labels true: crops and all else; a mirror image; nothing.
Geometry = Literal["crop", "flip", "none"]


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed.

    Args:
        geometry: `crop` for random crops with flips, `flip` for flips of the evaluation crop, `none` for that crop.
        least_area: of a random crop, over the image's.
        randaugment: magnitude of RandAugment, two operations an image; 0 for none.
        erasing: probability of random erasing.
    """

    geometry: Geometry = "crop"
    least_area: float = 0.08
    randaugment: int = 0
    erasing: float = 0.0


def train_transform(augmentation: Augmentation, preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """Return the function from a decoded PIL image to a normalised (3, H, W) tensor.

    Size, interpolation, mean and standard deviation are those of the evaluation. It draws from the global generators.
    """
    if augmentation.geometry != "crop":
        flip = 0.5 if augmentation.geometry == "flip" else 0.0
        return partial(_still, crop(preprocessing), preprocessing, flip)
    from timm.data import create_transform

    made = create_transform(
        input_size=(3, *(preprocessing.image_size or ())),
        is_training=True,
        scale=(augmentation.least_area, 1.0),
        color_jitter=None,
        auto_augment=f"rand-m{augmentation.randaugment}-mstd0.5-inc1" if augmentation.randaugment else None,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        re_prob=augmentation.erasing,
        re_mode="pixel",
    )
    for part in made.transforms:
        for operation in getattr(part, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterized
    transform: Callable[[Any], Tensor] = made
    return transform


def _posterized(image: Any, bits: int, **_: Any) -> Any:
    """An image with so many bits a channel. Timm asks for none at the greatest strength, which Pillow 13 refuses."""
    from PIL import ImageOps

    return image.point(lambda _: 0) if bits == 0 else ImageOps.posterize(image, bits)


def _still(cut: Callable[[Any], Tensor], preprocessing: Preprocessing, flip: float, image: Any) -> Tensor:
    """The evaluation crop, mirrored with a probability."""
    import torch

    pixels = cut(image)
    return normalize(pixels.flip(-1) if torch.rand(()) < flip else pixels, preprocessing)
