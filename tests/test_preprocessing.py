"""Preprocessing is what the model declares and what timm does, and its fingerprint tells every change."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from msgspec.structs import replace
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import BenchError, DataError, ModelError, SetupError
from harness.images import decode
from harness.preprocessing import DEFAULT, FINGERPRINT_IMAGES, OVERRIDES, declared_by, fingerprint, resolve, transform
from harness.record import Preprocessing

PHOTO = (FINGERPRINT_IMAGES / "colour_420.jpg").read_bytes()
RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "nearest", "lanczos")}


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def declaring(**declaration: Any) -> Any:
    return SimpleNamespace(preprocessing=declaration)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def by_hand(picture: Image.Image, chosen: Preprocessing) -> Tensor:
    """Resize the shorter side, cut out the centre, normalise: Pillow and NumPy alone."""
    assert chosen.image_size
    size = chosen.image_size[0]
    shorter = math.floor(size / chosen.crop_pct)
    width, height = picture.size
    scaled = (int(shorter * width / min(picture.size)), int(shorter * height / min(picture.size)))
    resized = picture.resize(scaled, RESAMPLING[chosen.interpolation])
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    normal = (pixels - np.array(chosen.mean, np.float32)) / np.array(chosen.std, np.float32)
    return torch.from_numpy(normal.transpose(2, 0, 1).copy())


# The transform


@pytest.mark.parametrize("shape", [(301, 200), (200, 301), (64, 64), (40, 37)])
@pytest.mark.parametrize("size", [(64, 64), (48, 96), (97, 33)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("mode", "crop"), [("center", 0.875), ("center", 1.0), ("squash", 0.9), ("border", 0.95)])
def test_equals_timm(mode: str, crop: float, interpolation: str, size: tuple[int, int], shape: tuple[int, int]) -> None:
    chosen = replace(DEFAULT, image_size=size, crop_mode=mode, crop_pct=crop, interpolation=interpolation)
    config = {
        "mean": DEFAULT.mean,
        "std": DEFAULT.std,
        "interpolation": interpolation,
        "crop_pct": crop,
        "crop_mode": mode,
    }
    expected = create_transform((3, *size), is_training=False, **config)(image(*shape))
    found = transform(chosen)(image(*shape))
    assert found.shape == (3, *size)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(301, 200), (200, 303), (80, 80), (150, 151)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize("crop", [0.875, 0.9, 1.0])
def test_equals_a_reference_by_hand(crop: float, interpolation: str, shape: tuple[int, int]) -> None:
    chosen = replace(DEFAULT, image_size=(64, 64), crop_pct=crop, interpolation=interpolation)
    assert torch.allclose(transform(chosen)(image(*shape)), by_hand(image(*shape), chosen), atol=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "tf_efficientnet_b0", "dm_nfnet_f0"])
def test_equals_what_timm_resolves_for_a_model(name: str) -> None:
    config = timm.get_pretrained_cfg(name).to_dict()
    made = transform(resolve(Preprocessing(), SimpleNamespace(pretrained_cfg=config)))
    expected = create_transform(**resolve_data_config({}, pretrained_cfg=config), is_training=False)
    assert torch.equal(made(image(301, 200)), expected(image(301, 200)))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_torchvision_decoder(mode: str, interpolation: str, antialias: bool) -> None:
    chosen = replace(
        DEFAULT,
        image_size=(64, 64),
        crop_mode=mode,
        interpolation=interpolation,
        antialias=antialias,
        decoder="torchvision",
    )
    # Middle tones, since integer kernels cut what overshoots between the two passes of bicubic, and floats do not.
    pixels = torch.from_numpy(np.asarray(image(301, 200)) // 2 + 64).permute(2, 0, 1)
    height, width = (73, 73) if mode == "squash" else (73, 73 * 301 // 200)
    scaled = functional.interpolate(pixels[None].float(), (height, width), mode=interpolation, antialias=antialias)
    left, top = round((width - 64) / 2), round((height - 64) / 2)
    scaled = scaled.round().clamp(0, 255)[0, :, top : top + 64, left : left + 64] / 255
    expected = (scaled - torch.tensor(DEFAULT.mean)[:, None, None]) / torch.tensor(DEFAULT.std)[:, None, None]
    found = transform(chosen)(pixels)
    # Integer kernels round once more than floating-point ones: one level of 255 at most.
    assert (found - expected).abs().max() <= 1.01 / 255 / min(DEFAULT.std)
    assert (found - expected).abs().mean() < 0.25 / 255 / min(DEFAULT.std)


def test_torchvision_and_pillow_nearly_agree() -> None:
    chosen = replace(DEFAULT, image_size=(96, 96))
    other = replace(chosen, decoder="torchvision")
    ours, theirs = (transform(p)(decode(PHOTO, p.decoder, "photo")) for p in (chosen, other))
    assert (ours - theirs).abs().mean() < 0.02
    assert not torch.equal(ours, theirs)


# What a model declares


@pytest.mark.parametrize(
    ("name", "size", "crop", "mode", "interpolation", "mean"),
    [
        ("vit_tiny_patch16_224", 224, 0.9, "center", "bicubic", 0.5),
        ("resnet18", 224, 0.95, "center", "bicubic", 0.485),
        ("resnet18.tv_in1k", 224, 0.875, "center", "bilinear", 0.485),
        ("dm_nfnet_f0", 192, 0.9, "squash", "bicubic", 0.485),
        ("deepseek_vit_412m.deepseek_v4_1_flash", 546, 1.0, "border", "bicubic", 0.5),
    ],
)
def test_timms_configurations(name: str, size: int, crop: float, mode: str, interpolation: str, mean: float) -> None:
    found = declared_by(SimpleNamespace(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()))
    assert (found.image_size, found.crop_pct, found.crop_mode) == ((size, size), crop, mode)
    assert (found.interpolation, found.mean[0], found.source) == (interpolation, mean, "model")
    assert declared_by(SimpleNamespace(pretrained_cfg=timm.get_pretrained_cfg(name))) == found


def test_every_configuration_of_timm_can_be_used() -> None:
    failed, modes = {}, set()
    for name in {*timm.list_models(), *timm.list_pretrained()}:
        config = timm.get_pretrained_cfg(name)
        try:
            modes.add(declared_by(SimpleNamespace(pretrained_cfg=config.to_dict())).crop_mode)
        except BenchError as error:
            failed[name] = str(error)
    assert failed == {}
    assert modes == {"center", "squash", "border"}


def test_a_built_model_of_timm() -> None:
    found = resolve(Preprocessing(), timm.create_model("test_resnet"))
    assert (found.image_size, found.crop_pct, found.source, found.overridden) == ((160, 160), 0.95, "model", ())
    assert len(found.fingerprint) == 64


def test_a_users_declaration_is_completed() -> None:
    module = nn.Identity()
    module.preprocessing = {"input_size": (3, 32, 48), "interpolation": "bilinear", "mean": [0, 0, 0]}
    expected = replace(DEFAULT, image_size=(32, 48), interpolation="bilinear", mean=(0.0, 0.0, 0.0), source="model")
    assert declared_by(module) == expected


@pytest.mark.parametrize("size", [{"input_size": (3, 64, 64)}, {"image_size": (64, 64)}, {"image_size": 64}])
def test_sizes_in_three_forms(size: Mapping[str, Any]) -> None:
    assert declared_by(declaring(**size)).image_size == (64, 64)


@pytest.mark.parametrize("own", [None, {}, nn.Identity(), lambda images: images])
def test_what_declares_nothing_gets_the_default(own: Any) -> None:
    assert declared_by(SimpleNamespace(preprocessing=own)) == DEFAULT
    assert declared_by(SimpleNamespace(preprocessing=own, pretrained_cfg={"crop_pct": 0.7})).crop_pct == 0.7


def test_own_words_come_before_timms() -> None:
    both = SimpleNamespace(preprocessing={"crop_pct": 0.5}, pretrained_cfg={"crop_pct": 0.7})
    assert declared_by(both).crop_pct == 0.5


def test_timms_configuration_in_own_words() -> None:
    config = timm.get_pretrained_cfg("vit_tiny_patch16_224").to_dict()
    assert declared_by(declaring(**config)).mean == (0.5, 0.5, 0.5)


# Overrides

CHANGES: dict[str, Any] = {
    "image_size": (64, 80),
    "crop_pct": 0.7,
    "crop_mode": "squash",
    "interpolation": "bilinear",
    "antialias": False,
    "decoder": "torchvision",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
SMALL = {"image_size": (64, 64)}


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "antialias"])
def test_overrides_are_recorded(name: str) -> None:
    found = resolve(Preprocessing(**{name: CHANGES[name]}), declaring(**SMALL, crop_pct=0.95))
    assert getattr(found, name) == CHANGES[name]
    assert found.overridden == (name,)
    assert found.source == "model"


def test_overrides_are_brought_to_the_types_of_records() -> None:
    found = resolve(Preprocessing(image_size=[32, 32], crop_pct=1, mean=[0, 0, 0]), nn.Identity())  # type: ignore[arg-type]
    assert (found.image_size, found.crop_pct, found.mean) == ((32, 32), 1.0, (0.0, 0.0, 0.0))
    assert found.overridden == ("image_size", "crop_pct", "mean")


BAD = [
    ({"crop_mode": "centre"}, "crop_mode is 'centre'; expected one of center, squash, border"),
    ({"interpolation": "cubic"}, "interpolation is 'cubic'; expected one of bilinear"),
    ({"decoder": "opencv"}, "decoder is 'opencv'; expected one of pil, torchvision"),
    ({"antialias": "no"}, "antialias is 'no'; expected one of True, False"),
    ({"antialias": False}, "antialias can only be turned off with the decoder torchvision"),
    ({"image_size": (4, 64)}, "image_size is 4x64; expected sides between 8 and 4096"),
    ({"image_size": (64, 5000)}, "image_size is 64x5000"),
    ({"image_size": "large"}, "image_size is 'large'; expected a side, "),
    ({"image_size": (1, 28, 28)}, r"image_size is \(1, 28, 28\); expected a side, "),
    ({"image_size": (64.5, 64)}, r"image_size is \(64.5, 64\)"),
    ({"crop_pct": 0.0}, "crop_pct is 0.0; expected a fraction above 0"),
    ({"crop_pct": -1}, "crop_pct is -1.0"),
    ({"crop_pct": 3}, "crop_pct is 3.0"),
    ({"crop_pct": float("nan")}, "crop_pct is nan"),
    ({"crop_pct": "most"}, "crop_pct is 'most'"),
    ({"mean": (0.5,)}, r"mean is \(0.5,\); expected three numbers for pixels"),
    ({"mean": 0.5}, "mean is 0.5; expected three numbers"),
    ({"mean": (0, 0, float("inf"))}, r"mean is \(0.0, 0.0, inf\)"),
    ({"std": (0.5, 0.5, 0)}, r"std is \(0.5, 0.5, 0.0\); expected three numbers above 0"),
    ({"decoder": "torchvision", "crop_mode": "border"}, "crop_mode border needs the decoder pil"),
    ({"decoder": "torchvision", "interpolation": "lanczos"}, "interpolation lanczos needs the decoder pil"),
    ({"decoder": "torchvision", "image_size": (64, 80)}, "image_size 64x80 needs the decoder pil"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[str(values) for values, _ in BAD])
def test_values_that_cannot_be_used(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        resolve(Preprocessing(**values), nn.Identity())
    with pytest.raises(ModelError, match=f"The model declares preprocessing that cannot be used: {message}"):
        declared_by(declaring(**values))


def test_declarations_that_are_none() -> None:
    with pytest.raises(ModelError, match="preprocessing as int; expected a mapping with any of input_size, crop_pct"):
        declared_by(SimpleNamespace(preprocessing=224))
    with pytest.raises(ModelError, match="with 'crop', which does not exist: expected any of input_size, crop_pct"):
        declared_by(declaring(crop=0.9))


def test_a_transform_needs_a_size() -> None:
    with pytest.raises(SetupError, match="has no image size"):
        transform(Preprocessing(mean=DEFAULT.mean, std=DEFAULT.std))


# The fingerprint


def test_fingerprint_is_stable_and_of_the_tensors_alone() -> None:
    chosen = replace(DEFAULT, **SMALL)
    assert fingerprint(chosen) == fingerprint(chosen)
    assert fingerprint(chosen) == fingerprint(replace(chosen, source="model", overridden=("crop_pct",)))
    assert fingerprint(chosen) == resolve(Preprocessing(**SMALL), nn.Identity()).fingerprint


def test_fingerprint_tells_every_field() -> None:
    chosen = replace(DEFAULT, **SMALL)
    variants = {name: replace(chosen, **{name: value}) for name, value in CHANGES.items() if name != "antialias"}
    variants["antialias"] = replace(chosen, decoder="torchvision", antialias=False)
    variants["border"] = replace(chosen, crop_mode="border")
    assert variants.keys() >= set(OVERRIDES)
    found = {name: fingerprint(variant) for name, variant in variants.items()} | {"none": fingerprint(chosen)}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_fingerprint_tells_a_small_change(field: str) -> None:
    chosen = replace(DEFAULT, **SMALL)
    values = list(getattr(chosen, field))
    values[2] += 1e-4
    assert fingerprint(chosen) != fingerprint(replace(chosen, **{field: tuple(values)}))


def test_bundled_images_cover_what_decoders_differ_in() -> None:
    pictures = [Image.open(io.BytesIO(path.read_bytes())) for path in FINGERPRINT_IMAGES.glob("*.jpg")]
    assert {picture.mode for picture in pictures} == {"RGB", "L"}
    assert any(picture.info.get("progressive") for picture in pictures)
    assert any(picture.width != picture.height for picture in pictures)


# Decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoders_give_rgb(kind: str, mode: str) -> None:
    content = encoded(image(21, 17).convert(mode), kind)
    pil, tensor = decode(content, "pil", "a"), decode(content, "torchvision", "a")
    assert (pil.mode, pil.size) == ("RGB", (21, 17))
    assert (tensor.dtype, tensor.shape) == (torch.uint8, (3, 17, 21))
    if kind == "PNG":
        assert np.array_equal(np.asarray(pil), tensor.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert decode(encoded(image(9, 8).convert(mode), "PNG"), "pil", "a").mode == "RGB"


def test_cmyk_and_orientation_are_read_as_timm_reads_them() -> None:
    assert decode(encoded(image(9, 8).convert("CMYK"), "JPEG"), "pil", "a").mode == "RGB"
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image(9, 8), "JPEG", exif=exif)
    assert decode(turned, "pil", "a").size == (9, 8)
    assert decode(turned, "torchvision", "a").shape == (3, 8, 9)


@pytest.mark.parametrize("decoder", ["pil", "torchvision"])
@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", PHOTO[:20], PHOTO[: len(PHOTO) // 2], PHOTO[:-400]],
    ids=["empty", "text", "head", "half", "end"],
)
def test_unreadable_images_are_named(content: bytes, decoder: str) -> None:
    messages = set()
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            decode(content, decoder, "n01440764/x.JPEG")
        messages.add(str(caught.value))
    (message,) = messages
    assert message.startswith("n01440764/x.JPEG is not a readable image (")
    assert message.endswith("Restore the file, or remove it.")
    assert "\n" not in message
    assert " at 0x" not in message


def test_animations_are_refused_by_torchvision() -> None:
    frames = [image(8, 8, seed) for seed in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"it holds 3 frames"):
        decode(content, "torchvision", "a.gif")


@pytest.mark.parametrize("decoder", ["pil", "torchvision"])
def test_decoding_does_not_warn(decoder: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(PHOTO, decoder, "photo")
