"""From an image file to a model's input: what the model declares, what the user overrides, and the transform itself."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from harness.errors import ModelError, SetupError
from harness.record import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

FINGERPRINT_IMAGES = Path(__file__).parent / "assets" / "fingerprint"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What the field assumes of a network that says nothing; timm has the same default.
DEFAULT = Preprocessing(
    image_size=(224, 224), crop_pct=0.875, crop_mode="center", interpolation="bicubic", antialias=True, decoder="pil",
    mean=IMAGENET_MEAN, std=IMAGENET_STD, source="default",
)  # fmt: skip
CHOICES = {
    "crop_mode": ("center", "squash", "border"),
    "interpolation": ("bilinear", "bicubic", "nearest", "lanczos"),
    "decoder": ("pil", "torchvision"),
    "antialias": (True, False),
}
OVERRIDES = ("image_size", "crop_pct", "crop_mode", "interpolation", "antialias", "decoder", "mean", "std")


def resolve(
    requested: Preprocessing, module: nn.Module, by_task: Mapping[str, Any] = MappingProxyType({})
) -> Preprocessing:
    """Fill a request from what the task asks and the module declares, in this order, and fingerprint the result.

    A module declares with an attribute `preprocessing`, or with timm's `pretrained_cfg`: a mapping with any of
    `input_size` (3, H, W), `crop_pct`, `crop_mode`, `interpolation`, `mean`, `std`, `antialias`, `decoder`.

    Raises:
        ModelError: a declared value cannot be used.
        SetupError: an overriding value cannot be used.
    """
    declared = declared_by(module)
    asked = _typed({name: getattr(requested, name) for name in OVERRIDES if getattr(requested, name) is not None})
    complete = replace(declared, **{**by_task, **asked}, overridden=tuple(asked))
    check(complete)
    return replace(complete, fingerprint=fingerprint(complete))


def declared_by(module: nn.Module) -> Preprocessing:
    """Return what a module declares about its input, completed by the default.

    Raises:
        ModelError: a declared value cannot be used.
    """
    declaration = _declaration(module)
    found = {name: declaration[name] for name in OVERRIDES if declaration.get(name) is not None}
    if declaration.get("input_size") is not None:
        found["image_size"] = declaration["input_size"]
    try:
        declared = replace(DEFAULT, **_typed(found), source="model" if found else "default")
        check(declared)
    except SetupError as error:
        raise ModelError(f"The model declares preprocessing that cannot be used: {error}") from error
    return declared


def _declaration(module: nn.Module) -> Mapping[str, Any]:
    """What a module says about its input; empty where it says nothing. A layer named `preprocessing` says nothing."""
    own = getattr(module, "preprocessing", None)
    own = None if callable(own) else own
    found = own or getattr(module, "pretrained_cfg", None) or {}
    if is_dataclass(found) and not isinstance(found, type):
        found = asdict(found)
    elif isinstance(found, Preprocessing):
        found = msgspec.structs.asdict(found)
    if not isinstance(found, Mapping):
        raise ModelError(
            f"The model declares its preprocessing as {type(found).__name__}; expected a mapping with any of "
            f"input_size, {', '.join(OVERRIDES[1:])}."
        )
    # timm's configurations say much more than this; in a user's own words, what is unknown is a slip.
    unknown = [key for key in found if key not in Preprocessing.__struct_fields__ and key != "input_size"]
    if unknown and own and "architecture" not in found:
        raise ModelError(
            f"The model declares preprocessing with {unknown[0]!r}, which does not exist: "
            f"expected any of input_size, {', '.join(OVERRIDES[1:])}."
        )
    return found


def check(preprocessing: Preprocessing) -> None:
    """Raise SetupError when a complete preprocessing cannot be carried out."""
    for name, choices in CHOICES.items():
        if getattr(preprocessing, name) not in choices:
            expected = ", ".join(map(str, choices))
            raise SetupError(f"{name} is {getattr(preprocessing, name)!r}; expected one of {expected}.")
    height, width = preprocessing.image_size or (0, 0)
    if min(height, width) < 8 or max(height, width) > 4096:
        raise SetupError(f"image_size is {height}x{width}; expected sides between 8 and 4096 pixels.")
    if not 0 < (preprocessing.crop_pct or 0) <= 2:
        raise SetupError(f"crop_pct is {preprocessing.crop_pct}; expected a fraction above 0, such as 0.875.")
    for name in ("mean", "std"):
        values = getattr(preprocessing, name)
        if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
            above = " above 0" if name == "std" else ""
            raise SetupError(f"{name} is {values}; expected three numbers{above} for pixels in 0..1.")
    if not preprocessing.antialias and preprocessing.decoder == "pil":
        raise SetupError("antialias can only be turned off with the decoder torchvision: Pillow always filters.")
    if preprocessing.decoder == "torchvision":
        _check_torchvision(preprocessing)


def _check_torchvision(preprocessing: Preprocessing) -> None:
    """Refuse what only the Pillow path does as timm does it."""
    height, width = preprocessing.image_size or (0, 0)
    for value, unable in (
        (f"crop_mode {preprocessing.crop_mode}", preprocessing.crop_mode == "border"),
        (f"interpolation {preprocessing.interpolation}", preprocessing.interpolation == "lanczos"),
        (f"image_size {height}x{width}", height != width),
    ):
        if unable:
            raise SetupError(f"{value} needs the decoder pil; the decoder is torchvision.")


def transform(preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """Return the function from a decoded RGB image to a normalised (3, H, W) float tensor."""
    cut = crop(preprocessing)
    return lambda image: normalize(cut(image), preprocessing)


def crop(preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """Return the function from a decoded RGB image to a resized and cropped (3, H, W) uint8 tensor.

    With the decoder `pil` it takes a PIL image and is timm's own evaluation transform; with `torchvision` it takes
    a (3, h, w) uint8 tensor.
    """
    if preprocessing.decoder == "torchvision":
        return _tensor_crop(preprocessing)
    from timm.data import create_transform

    made: Callable[[Any], Tensor] = create_transform(
        input_size=(3, *_both(preprocessing)),
        is_training=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        normalize=False,
    )
    return made


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return uint8 pixels (..., 3, H, W) as floats, less the mean, over the standard deviation.

    The operations and their order are those of torchvision's transforms, so that the result is theirs bit for bit.
    """
    import torch

    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in _statistics(preprocessing))
    return pixels.float().div_(255).sub_(mean).div_(std)


def fingerprint(preprocessing: Preprocessing) -> str:
    """Return the SHA-256 of the tensors that a preprocessing makes of the bundled images."""
    from harness.images import decode

    apply = transform(preprocessing)
    total = hashlib.sha256()
    images = sorted(FINGERPRINT_IMAGES.glob("*.jpg"))
    assert images, "the bundled images are not installed"
    for path in images:
        total.update(apply(decode(path.read_bytes(), preprocessing.decoder or "pil", path.name)).numpy().tobytes())
    return total.hexdigest()


def _tensor_crop(preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
    """Resize and centre crop tensors as timm does PIL images."""
    from torchvision.transforms import InterpolationMode, v2

    height, width = _both(preprocessing)
    scaled = math.floor(height / (preprocessing.crop_pct or 1.0))
    size = [scaled, scaled] if preprocessing.crop_mode == "squash" else [scaled]
    made: Callable[[Tensor], Tensor] = v2.Compose(
        [
            v2.Resize(size, InterpolationMode(preprocessing.interpolation), antialias=preprocessing.antialias),
            v2.CenterCrop([height, width]),
        ]
    )
    return made


def _statistics(preprocessing: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation."""
    if preprocessing.mean is None or preprocessing.std is None:
        raise SetupError("The preprocessing has no mean and std: resolve it against a model first.")
    return preprocessing.mean, preprocessing.std


def _both(preprocessing: Preprocessing) -> tuple[int, int]:
    """The complete image size."""
    if preprocessing.image_size is None:
        raise SetupError("The preprocessing has no image size: resolve it against a model first.")
    return preprocessing.image_size


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Bring values to the types that records hold."""
    typed = dict(values)
    for name, (convert, expected) in CONVERSIONS.items():
        if name in typed:
            try:
                typed[name] = convert(typed[name])
            except (TypeError, ValueError) as error:
                raise SetupError(f"{name} is {values[name]!r}; expected {expected}.") from error
    return typed


def _size(declared: Any) -> tuple[int, int]:
    """A size from a number, (H, W) or (3, H, W)."""
    numbers = [declared, declared] if isinstance(declared, int) else list(declared)
    *channels, height, width = map(operator.index, numbers)
    if channels not in ([], [3]):
        raise ValueError(channels)
    return height, width


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


CONVERSIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "image_size": (_size, "a side, (height, width) or (3, height, width)"),
    "crop_pct": (float, "a fraction above 0, such as 0.875"),
    "mean": (_numbers, "three numbers for pixels in 0..1"),
    "std": (_numbers, "three numbers above 0 for pixels in 0..1"),
}
