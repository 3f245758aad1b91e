"""Every registered model keeps the contract, carriers take every mixer, and the plain ViT equals timm's DeiT."""

from __future__ import annotations

import copy
import inspect

import pytest
import timm
import torch
from mixers import takes_prefix
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models import AttentionContext, AttentionSite, build_model
from harness.registry import ATTENTIONS, MODELS
from harness.task import FeaturePyramid

SIZE = (64, 64)
CLASSES = 10
CARRIERS = ("vit_t16", "vit_t16_cls", "pyramid_t")


def images_of(size: tuple[int, int] = SIZE, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def randomise(module: nn.Module) -> nn.Module:
    """Move every parameter off special values such as zero, and stop training."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def parameters_of(model_id: str) -> int:
    """Count the parameters of a model as published, without memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(model_id).parameters())


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    built = build_model(request.param, num_classes=CLASSES, image_size=SIZE).eval()
    built.identifier = request.param
    return built


@pytest.mark.parametrize(("size", "batch"), [(SIZE, 1), ((48, 80), 3), ((37, 70), 2)])
def test_logits_of_any_size(model: nn.Module, size: tuple[int, int], batch: int) -> None:
    with torch.no_grad():
        logits = model(images_of(size, batch))
    assert logits.shape == (batch, CLASSES)
    assert logits.isfinite().all()


def test_gradients_reach_every_parameter(model: nn.Module) -> None:
    logits = model(images_of())
    (logits * torch.randn_like(logits)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


@torch.no_grad()
def test_evaluation_is_deterministic(model: nn.Module) -> None:
    assert torch.equal(model(images_of()), model(images_of()))


@torch.no_grad()
def test_images_do_not_see_each_other(model: nn.Module) -> None:
    images = images_of(batch=3)
    alone = torch.cat([model(image) for image in images.split(1)])
    torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_images_matter(model: nn.Module) -> None:
    first, second = model(images_of())
    assert (first - second).abs().max() > 1e-4


@torch.no_grad()
def test_bfloat16(model: nn.Module) -> None:
    logits = copy.deepcopy(model).bfloat16()(images_of((37, 70)).bfloat16())
    assert logits.dtype is torch.bfloat16
    assert logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("size", [SIZE, (37, 70)])
def test_features_agree_with_channels_and_strides(model: nn.Module, size: tuple[int, int]) -> None:
    if not isinstance(model, FeaturePyramid):
        pytest.skip("declares no feature pyramid")
    maps = model.features(images_of(size))
    expected = [
        (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        for channels, stride in zip(model.channels, model.strides, strict=True)
    ]
    assert [tuple(level.shape) for level in maps] == expected


@torch.no_grad()
def test_head_of_features_is_the_forward_pass(model: nn.Module) -> None:
    if not hasattr(model, "forward_head"):
        pytest.skip("has no separate head")
    features = model.forward_features(images_of())
    assert torch.equal(model.forward_head(features), model(images_of()))
    assert model.forward_head(features, pre_logits=True).ndim == 2


@torch.no_grad()
def test_state_dict_round_trip(model: nn.Module) -> None:
    torch.manual_seed(1)
    fresh = build_model(model.identifier, num_classes=CLASSES, image_size=SIZE).eval()
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh(images_of()), model(images_of()))


@pytest.mark.parametrize("name", list(MODELS))
def test_parameters_are_the_published(name: str) -> None:
    published = MODELS.get(name).card.published.get("parameters")
    if published is not None:
        assert parameters_of(name) / 1e6 == pytest.approx(published, rel=0.01)


@torch.no_grad()
@pytest.mark.parametrize("attention", list(ATTENTIONS))
@pytest.mark.parametrize("carrier", CARRIERS)
def test_carrier_takes_attention(carrier: str, attention: str) -> None:
    if carrier.endswith("_cls") and not takes_prefix(attention):
        with pytest.raises(ModelError, match="vit_s16 instead of vit_s16_cls"):
            build_model(f"{carrier}+{attention}")
        return
    model = build_model(f"{carrier}+{attention}", num_classes=CLASSES, image_size=SIZE).eval()
    for size in (SIZE, (37, 70)):
        logits = model(images_of(size))
        assert logits.shape == (2, CLASSES)
        assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_default_attention_is_softmax() -> None:
    for name in MODELS:
        if "attention" in inspect.signature(MODELS.get(name).build).parameters:
            assert parameters_of(name) == parameters_of(f"{name}+softmax")


@pytest.mark.parametrize(
    ("model_id", "parameters"),
    [
        ("vit_t16_cls", 5_717_416),
        ("vit_s16_cls", 22_050_664),
        ("vit_b16_cls", 86_567_656),
        ("vit_t16_cls+agent", 6_015_640),
        ("vit_s16_cls+agent", 22_647_112),
    ],
)
def test_parameters_are_exactly_those_of_the_released(model_id: str, parameters: int) -> None:
    assert parameters_of(model_id) == parameters


def assert_equals_timm(reference: nn.Module, model_id: str, images: Tensor, image_size: tuple[int, int]) -> None:
    model = build_model(model_id, image_size=image_size).eval()
    model.load_state_dict(randomise(reference).state_dict(), strict=True)
    with torch.no_grad():
        assert (model(images) - reference(images)).abs().max() < 1e-5


def test_vit_s16_cls_is_deit_small() -> None:
    reference = timm.create_model("deit_small_patch16_224", pretrained=False)
    assert_equals_timm(reference, "vit_s16_cls", images_of((224, 224)), (224, 224))


def test_norms_are_deit_s() -> None:
    reference = timm.create_model("deit_tiny_patch16_224", pretrained=False)
    epsilons = [
        {name: part.eps for name, part in model.named_modules() if isinstance(part, nn.LayerNorm)}
        for model in (reference, build_model("vit_t16_cls"))
    ]
    assert epsilons[0] == epsilons[1]


@pytest.mark.parametrize("size", [(224, 224), (96, 64), (70, 101)])
def test_vit_t16_cls_is_deit_tiny_at_other_sizes(size: tuple[int, int]) -> None:
    options = {"img_size": 96, "dynamic_img_size": True, "dynamic_img_pad": True}
    reference = timm.create_model("deit_tiny_patch16_224", pretrained=False, **options)
    assert_equals_timm(reference, "vit_t16_cls", images_of(size), (96, 96))


def test_vit_t16_is_timm_s_vit_without_class_token() -> None:
    options = {"img_size": (64, 96), "class_token": False, "global_pool": "avg", "fc_norm": False}
    reference = timm.create_model("deit_tiny_patch16_224", pretrained=False, **options)
    assert_equals_timm(reference, "vit_t16", images_of((64, 96)), (64, 96))


class Witness(nn.Module):
    """A mixer that mixes nothing and notes where it stands and what it is called with."""

    def __init__(
        self, site: AttentionSite, calls: list[tuple[AttentionSite, AttentionContext, tuple[int, int]]]
    ) -> None:
        super().__init__()
        self.site, self.calls = site, calls

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        self.calls.append((self.site, context, context.grid))
        context.memory[str(self.site.layer)] = tokens
        return tokens


@torch.no_grad()
@pytest.mark.parametrize(
    ("carrier", "stages"),
    [("vit_t16", [0] * 12), ("vit_t16_cls", [0] * 12), ("pyramid_t", [0, 0, 1, 1, *[2] * 6, 3, 3])],
)
def test_carriers_tell_mixers_where_they_stand(carrier: str, stages: list[int]) -> None:
    calls: list[tuple[AttentionSite, AttentionContext, tuple[int, int]]] = []
    model = MODELS.get(carrier).build(image_size=(64, 96), attention=lambda site: Witness(site, calls))
    assert isinstance(model, FeaturePyramid)
    model(images_of((64, 96)))
    model(images_of((128, 64)))
    first, second = calls[: len(stages)], calls[len(stages) :]
    sites = [site for site, _, _ in first]
    strides = [model.strides[stage] for stage in stages]
    assert [(site.layer, site.depth, site.stage) for site in sites] == [
        (i, 12, stage) for i, stage in enumerate(stages)
    ]
    assert all(site.prefix == carrier.endswith("_cls") for site in sites)
    assert [site.dim for site in sites] == [model.channels[stage] for stage in stages]
    assert [grid for _, _, grid in first] == [site.grid for site in sites] == [(64 // s, 96 // s) for s in strides]
    assert [grid for _, _, grid in second] == [(128 // s, 64 // s) for s in strides]
    assert len({id(context) for _, context, _ in first}) == 1
    assert first[0][1] is not second[0][1]
    assert len(first[0][1].memory) == len(stages)
