"""Maps at strides 4, 8, 16 and 32 of any backbone, for tasks that need every pixel, at any size of image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import BenchError, ModelError, reason
from harness.factory import method, parameters_of
from harness.features import maps
from harness.models import AttentionContext

LEVELS = (4, 8, 16, 32)
PATCHES = (1, 14)  # that images may have to divide into, beside powers of two
PROBE = 2  # images; batch normalisation in training needs more than one value

Read = Callable[[Tensor, AttentionContext], Sequence[Tensor]]


@dataclass(frozen=True)
class Taps:
    """Where maps are taken from a backbone.

    Args:
        read: from images to the maps (B, C_i, h_i, w_i); leaves in the context what the backbone's mixers leave.
        channels, strides: of the maps.
        origin: in words, for records.
        bare: whether no norm is at the end of every map.
    """

    read: Read
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    origin: str
    bare: bool = False


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

    Args:
        layers: of these the maps are taken, see `harness.blocks.reader`; by default where the backbone says.
        layout: of a stranger's layers, see `harness.features.maps`.
        size: height and width of images that the backbone can be tried with.
        frozen: the backbone stays in eval mode, and none of its parameters changes.
        norm_eval: batch normalisation of the backbone keeps its statistics in training.
        native: the backbone's own maps as they are, with nothing learned on top, at `strides` of its own.

    Raises:
        ModelError: the backbone does not say where its maps are, or does not take the size.

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
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen = frozen
        self.norm_eval = norm_eval
        self.own_losses: Tensor | float = 0.0
        self._tapped = partial(_tapped, layers=layers, layout=layout, size=size)
        images, self.taps = self._tapped(backbone)
        self.divisor = math.lcm(*map(_power_of_two, self.taps.strides), *self.taps.strides, _partition(backbone))
        for parameter in _unused(backbone, self._maps, images) if not frozen else backbone.parameters():
            parameter.requires_grad_(False)
        strides = self.taps.strides
        self.strides = strides if native else LEVELS
        self._sources = [n if native else _source(strides, n) for n in range(len(self.strides))]
        levels = [
            Level(self.taps.channels[source], strides[source], target, self.taps.bare and not native)
            for source, target in zip(self._sources, self.strides, strict=True)
        ]
        self.channels = tuple(level.channels for level in levels)
        self.levels = nn.ModuleList(levels).to(images.device)

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
        self.ratio = 1.0 if stride == target else stride / _power_of_two(stride)
        self.norm = LayerNorm2d(channels, eps=1e-6) if norm else nn.Identity()
        steps: list[nn.Module] = []
        stride = target if stride == target else _power_of_two(stride)
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

    def all_of(inputs: Tensor, **options: Any) -> Sequence[Tensor]:
        found: Sequence[Tensor] = module.forward_intermediates(inputs, intermediates_only=True, **options)
        return found

    every = _measured(module, lambda inputs, _: all_of(inputs), images, "")
    last = {stride: index for index, stride in enumerate(every.strides) if stride >= LEVELS[0]}
    chosen = sorted(last.values())
    if len(last) == 1:
        return Taps(
            lambda inputs, _: all_of(inputs, indices=chosen, norm=True),
            (every.channels[chosen[0]],), (every.strides[chosen[0]],), "the last block, normalised",
        )  # fmt: skip
    normed = any(isinstance(part, nn.LayerNorm) for part in module.modules())
    return Taps(
        lambda inputs, _: all_of(inputs, indices=chosen), tuple(every.channels[i] for i in chosen),
        tuple(every.strides[i] for i in chosen), "the last block of each stage", bare=normed,
    )  # fmt: skip


def _measured(module: nn.Module, read: Read, images: Tensor, origin: str) -> Taps:
    """Run a backbone once to see the channels and strides of its maps.

    Raises:
        ModelError: it fails, or has no maps.
    """
    training = module.training
    module.eval()
    failure: Exception | None = None
    try:
        for patch in PATCHES:
            padded = pad_to_multiple(images, math.lcm(LEVELS[-1], patch, _partition(module)))
            try:
                with torch.no_grad():
                    found = read(padded, AttentionContext((0, 0)))
            except BenchError:
                raise
            except Exception as error:
                failure = failure or error
                continue
            strides = [round(padded.shape[-1] / one.shape[-1]) for one in found]
            # What a network of one size was padded to is no rule for other images.
            if all(stride % patch == 0 for stride in strides):
                return Taps(read, tuple(one.shape[1] for one in found), tuple(strides), origin)
    finally:
        module.train(training)
    height, width = images.shape[-2:]
    cause = reason(failure) if failure else "they have no whole stride"
    raise ModelError(
        f"{type(module).__name__} gives no maps of images of {height} x {width} ({cause}). A network of one size takes "
        "--image-size with that size, and test=slide."
    ) from failure


def pad_to_multiple(images: Tensor, divisor: int) -> Tensor:
    """Return images (B, C, H, W) with zeros on the right and below, so that their sides divide."""
    height, width = images.shape[-2:]
    return functional.pad(images, (0, -width % divisor, 0, -height % divisor))


def _source(strides: Sequence[int], index: int) -> int:
    """Which of the backbone's maps the level of stride `LEVELS[index]` is made from."""
    whole = [_power_of_two(stride) for stride in strides]
    if len(set(whole)) == 1 and len(whole) == len(LEVELS):
        return index
    coarser = [stride for stride in whole if stride >= LEVELS[index]]
    return whole.index(min(coarser) if coarser else max(whole))


def _unused(backbone: nn.Module, read: Callable[[Tensor], Sequence[Tensor]], images: Tensor) -> list[nn.Parameter]:
    """The parameters that no map depends on, such as a classifier's."""
    found = read(images[:1])
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    total = sum(one.float().sum() for one in found)
    if not parameters or not isinstance(total, Tensor) or not total.requires_grad:
        return []
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def _power_of_two(stride: int) -> int:
    """The least power of two that is no smaller: patches of 14 pixels come to a level of stride 16."""
    return 1 << max(0, math.ceil(math.log2(stride)))


def _partition(module: nn.Module) -> int:
    """What sides of images must divide into for networks like MaxViT, whose windows must fill each map."""
    sides = {side for part in module.modules() for side in getattr(part, "partition_size", ()) if isinstance(side, int)}
    return LEVELS[-1] * math.lcm(*sides) if sides else 1
