"""The outputs of any network's blocks: read from timm, from carriers and from strangers, and never guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from harness.blocks import reader
from harness.errors import BenchError, ModelError, SetupError
from harness.features import embedder, maps
from harness.models import build_model
from harness.registry import MODELS  # noqa: F401

Z = torch.Generator().manual_seed(0)
IMAGES = torch.randn(2, 3, 64, 64, generator=Z)
WIDE = torch.randn(2, 3, 64, 96, generator=Z)
# Family, size, and how many tokens stand before the map; None for a map with channels first, "NHWC" for last.
FAMILIES: dict[str, tuple[int, Any]] = {
    "vit_tiny_patch16_224": (64, 1),
    "deit_tiny_distilled_patch16_224": (64, 2),
    "vit_small_patch14_reg4_dinov2": (56, 5),
    "vit_pwee_patch16_reg1_gap_256": (64, 1),
    "eva02_tiny_patch14_224": (56, 1),
    "mixer_s32_224": (64, 0),
    "swin_tiny_patch4_window7_224": (64, "NHWC"),
    "convnext_atto": (64, None),
    "resnet18": (64, None),
    "efficientnet_b0": (64, None),
    "maxvit_pico_rw_256": (64, None),
}  # fmt: skip


def timm_model(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    fixed = any(part in name for part in ("vit", "deit", "eva", "mixer", "swin"))
    return timm.create_model(name, num_classes=3, **({"img_size": size} if fixed else {})).eval()


def run(function: Callable[[Tensor], Any], images: Tensor = IMAGES) -> Any:
    with torch.no_grad():
        return function(images)


@pytest.mark.parametrize("name", FAMILIES)
def test_poolings_equal_a_hand_computation(name: str) -> None:
    size, kind = FAMILIES[name]
    module, images = timm_model(name, size), IMAGES[..., :size, :size]
    features = run(module.forward_features, images)
    tokens = features[:, kind:].flatten(1, -2) if isinstance(kind, int) else features
    mean = tokens.mean({"NHWC": (1, 2), None: (2, 3)}.get(kind, 1))
    torch.testing.assert_close(run(embedder(module, pooling="mean"), images), mean)
    if isinstance(kind, int) and kind and "gap" not in name:
        torch.testing.assert_close(run(embedder(module, pooling="class"), images), features[:, 0])
    else:
        with pytest.raises(SetupError, match="no class token at this layer, so pooling=class is not possible: use"):
            run(embedder(module, pooling="class"), images)


@pytest.mark.parametrize("name", FAMILIES)
def test_last4_equals_timms_own_intermediates(name: str) -> None:
    size, _ = FAMILIES[name]
    module, images = timm_model(name, size), IMAGES[..., :size, :size]
    own = run(lambda x: module.forward_intermediates(x, indices=4, norm=True, intermediates_only=True), images)
    torch.testing.assert_close(
        run(embedder(module, "last4", "mean"), images), torch.cat([part.mean((2, 3)) for part in own], 1)
    )
    for found, expected in zip(run(maps(module, ["last4"]), images), own, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_final_norm_goes_over_each_of_the_last_four_blocks() -> None:
    module = timm_model("vit_tiny_patch16_224", 64)
    seen: list[Tensor] = []
    for block in module.blocks[-4:]:
        block.register_forward_hook(lambda part, inputs, output: seen.append(output))
    found = run(embedder(module, "last4", "class"))
    torch.testing.assert_close(found, torch.cat([module.norm(output)[:, 0] for output in seen[:4]], 1))


@pytest.mark.parametrize("layer", ["0", "5", "11", "-1", "-12"])
def test_carriers_equal_timm_at_every_layer(layer: str) -> None:
    torch.manual_seed(0)
    ours = build_model("vit_t16_cls", num_classes=3, image_size=(64, 64)).eval()
    theirs = timm_model("deit_tiny_patch16_224", 64)
    theirs.load_state_dict(ours.state_dict())
    for pooling in ("class", "mean"):
        torch.testing.assert_close(
            run(embedder(ours, layer, pooling)), run(embedder(theirs, layer, pooling)), rtol=1e-4, atol=1e-5
        )


def test_carriers_of_stages() -> None:
    module = build_model("pyramid_t", num_classes=3, image_size=(64, 96)).eval()
    stages = run(module.features, WIDE)
    torch.testing.assert_close(
        run(embedder(module, "last4"), WIDE), torch.cat([stage.mean((2, 3)) for stage in stages], 1)
    )
    torch.testing.assert_close(run(embedder(module, "1"), WIDE), stages[1].mean((2, 3)))
    (found,) = run(maps(module, ["last"]), WIDE)
    assert torch.equal(found, stages[-1])


@pytest.mark.parametrize("name", ["vit_t16", "vit_t16_cls"])
def test_maps_of_carriers_are_their_pyramid(name: str) -> None:
    module = build_model(name, num_classes=3, image_size=(64, 96)).eval()
    (found,) = run(maps(module, ["last"]), WIDE)
    assert torch.equal(found, run(module.features, WIDE)[0])
    (found,) = run(maps(module, ["-1"]), WIDE)
    torch.testing.assert_close(found, run(module.features, WIDE)[0])


def test_a_module_by_its_name_is_taken_as_it_is() -> None:
    module = timm_model("swin_tiny_patch4_window7_224", 64)
    whole = run(lambda x: module.forward_intermediates(x, indices=[2], intermediates_only=True))
    (found,) = run(maps(module, ["layers.2"]))
    assert torch.equal(found, whole[0])
    module = timm_model("deit_tiny_distilled_patch16_224", 64)
    (found,) = run(reader(module, "blocks.3"))
    assert (found.prefix.shape, found.maps.shape, found.has_class) == ((2, 2, 192), (2, 192, 4, 4), True)


def test_attention_pool_of_the_model() -> None:
    module = timm_model("vit_base_patch16_siglip_224", 32)
    images = IMAGES[..., :32, :32]
    expected = run(lambda x: module.pool(module.forward_features(x)), images)
    torch.testing.assert_close(run(embedder(module, pooling="attention"), images), expected)
    module = timm.create_model("resnet50_clip", num_classes=0, img_size=64).eval()
    torch.testing.assert_close(run(embedder(module, pooling="attention")), run(module), rtol=1e-4, atol=1e-5)
    with pytest.raises(SetupError, match="layer=last4 takes pooling=class or mean"):
        embedder(module, "last4", "attention")
    with pytest.raises(SetupError, match="has no attention pools, so pooling=attention is not possible: use class"):
        embedder(build_model("vit_t16", num_classes=3), pooling="attention")


# Strangers


class Mixed(nn.Module):
    """Blocks of one class, fed with whatever layout; nothing is declared."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 16, 16)
        self.change = change
        self.body = nn.Sequential(*(nn.Sequential(nn.Identity(), nn.Identity()) for _ in range(5)))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.change(self.stem(images)))


def tokens(found: Tensor) -> Tensor:
    return found.flatten(2).transpose(1, 2)


def with_class(found: Tensor) -> Tensor:
    return torch.cat([torch.full((2, 1, 16), 7.0), tokens(found)], 1)


@pytest.mark.parametrize("images", [IMAGES, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize(
    "change", [lambda found: found, lambda found: found.permute(0, 2, 3, 1), tokens], ids=["NCHW", "NHWC", "NLC"]
)
def test_shapes_tell_the_layout(change: Callable[[Tensor], Tensor], images: Tensor) -> None:
    module = Mixed(change).eval()
    stem = run(module.stem, images)
    for layer in ("last", "-1", "2", "body.4", "body"):
        (found,) = run(maps(module, [layer]), images)
        assert torch.equal(found, stem), layer
    torch.testing.assert_close(run(embedder(module, "last4"), images), torch.cat([stem.mean((2, 3))] * 4, 1))


def test_tokens_before_the_map_are_asked_for() -> None:
    module = Mixed(with_class).eval()
    with pytest.raises(ModelError, match=r"'body.4' is \(2, 17, 16\): with 0 .*, 17 are left.* as in layout=1\+NLC"):
        run(embedder(module, pooling="mean"))
    assert (run(embedder(module, "last", "class", "1+NLC")) == 7).all()
    torch.testing.assert_close(run(embedder(module, "last", "mean", "1+NLC")), run(module.stem).mean((2, 3)))
    with pytest.raises(SetupError, match="give pooling=class or pooling=mean"):
        run(embedder(module, "-1", "default", "1+NLC"))


def test_channels_that_could_be_sides_are_asked_for() -> None:
    module = Mixed(lambda found: found[:, :4]).eval()
    with pytest.raises(ModelError, match=r"\(2, 4, 4, 4\): .* Give layout=NCHW or layout=NHWC"):
        run(maps(module, ["last"]))
    first, last = (run(maps(module, ["last"], layout))[0] for layout in ("NCHW", "NHWC"))
    assert torch.equal(last, first.permute(0, 3, 1, 2))


def test_blocks_that_are_not_known_are_asked_for() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (
                nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(3)) for _ in range(2)
            )

        def forward(self, images: Tensor) -> Tensor:
            for part in [*self.left, *self.right]:
                images = part(images)
            return images

    with pytest.raises(ModelError, match=r"several lists of like modules.*layer=right.2, of: right.2 \(2, 3, 64, 64\)"):
        run(embedder(Two(), pooling="mean"))
    assert run(embedder(Two(), "left.1")).shape == (2, 3)
    with pytest.raises(ModelError, match=r"it has no list .* layer=0, of: 0 \(2, 4, 64, 64\)"):
        run(embedder(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), "last4"))


@pytest.mark.parametrize(
    ("layer", "layout", "error", "message"),
    [
        ("12", "auto", SetupError, r"layers 12 cannot be had.*feature index 12 is out of range \(0 to 11\)"),
        ("block.3", "auto", SetupError, r"no module named 'block.3' .*Did you mean 'blocks.3'"),
        ("head", "auto", ModelError, r"'head' is \(2, 3\).*expected tokens .* layer=NAME"),
        ("last", "BCHW", SetupError, "layout is 'BCHW'; expected auto, NCHW"),
        ("last", "NCHW", SetupError, r"layout=NCHW: .* is tokens \(2, 17, 192\)"),
        ("patch_embed.proj", "NLC", SetupError, r"layout=NLC: .* is a map \(2, 192, 4, 4\)"),
    ],
)
def test_layers_that_cannot_be_had(layer: str, layout: str, error: type[BenchError], message: str) -> None:
    module = timm_model("vit_tiny_patch16_224", 64)
    with pytest.raises(error, match=message):
        run(embedder(module, layer, "mean", layout))
    with pytest.raises(SetupError, match="There is no layer 5: the network has 5 blocks or stages, from 0"):
        run(embedder(Mixed(tokens), "5"))


def test_a_module_that_never_runs() -> None:
    module = Mixed(tokens)
    module.aside = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="'aside' of Mixed does not run"):
        run(embedder(module, "aside"))


def test_no_hook_stays_and_a_compiled_model_is_read() -> None:
    module = Mixed(tokens).eval()
    expected = run(embedder(module, "2"))
    assert not any(part._forward_hooks for part in module.modules())
    module.compile(backend="eager")
    assert torch.equal(run(embedder(module, "2")), expected)
