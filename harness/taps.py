"""Where the maps of any backbone are, and what images must divide into before it takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import BenchError, ModelError, reason
from harness.factory import method, parameters_of
from harness.features import maps
from harness.models import AttentionContext

LEVELS = (4, 8, 16, 32)
EXTRA = (1, 14, 64)  # what images may have to divide into, beside the strides of the levels
BLOCKED = ("HaloAttn", "BilinearAttnTransform")  # timm's, whose blocks must fill each map

Read = Callable[[Tensor, AttentionContext], Sequence[Tensor]]


@dataclass(frozen=True)
class Taps:
    """Where maps are taken from a backbone.

    Args:
        read: from images to the maps (B, C_i, h_i, w_i); leaves in the context what the backbone's mixers leave.
        channels, strides: of the maps.
        origin: in words, for records.
        bare: whether no norm is at the end of every map.
        uneven: whether the maps were of no whole stride, as convolutions without padding leave them, and are resized
            to the size of the images over the nearest power of two.
    """

    read: Read
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    origin: str
    bare: bool = False
    uneven: bool = False


def find_taps(module: nn.Module, images: Tensor, layers: Sequence[str] = (), layout: str = "auto") -> Taps:
    """Return where the maps of a backbone are: the layers that are named, its own word, or timm's.

    Raises:
        ModelError: it says nothing, or cannot be run.
    """
    declared = method(module, "features") and hasattr(module, "channels") and hasattr(module, "strides")
    if layers:
        read = maps(module, layers, layout)
        return _measured(module, lambda inputs, _: read(inputs), images, f"layers {', '.join(layers)}")
    if declared:
        return _declared(module)
    if method(module, "forward_intermediates"):
        return _of_timm(module, images)
    raise ModelError(
        f"{type(module).__name__} does not say where its maps are: expected the members channels, strides and "
        "features(images), or the names of layers, such as layers=layer1+layer2+layer3+layer4, or layers=last."
    )


def _declared(module: Any) -> Taps:
    """The three members of a `FeaturePyramid`."""
    takes_context = "context" in parameters_of(module.features)

    def read(images: Tensor, context: AttentionContext) -> Sequence[Tensor]:
        found: Sequence[Tensor] = module.features(images, context=context) if takes_context else module.features(images)
        return found

    channels, strides = tuple(module.channels), tuple(module.strides)
    if not channels or len(channels) != len(strides):
        raise ModelError(f"{type(module).__name__} has channels {channels} and strides {strides}: expected as many.")
    return Taps(read, channels, strides, "the model's own pyramid")


def _of_timm(module: Any, images: Tensor) -> Taps:
    """The last map of each stride of timm's `forward_intermediates`; of a network of one stride, after its norm."""

    def reader(**options: Any) -> Read:
        return lambda inputs, _: module.forward_intermediates(inputs, intermediates_only=True, **options)

    every = _measured(module, reader(), images, "")
    last = {stride: index for index, stride in enumerate(every.strides) if stride >= LEVELS[0]}
    chosen = sorted(last.values())
    if len(last) == 1:
        # The norm may have other channels than the blocks, as the neck of SAM's encoder has.
        return _measured(module, reader(indices=chosen, norm=True), images, "the last block, normalised")
    channels, strides = (tuple(sizes[index] for index in chosen) for sizes in (every.channels, every.strides))
    read = reader(indices=chosen)
    normed = any(isinstance(part, nn.LayerNorm) for part in module.modules())
    return Taps(
        _fitted(read, strides) if every.uneven else read, channels, strides, "the last block of each stage",
        bare=normed, uneven=every.uneven,
    )  # fmt: skip


def _measured(module: nn.Module, read: Read, images: Tensor, origin: str) -> Taps:
    """Run a backbone once to see the channels and strides of its maps.

    Raises:
        ModelError: it fails.
    """
    failure: Exception | None = None
    uneven: Taps | None = None
    for extra in EXTRA:
        padded = pad_to_multiple(images, math.lcm(LEVELS[-1], extra, partition(module)))
        try:
            with torch.no_grad(), evaluated(module):
                found = read(padded, AttentionContext((0, 0)))
        except BenchError:
            raise
        except Exception as error:
            failure = failure or error
            continue
        channels = tuple(one.shape[1] for one in found)
        ratios = [padded.shape[-1] / one.shape[-1] for one in found]
        strides = tuple(map(round, ratios))
        # What a network of one size was padded to is no rule for other images.
        if _plausible(ratios) and math.lcm(*strides) % extra == 0:
            return Taps(read, channels, strides, origin)
        strides = tuple(1 << round(math.log2(ratio)) for ratio in ratios)
        uneven = uneven or Taps(_fitted(read, strides), channels, strides, origin, uneven=True)
    if uneven:
        return uneven
    raise refused(module, images, reason(failure) if failure else "it has none") from failure


def _plausible(ratios: Sequence[float]) -> bool:
    """Whether pixels of an image over those of its maps are strides: a map of few pixels may have been rounded."""
    if any(ratio != round(ratio) or (ratio > LEVELS[-1] and math.log2(ratio) % 1) for ratio in ratios):
        return False
    return all(coarse % fine == 0 for fine, coarse in pairwise(sorted(ratios)))


def _fitted(read: Read, strides: Sequence[int]) -> Read:
    """Maps resized (bilinear) to the size of the images over their strides."""

    def fit(images: Tensor, context: AttentionContext) -> list[Tensor]:
        height, width = images.shape[-2:]
        return [
            functional.interpolate(one.float(), size=(height // s, width // s), mode="bilinear", align_corners=False)
            for one, s in zip(read(images, context), strides, strict=True)
        ]

    return fit


def refused(module: nn.Module, images: Tensor, cause: str) -> ModelError:
    """What is said of a backbone that does not take images."""
    height, width = images.shape[-2:]
    return ModelError(
        f"{type(module).__name__} gives no maps of images of {height} x {width} ({cause}). A network of one size takes "
        "--image-size with that size, and test=slide of ade20k."
    )


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Run a module in eval mode, and leave each of its parts in the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def pad_to_multiple(images: Tensor, divisor: int) -> Tensor:
    """Return images (B, C, H, W) with zeros on the right and below, so that their sides divide."""
    height, width = images.shape[-2:]
    return functional.pad(images, (0, -width % divisor, 0, -height % divisor))


def power_of_two(stride: int) -> int:
    """The least power of two that is no smaller: patches of 14 pixels come to a level of stride 16."""
    return 1 << max(0, math.ceil(math.log2(stride)))


def partition(module: nn.Module) -> int:
    """What sides of images must divide into for networks like MaxViT, whose windows must fill each map."""
    parts = list(module.modules())
    sides = {side for part in parts for side in getattr(part, "partition_size", ()) if isinstance(side, int)}
    sides |= {int(part.block_size) for part in parts if type(part).__name__ in BLOCKED}  # type: ignore[arg-type]
    return LEVELS[-1] * math.lcm(*sides) if sides else 1
