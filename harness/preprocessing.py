"""From an image file to a model's input: what the model declares, what the user overrides, and the transform itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
}
OVERRIDES = ("image_size", "crop_pct", "crop_mode", "interpolation", "antialias", "decoder", "mean", "std")


def resolve(requested: Preprocessing, module: nn.Module) -> Preprocessing:
    """Fill a request from what the module declares, and fingerprint the result.

    A module declares with an attribute `preprocessing`, or with timm's `pretrained_cfg`: a mapping with any of
    `input_size` (C, H, W), `crop_pct`, `crop_mode`, `interpolation`, `mean`, `std`, `antialias`, `decoder`.

    Raises:
        ModelError: a declared value cannot be used.
        SetupError: an overriding value cannot be used.
    """
    declared = declared_by(module)
    asked = {name: getattr(requested, name) for name in OVERRIDES if getattr(requested, name) is not None}
    complete = replace(declared, **asked, overridden=tuple(asked))
    check(complete)
    return replace(complete, fingerprint=fingerprint(complete))


def declared_by(module: nn.Module) -> Preprocessing:
    """Return what a module declares about its input, completed by the default.

    Raises:
        ModelError: a declared value cannot be used.
    """
    declaration = getattr(module, "preprocessing", None) or getattr(module, "pretrained_cfg", None)
    if not isinstance(declaration, Mapping):
        return DEFAULT
    found: dict[str, Any] = {name: declaration[name] for name in OVERRIDES if declaration.get(name) is not None}
    if declaration.get("input_size") is not None:
        found["image_size"] = declaration["input_size"]
    try:
        if "image_size" in found:
            found["image_size"] = _size(found["image_size"])
        for name in ("mean", "std"):
            if name in found:
                found[name] = tuple(float(value) for value in found[name])
        declared = replace(DEFAULT, **found, source="model")
        check(declared)
    except (SetupError, TypeError, ValueError) as error:
        raise ModelError(f"The model declares preprocessing that cannot be used: {error}") from error
    return declared


def check(preprocessing: Preprocessing) -> None:
    """Raise SetupError when a complete preprocessing cannot be carried out."""
    for name, choices in CHOICES.items():
        if getattr(preprocessing, name) not in choices:
            raise SetupError(f"{name} is {getattr(preprocessing, name)!r}; expected one of {', '.join(choices)}.")
    height, width = preprocessing.image_size or (0, 0)
    if not 8 <= min(height, width) or max(height, width) > 4096:
        raise SetupError(f"image_size is {height}x{width}; expected sides between 8 and 4096 pixels.")
    if not 0 < (preprocessing.crop_pct or 0) <= 2:
        raise SetupError(f"crop_pct is {preprocessing.crop_pct}; expected a fraction such as 0.875.")
    for name in ("mean", "std"):
        values = getattr(preprocessing, name)
        if len(values) != 3 or not all(math.isfinite(value) for value in values) or (name == "std" and min(values) <= 0):
            raise SetupError(f"{name} is {values}; expected three numbers for pixels in 0..1.")
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
            raise SetupError(f"{value} needs the decoder pil.")


def transform(preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """Return the function from a decoded RGB image to a normalised (3, H, W) float tensor.

    With the decoder `pil` it takes a PIL image and is timm's own evaluation transform; with `torchvision` it takes
    a (3, h, w) uint8 tensor.
    """
    if preprocessing.decoder == "torchvision":
        return _tensor_transform(preprocessing)
    from timm.data import create_transform

    made: Callable[[Any], Tensor] = create_transform(
        input_size=(3, *_both(preprocessing)),
        is_training=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
    return made


def fingerprint(preprocessing: Preprocessing) -> str:
    """Return the SHA-256 of the tensors that a preprocessing makes of the bundled images."""
    from harness.images import decode

    apply = transform(preprocessing)
    total = hashlib.sha256()
    for path in sorted(FINGERPRINT_IMAGES.glob("*.jpg")):
        total.update(apply(decode(path.read_bytes(), preprocessing.decoder or "pil", path.name)).numpy().tobytes())
    return total.hexdigest()


def _tensor_transform(preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
    """Resize, centre crop and normalise tensors as timm does PIL images."""
    import torch
    from torchvision.transforms import InterpolationMode, v2

    height, width = _both(preprocessing)
    scaled = math.floor(height / (preprocessing.crop_pct or 1.0))
    size = [scaled, scaled] if preprocessing.crop_mode == "squash" else [scaled]
    return v2.Compose(
        [
            v2.Resize(size, InterpolationMode(preprocessing.interpolation), antialias=preprocessing.antialias),
            v2.CenterCrop([height, width]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(preprocessing.mean or ()), list(preprocessing.std or ())),
        ]
    )


def _both(preprocessing: Preprocessing) -> tuple[int, int]:
    """The complete image size."""
    if preprocessing.image_size is None:
        raise SetupError("The preprocessing has no image size: resolve it against a model first.")
    return preprocessing.image_size


def _size(declared: Any) -> tuple[int, int]:
    """A size from a number, (H, W) or (C, H, W)."""
    if isinstance(declared, int):
        return declared, declared
    *channels, height, width = (int(value) for value in declared)
    if channels not in ([], [3]):
        raise SetupError(f"input_size is {tuple(declared)}; expected (3, height, width).")
    return height, width
