"""Training samples of dense tasks: an image with labels, or with boxes and masks, augmented together.

What is drawn comes from the global generators, which are seeded by the seed and the sample's position.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError
from harness.training import seed_generators
from tasks.data.distortion import distort
from tasks.data.picture import read_picture
from tasks.data.train_loader import Order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tasks.data.ade20k import LabelMaps
    from tasks.data.coco import Instances

IGNORED = 255
CROPS = 10  # that are tried until no class fills one


@dataclass(frozen=True)
class Scales:
    """How images are resized.

    Args:
        short, long: the sides in pixels that the two sides of an image stay within, before `least` to `most` times
            that; the proportions stay.
        crop: height and width of what is cut out.
        largest_share: of one class in a crop, where another can be found.
        distort: whether brightness, contrast, saturation and hue are changed, see `tasks.data.distortion`.
    """

    short: int
    long: int
    crop: tuple[int, int]
    least: float = 0.5
    most: float = 2.0
    largest_share: float = 0.75
    distort: bool = True

    def size(self, image: tuple[int, int], ratio: float = 1.0) -> tuple[int, int]:
        """Return the width and height that an image of a width and height is resized to."""
        width, height = image
        factor = min(
            int(self.long * ratio) / max(width, height), int(self.short * ratio) / min(width, height)
        )  # fmt: skip
        return max(1, round(width * factor)), max(1, round(height * factor))


@dataclass
class Samples:
    """An endless, shuffled sequence of samples; one that cannot be read is its error, which processes keep whole.

    Args:
        count: of the images.
        make: from an image's number to its sample.
    """

    count: int
    seed: int
    make: Callable[[int], Any]

    def __post_init__(self) -> None:
        self._order = Order(self.count, self.seed)

    def __getitem__(self, position: int) -> Any:
        seed_generators(self.seed, "item", position)
        try:
            return self.make(self._order(position))
        except DataError as error:
            return error


@dataclass(frozen=True)
class SegmentationSample:
    """Makes a crop (3, h, w) of bytes with its labels (h, w), 255 where nothing is annotated.

    Args:
        file: from an image's name to its file.
    """

    labels: LabelMaps
    file: Callable[[str], Path]
    scales: Scales

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the sample of an image."""
        import numpy as np
        from PIL import Image

        name = self.labels.names[number]
        raw = self.labels.read(name)
        image = read_picture(self.file(name), (raw.shape[1], raw.shape[0]))
        classes = np.where(raw == 0, IGNORED, raw.astype(np.int16) - 1).astype(np.uint8)
        size = self.scales.size(image.size, random.uniform(self.scales.least, self.scales.most))
        image = image.resize(size, Image.Resampling.BILINEAR)
        classes = np.asarray(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST))
        pixels = np.asarray(image)
        top, left = _corner(classes, self.scales)
        height, width = self.scales.crop
        pixels, classes = (array[top : top + height, left : left + width] for array in (pixels, classes))
        if random.random() < 0.5:
            pixels, classes = pixels[:, ::-1], classes[:, ::-1]
        return _padded(pixels, classes, self.scales)


def _corner(classes: NDArray[np.uint8], scales: Scales) -> tuple[int, int]:
    """The top and left of a crop; one in which no class fills too much, where a few tries find it."""
    import numpy as np

    height, width = scales.crop
    for _ in range(CROPS):
        top = random.randint(0, max(0, classes.shape[0] - height))
        left = random.randint(0, max(0, classes.shape[1] - width))
        counts = np.bincount(classes[top : top + height, left : left + width].ravel(), minlength=256)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() < scales.largest_share * counts.sum():
            break
    return top, left


def _padded(pixels: NDArray[np.uint8], classes: NDArray[np.uint8], scales: Scales) -> tuple[Tensor, Tensor]:
    """Tensors of the crop's size: black and without labels on the right and below, colours changed."""
    import torch
    from torch.nn import functional

    image = torch.from_numpy((distort(pixels) if scales.distort else pixels).copy()).permute(2, 0, 1)
    margin = (0, scales.crop[1] - image.shape[2], 0, scales.crop[0] - image.shape[1])
    return functional.pad(image, margin), functional.pad(torch.from_numpy(classes.copy()), margin, value=IGNORED)


@dataclass(frozen=True)
class DetectionSample:
    """Makes an image (3, H, W) of floats in 0..1 with its objects: boxes, labels and masks; crowds are left out.

    Args:
        folder: of the images.
        chosen: the images that have objects.
        masks: whether masks are made.
        first_label: 1 where the detector counts the background as 0.
    """

    instances: Instances
    folder: Path
    chosen: Sequence[int]
    objects: dict[int, list[int]]
    masks: bool
    first_label: int

    def __call__(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sample of an image."""
        import torch

        index = self.chosen[number]
        info = self.instances.images[index]
        pixels = to_tensor(read_picture(self.folder / info.file_name, (info.width, info.height)))
        label = self.instances.label()
        own = [self.instances.annotations[row] for row in self.objects[index]]
        boxes = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in (one.bbox for one in own)])
        target = {"boxes": boxes, "labels": torch.tensor([label[a.category_id] + self.first_label for a in own])}
        if self.masks:
            target["masks"] = torch.stack([_mask(one, info) for one in own])
        if random.random() < 0.5:
            width = pixels.shape[2]
            pixels = pixels.flip(2)
            target["boxes"] = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
            target |= {"masks": target["masks"].flip(2)} if self.masks else {}
        return pixels, target


def objects_by_image(instances: Instances) -> dict[int, list[int]]:
    """Return the annotations of each image that has any that can be trained on: no crowd, and an area."""
    number = instances.number()
    found: dict[int, list[int]] = {}
    for row, one in enumerate(instances.annotations):
        if not one.iscrowd and min(one.bbox[2:]) >= 1:
            found.setdefault(number[str(one.image_id)], []).append(row)
    return found


def _mask(annotation: Any, image: Any) -> Tensor:
    """The mask (H, W) of an object."""
    import torch

    from tasks.data.masks import to_code
    from tasks.metrics.overlap import draw_mask

    code = to_code(annotation.segmentation, image, f"annotation {annotation.id}")
    return torch.from_numpy(draw_mask(code))


def to_tensor(image: Any) -> Tensor:
    """A PIL image as floats (3, H, W) in 0..1."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
