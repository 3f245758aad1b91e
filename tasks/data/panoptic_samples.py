"""Training samples of panoptic segmentation: an image with its things, and with a class for every pixel."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.data.dense_samples import IGNORED, to_tensor
from tasks.data.picture import read_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tasks.data.coco_panoptic import Map, Panoptic

OTHER = 0  # the class of all things


@dataclass(frozen=True)
class PanopticSample:
    """Makes an image (3, H, W) of floats in 0..1 with its targets, mirrored half the time.

    `boxes` (N, 4), `labels` (N,) from 1 and `masks` (N, H, W) of the things, without crowds; `semantic` (H, W): 0 on
    things and crowds, from 1 on stuff, 255 on void. Boxes are those of the masks.

    Args:
        folder: of the images.
    """

    panoptic: Panoptic
    folder: Path

    def __call__(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sample of an image."""
        import torch

        from tasks.data.coco_panoptic import read_ids

        image = self.panoptic.images[number]
        pixels = to_tensor(read_picture(self.folder / image.file_name, (image.width, image.height)))
        one = self.panoptic.maps[str(image.id)]
        ids = read_ids(self.panoptic.folder, one, image)
        masks, labels = self._things(one, ids)
        target = {"labels": torch.tensor(labels, dtype=torch.long), "masks": masks, "semantic": self._classes(one, ids)}
        if random.random() < 0.5:
            pixels = pixels.flip(2)
            target |= {name: target[name].flip(-1) for name in ("masks", "semantic")}
        return pixels, {**target, "boxes": _boxes(target["masks"])}

    def _things(self, one: Map, ids: NDArray[np.int64]) -> tuple[Tensor, list[int]]:
        """Masks (N, H, W) and labels of the things; without those that no pixel is left of."""
        import numpy as np
        import torch

        label = self.panoptic.labels(things=True)
        found = [(ids == info.id, info) for info in one.segments_info if info.category_id in label and not info.iscrowd]
        found = [(mask, info) for mask, info in found if mask.any()]
        masks = np.array([mask for mask, _ in found], np.uint8).reshape(-1, *ids.shape)
        return torch.from_numpy(masks), [label[info.category_id] for _, info in found]

    def _classes(self, one: Map, ids: NDArray[np.int64]) -> Tensor:
        """The class (H, W) of each pixel."""
        import numpy as np
        import torch

        label = self.panoptic.labels(things=False)
        classes = np.full(ids.shape, IGNORED, np.uint8)
        for info in one.segments_info:
            classes[ids == info.id] = label.get(info.category_id, OTHER)
        return torch.from_numpy(classes)


def _boxes(masks: Tensor) -> Tensor:
    """Left, top, right and bottom (N, 4) of what masks (N, H, W) cover, right and bottom exclusive."""
    from torchvision.ops import masks_to_boxes

    boxes: Tensor = masks_to_boxes(masks)
    boxes[:, 2:] += 1
    return boxes
