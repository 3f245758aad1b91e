"""Maps at four strides of any backbone, at any size of image."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import ModelError
from harness.models import AttentionContext, build_model
from harness.pyramid import Pyramid
from harness.taps import LEVELS, pad_to_multiple
from harness.task import FeaturePyramid

SMALL = (
    "timm:test_resnet", "timm:test_convnext", "timm:vit_tiny_patch16_224", "timm:test_maxvit", "vit_t16_cls",
    "pyramid_t", "timm:test_efficientnet",
)  # fmt: skip
LARGE = ("timm:swin_tiny_patch4_window7_224", "timm:swinv2_tiny_window8_256", "timm:vit_small_patch14_dinov2",
         "timm:eva02_tiny_patch14_224", "timm:pvt_v2_b0")  # fmt: skip
SIZES = ((64, 96), (75, 101))


class Stranger(nn.Module):
    """A user's own network, with two stages and no word on where its maps are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=4, padding=3)
        self.deep = nn.Conv2d(8, 16, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.deep(self.stem(images).relu())).mean((2, 3)))
        return logits


class Declared(Stranger):
    channels, strides = (8, 16), (4, 16)

    def features(self, images: Tensor) -> list[Tensor]:
        fine = self.stem(images).relu()
        return [fine, self.norm(self.deep(fine))]


def check(pyramid: Pyramid, size: tuple[int, int], device: torch.device | None = None) -> None:
    """The maps have their sizes, and all that is trained has a gradient; on the meta device no value is looked at."""
    maps = pyramid.features(torch.randn(2, 3, *size, device=device))
    assert isinstance(pyramid, FeaturePyramid)
    for one, channels, stride in zip(maps, pyramid.channels, pyramid.strides, strict=True):
        assert tuple(one.shape) == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    sum(one.square().mean() for one in maps).backward()  # type: ignore[union-attr]
    trained = [parameter for parameter in pyramid.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)
    assert device or all(parameter.grad.isfinite().all() for parameter in trained)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_every_kind_of_backbone_has_four_levels_at_any_size(name: str) -> None:
    pyramid = Pyramid(build_model(name, any_size=True), size=(64, 64)).train()
    assert pyramid.strides == LEVELS
    for size in SIZES:
        check(pyramid, size)


def test_a_strangers_module_joins_by_three_members_or_by_its_layers() -> None:
    for pyramid in (Pyramid(Declared()), Pyramid(Stranger(), ("stem", "norm"))):
        assert pyramid.taps.strides == (4, 16)
        assert pyramid.channels == (8, 8, 16, 16)
        check(pyramid.train(), (70, 101))
    with pytest.raises(ModelError, match=r"Stranger does not say where its maps are: expected the members channels"):
        Pyramid(Stranger())


def test_a_network_of_one_size_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"gives no maps of images of 64 x 64 .* takes --image-size .* and test=slide"):
        Pyramid(build_model("timm:mixer_s32_224"), size=(64, 64))


def test_a_network_of_one_size_is_found_out_before_a_training() -> None:
    """It takes the crops of a training, and not the images of an evaluation."""
    with torch.device("meta"):
        model = build_model("timm:beit_base_patch16_224")
    Pyramid(model, frozen=True)
    with pytest.raises(ModelError, match=r"Beit gives no maps of images of 240 x 224 \(AssertionError: Input height"):
        Pyramid(model, frozen=True, any_size=True)


@pytest.mark.parametrize(("channels", "strides"), [((8, 12), (4, 16)), ((8, 16), (4, 8)), ((8, 16, 16), (4, 16, 32))])
def test_members_that_do_not_tell_the_truth_are_refused(channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    model = Declared()
    model.channels, model.strides = channels, strides  # type: ignore[assignment]
    with pytest.raises(
        ModelError, match=r"Declared gives maps \(C, h, w\) \[\(8, 16, 16\), \(16, 4, 4\)\] of .*expected"
    ):
        Pyramid(model, size=(64, 64))


def test_a_backbone_that_fails_is_named() -> None:
    class Failing(Declared):
        def features(self, images: Tensor) -> list[Tensor]:
            return [self.stem(images).no_such_method()]

    with pytest.raises(ModelError, match=r"Failing gives no maps of images of 64 x 64 \(AttributeError: .*no_such"):
        Pyramid(Failing(), size=(64, 64))


def test_a_trial_leaves_statistics_and_modes_alone() -> None:
    model = Declared().train()
    model.stem.eval()
    before = model.norm.running_mean.clone()  # type: ignore[union-attr]
    Pyramid(model, any_size=True)
    assert torch.equal(model.norm.running_mean, before)  # type: ignore[arg-type]
    assert (model.norm.training, model.stem.training) == (True, False)


@pytest.mark.parametrize(
    ("name", "strides", "divisor"),
    [
        ("efficientvim_m1", (16, 32, 64), 64),
        ("mobilevitv2_050", (4, 8, 16, 32), 32),
        pytest.param("inception_v3", (4, 8, 16, 32), 32, marks=pytest.mark.slow),
        pytest.param("csatv2", (8, 16, 32, 64), 64, marks=pytest.mark.slow),
    ],
)
def test_a_map_of_few_pixels_is_not_taken_for_another_stride(name: str, strides: tuple[int, ...], divisor: int) -> None:
    """At 224 a map of stride 64 has 4 pixels a side, as one of stride 56 has, and MobileViT makes 8 of 7."""
    with torch.device("meta"):
        pyramid = Pyramid(build_model(f"timm:{name}"), any_size=True).train()
    assert pyramid.taps.strides == strides
    assert pyramid.taps.uneven == (divisor == 32)
    assert pyramid.divisor == divisor
    check(pyramid, (75, 101), torch.device("meta"))


def test_the_neck_of_sam_has_channels_of_its_own() -> None:
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    pyramid = Pyramid(
        VisionTransformerSAM(64, embed_dim=32, depth=2, num_heads=2, neck_chans=16), size=(64, 64)
    ).train()
    assert (pyramid.taps.channels, pyramid.taps.strides) == ((16,), (16,))
    check(pyramid, (50, 64))


def test_blocks_of_attention_fill_the_maps() -> None:
    with torch.device("meta"):
        pyramid = Pyramid(build_model("timm:halonet26t"), any_size=True).train()
    assert pyramid.divisor == 8 * 32
    check(pyramid, (75, 101), torch.device("meta"))


def test_a_plain_vit_gets_the_simple_feature_pyramid() -> None:
    pyramid = Pyramid(build_model("vit_t16"))
    kinds = [[type(step).__name__ for step in level.steps] for level in pyramid.levels]  # type: ignore[union-attr]
    assert kinds == [
        ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d"], ["ConvTranspose2d"], [], ["MaxPool2d"],
    ]  # fmt: skip
    assert pyramid.channels == (48, 96, 192, 192)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(pyramid.features(images)[2], pyramid.backbone.features(images)[0])  # type: ignore[operator]


def test_four_layers_of_one_stride_give_one_level_each_in_one_pass() -> None:
    model = build_model("vit_t16")
    pyramid = Pyramid(model, ("2", "5", "8", "11"), size=(64, 64)).eval()
    passes: list[object] = []
    images = torch.randn(1, 3, 64, 64)
    with model.patch_embed.register_forward_hook(lambda *call: passes.append(call[-1])):  # type: ignore[union-attr]
        maps = pyramid.features(images)
    assert len(passes) == 1
    assert pyramid.channels == (48, 96, 192, 192)
    own = pyramid.backbone.features(images)[0]  # type: ignore[operator]
    assert torch.equal(maps[3], functional.max_pool2d(own, 2))


def test_timms_maps_are_its_own() -> None:
    model: Any = build_model("timm:test_resnet")
    pyramid = Pyramid(model, size=(64, 64)).eval()
    images = torch.randn(1, 3, 64, 64)
    theirs = model.forward_intermediates(images, intermediates_only=True)[-4:]
    for ours, other in zip(pyramid.features(images), theirs, strict=True):
        assert torch.equal(ours, other)


def test_a_position_table_adapts_as_timms_own_resampling_does() -> None:
    from timm.layers import resample_abs_pos_embed

    model: Any = build_model("timm:vit_tiny_patch16_224", any_size=True).eval()
    fixed: Any = build_model("timm:vit_tiny_patch16_224", image_size=(64, 96)).eval()
    state = model.state_dict()
    table = resample_abs_pos_embed(state["pos_embed"], new_size=[4, 6], old_size=[14, 14], num_prefix_tokens=1)
    fixed.load_state_dict({**state, "pos_embed": table})
    images = torch.randn(1, 3, 64, 96)
    ours = Pyramid(model, size=(64, 96)).eval().features(images)[2]
    theirs = fixed.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_what_is_frozen_does_not_change() -> None:
    model = Declared()
    pyramid = Pyramid(model, frozen=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    maps = pyramid.features(torch.randn(2, 3, 64, 64))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not maps[0].requires_grad or maps[1].requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    Pyramid(model := Declared()).train().features(torch.randn(2, 3, 64, 64))
    assert not torch.equal(model.norm.running_mean, before["norm.running_mean"])  # type: ignore[arg-type]


def test_norm_eval_keeps_the_statistics_alone() -> None:
    pyramid = Pyramid(model := Declared(), norm_eval=True).train()
    assert model.training
    assert not model.norm.training
    assert pyramid.levels.training
    assert model.norm.weight.requires_grad
    # The classifier plays no part, and is not trained.
    assert not model.head.weight.requires_grad


def test_padding_is_on_the_right_and_below_and_moves_nothing() -> None:
    pyramid = Pyramid(Declared()).eval()
    images = torch.randn(1, 3, 50, 70)
    whole = pyramid.features(pad_to_multiple(images, 16))
    for ours, padded in zip(pyramid.features(images), whole, strict=True):
        assert torch.equal(ours, padded[..., : ours.shape[-2], : ours.shape[-1]])


def test_native_maps_have_nothing_learned_on_top() -> None:
    pyramid = Pyramid(build_model("timm:vit_tiny_patch16_224", any_size=True), size=(64, 64), native=True)
    assert pyramid.strides == (16,)
    assert pyramid.channels == (192,)
    assert not list(pyramid.levels.parameters())


def test_a_copy_has_the_maps_of_its_own_backbone() -> None:
    """Trainers keep moving averages in copies of the model."""
    images = torch.randn(1, 3, 64, 64)
    for pyramid in (Pyramid(Declared()), Pyramid(build_model("timm:resnet18"), ["layer2", "layer3"], size=(64, 64))):
        copied, before = deepcopy(pyramid.eval()), pyramid.features(images)
        assert all(map(torch.equal, copied.features(images), before))
        for parameter in copied.backbone.parameters():
            parameter.data.zero_()
        assert all(map(torch.equal, pyramid.features(images), before))
        assert not torch.equal(copied.features(images)[0], before[0])


def test_losses_of_the_mixers_are_kept_for_the_trainer() -> None:
    class Leaving(Declared):
        def features(self, images: Tensor, context: AttentionContext | None = None) -> list[Tensor]:
            found = super().features(images)
            if context is not None:
                context.auxiliary |= {"balance_loss": found[0].mean() * 0 + 3, "map": found[0]}
            return found

    pyramid = Pyramid(Leaving())
    pyramid.features(torch.randn(1, 3, 32, 32))
    assert isinstance(pyramid.own_losses, Tensor)
    assert float(pyramid.own_losses.detach()) == 3
