"""Maps at strides 4, 8, 16 and 32 of any backbone, for tasks that need every pixel, at any size of image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import BenchError, ModelError, reason
from harness.models import AttentionContext
from harness.taps import LEVELS, Taps, evaluated, find_taps, pad_to_multiple, partition, power_of_two, refused

PROBE = 2  # images; batch normalisation in training needs more than one value


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of maps (B, C, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        """Return maps of the same shape."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class Pyramid(nn.Module):
    """A backbone with maps at four strides; a `FeaturePyramid`.

    A level whose stride the backbone has is its own map, where that is bare with a new layer normalisation, as the
    detectors of Swin and ConvNeXt have it. Other levels come from the nearest coarser map by deconvolutions of stride
    2, each with half the channels, or from the coarsest by max pooling: of a plain ViT that is the simple feature
    pyramid. Four maps of one stride give one level each.

    A backbone is tried with two images at once, so that one that cannot be used fails before a training and not after.

    Args:
        layers: of these the maps are taken, see `harness.blocks.reader`; by default where the backbone says.
        layout: of a stranger's layers, see `harness.features.maps`.
        size: height and width of images that the backbone can be tried with.
        frozen: the backbone stays in eval mode, and none of its parameters changes.
        norm_eval: batch normalisation of the backbone keeps its statistics in training.
        native: the backbone's own maps as they are, with nothing learned on top, at `strides` of its own.
        any_size: images of other sizes will follow.

    Raises:
        ModelError: the backbone does not say where its maps are, gives others than it says, or does not take a size.

    Source: ViTDet (arXiv:2203.16527), section 3 and appendix A.2.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[str] = (),
        layout: str = "auto",
        *,
        size: tuple[int, int] = (224, 224),
        frozen: bool = False,
        norm_eval: bool = False,
        native: bool = False,
        any_size: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen = frozen
        self.norm_eval = norm_eval
        self.own_losses: Tensor | float = 0.0
        self._tapped = partial(_tapped, layers=layers, layout=layout, size=size)
        images, self.taps = self._tapped(backbone)
        strides = self.taps.strides
        # What is resized anyway asks for no more than the levels do.
        steps = LEVELS if self.taps.uneven else (*map(power_of_two, strides), *strides)
        self.divisor = math.lcm(*steps, partition(backbone))
        self.strides = strides if native else LEVELS
        self._sources = [n if native else _source(strides, n) for n in range(len(self.strides))]
        with torch.set_grad_enabled(not frozen):
            found = self._tried(images[:1])
        used = [found[source] for source in sorted(set(self._sources))]
        for parameter in _unused(backbone, used) if not frozen else backbone.parameters():
            parameter.requires_grad_(False)
        if any_size:
            with torch.no_grad():
                # The longer side grows: of a square the shape of a map may not tell where its channels are.
                wide = images.shape[3] > images.shape[2]
                self._tried(functional.pad(images[:1], (0, self.divisor * wide, 0, self.divisor * (not wide))))
        levels = [
            Level(self.taps.channels[source], strides[source], target, self.taps.bare and not native)
            for source, target in zip(self._sources, self.strides, strict=True)
        ]
        self.channels = tuple(level.channels for level in levels)
        self.levels = nn.ModuleList(levels).to(images.device)
        # Those of the trial have a graph, which no copy can have.
        self.own_losses = 0.0

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the pyramid."""
        return {
            "maps": self.taps.origin,
            "map_strides": list(self.taps.strides),
            "map_channels": list(self.taps.channels),
            "strides": list(self.strides),
            "channels": list(self.channels),
            "frozen": self.frozen,
            "norm_eval": self.norm_eval,
            "maps_resized": self.taps.uneven,
            "padded_to_multiple_of": self.divisor,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Pyramid:
        """Return a copy whose maps are those of its own backbone."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(
            {name: value if name == "taps" else deepcopy(value, memo) for name, value in vars(self).items()}
        )
        copied.taps = self._tapped(copied.backbone)[1]
        return copied

    def features(self, images: Tensor) -> list[Tensor]:
        """Return maps (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

        Images are padded with zeros on the right and below to what the backbone divides into.
        """
        height, width = images.shape[-2:]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self._maps(images)
        return [
            level(found[source])[..., : -(-height // stride), : -(-width // stride)]
            for level, source, stride in zip(self.levels, self._sources, self.strides, strict=True)
        ]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps, see `features`."""
        return self.features(images)

    def train(self, mode: bool = True) -> Pyramid:
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.norm_eval:
            for part in self.backbone.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        return self

    def _tried(self, images: Tensor) -> Sequence[Tensor]:
        """The backbone's own maps, which are checked against what it says of them.

        Raises:
            ModelError: it fails, or they differ.
        """
        try:
            with evaluated(self.backbone):
                found = self._maps(images)
        except BenchError:
            raise
        except Exception as error:
            raise refused(self.backbone, images, reason(error)) from error
        sides = [side + -side % self.divisor for side in images.shape[-2:]]
        expected = [
            (c, *(side // s for side in sides)) for c, s in zip(self.taps.channels, self.taps.strides, strict=True)
        ]
        shapes = [tuple(one.shape[1:]) for one in found]
        if shapes != expected:
            raise ModelError(
                f"{type(self.backbone).__name__} gives maps (C, h, w) {shapes} of images of {sides[0]} x {sides[1]}; "
                f"expected {expected}, since it has channels {self.taps.channels} and strides {self.taps.strides}."
            )
        return found

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        """The backbone's own maps of padded images; losses of its mixers are kept for the trainer."""
        context = AttentionContext((0, 0))
        found = self.taps.read(pad_to_multiple(images, self.divisor), context)
        self.own_losses = sum((v.sum() for k, v in context.auxiliary.items() if k.endswith("loss")), 0.0)
        return found


class Level(nn.Module):
    """One level of a pyramid, made from one of the backbone's maps.

    Args:
        stride, target: of the map and of the level.
        norm: whether the map gets a layer normalisation first.
    """

    def __init__(self, channels: int, stride: int, target: int, norm: bool) -> None:
        super().__init__()
        self.ratio = 1.0 if stride == target else stride / power_of_two(stride)
        self.norm = LayerNorm2d(channels, eps=1e-6) if norm else nn.Identity()
        steps: list[nn.Module] = []
        stride = target if stride == target else power_of_two(stride)
        for step in range(int(math.log2(max(stride // target, 1)))):
            steps += [LayerNorm2d(channels, eps=1e-6), nn.GELU()] if step else []
            steps.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
            channels //= 2
        # Odd sides keep their last row and column.
        steps += [nn.MaxPool2d(2, 2, ceil_mode=True) for _ in range(int(math.log2(max(target // stride, 1))))]
        self.steps = nn.Sequential(*steps)
        self.channels = channels

    def forward(self, found: Tensor) -> Tensor:
        """Return maps (B, channels, h, w) of the backbone's maps."""
        if self.ratio != 1:
            size = [round(side * self.ratio) for side in found.shape[-2:]]
            found = functional.interpolate(found.float(), size=size, mode="bilinear", align_corners=False)
        made: Tensor = self.steps(self.norm(found))
        return made


def _tapped(backbone: nn.Module, layers: Sequence[str], layout: str, size: tuple[int, int]) -> tuple[Tensor, Taps]:
    """Images that a backbone is tried with, on its device, and where its maps are."""
    images = torch.randn(PROBE, 3, *size, generator=torch.Generator().manual_seed(0))
    images = images.to(next(backbone.parameters(), images).device)
    return images, find_taps(backbone, images, layers, layout)


def _source(strides: Sequence[int], index: int) -> int:
    """Which of the backbone's maps the level of stride `LEVELS[index]` is made from."""
    whole = [power_of_two(stride) for stride in strides]
    if len(set(whole)) == 1 and len(whole) == len(LEVELS):
        return index
    coarser = [stride for stride in whole if stride >= LEVELS[index]]
    return whole.index(min(coarser) if coarser else max(whole))


def _unused(backbone: nn.Module, found: Sequence[Tensor]) -> list[nn.Parameter]:
    """The parameters that no map depends on, such as a classifier's."""
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    total = sum(one.float().sum() for one in found)
    if not parameters or not isinstance(total, Tensor) or not total.requires_grad:
        return []
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]
