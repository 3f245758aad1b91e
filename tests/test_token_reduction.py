"""Wrappers that reduce tokens: the contract that all keep, and what each saves, merges, keeps or masks."""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.wrappers.token_reduction.evit import evit
from baselines.wrappers.token_reduction.expedit import expedit
from baselines.wrappers.token_reduction.ia_red2 import ia_red2
from baselines.wrappers.token_reduction.sparsifiner import sparsifiner
from baselines.wrappers.token_reduction.tome import tome
from harness.breakdown import break_down
from harness.costs.counter import count_macs
from harness.errors import ModelError
from harness.features import embedder, maps
from harness.models import AttentionContext, build_model, claimed_gmacs
from harness.registry import WRAPPERS

SIZE, CLASSES = (64, 64), 10
NAMES = [entry.name for entry in WRAPPERS.entries() if "token_reduction" in entry.place]
METHODS = [name for name in NAMES if "_" not in name or name == "ia_red2"]
CARRIERS = ("vit_t16_cls", "vit_t16", "timm:deit_tiny_patch16_224")
# What a wrapper adds; the official checkpoints of the backbone do not have it.
ADDED = ("interpreter.", "mask_predictor.")


def cases(names: list[str]) -> list[str]:
    return [
        f"{carrier}+{name}" for carrier in CARRIERS for name in names if carrier != "vit_t16" or needs_no_class(name)
    ]


def needs_no_class(name: str) -> bool:
    return not name.startswith("ia_red2")


def images_of(size: tuple[int, int] = SIZE, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def build(model_id: str, seed: int = 0, size: tuple[int, int] = SIZE) -> Any:
    """Return a model none of whose parameters is at a special value such as zero."""
    torch.manual_seed(seed)
    module = build_model(model_id, num_classes=CLASSES, image_size=size)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture(scope="module", params=cases(METHODS))
def model(request: pytest.FixtureRequest) -> Any:
    built = build(request.param)
    built.identifier = request.param
    return built


def test_the_five_methods_are_registered() -> None:
    assert {"tome", "evit", "expedit", "sparsifiner", "ia_red2"} <= set(METHODS)


@torch.no_grad()
def test_images_of_other_sizes(model: Any) -> None:
    images = images_of((48, 80), batch=3)
    if "sparsifiner" in model.identifier and "timm" not in model.identifier:
        with pytest.raises(ModelError, match=r"made for 1[67] tokens and got 1[56].*image_size="):
            model(images)
        model = build(model.identifier, size=(48, 80))
    elif "timm" in model.identifier:
        model = build(model.identifier, size=(48, 80))
    logits = model(images)
    assert logits.shape == (3, CLASSES)
    assert logits.isfinite().all()


def test_gradients_are_finite_and_reach_the_backbone(model: Any) -> None:
    logits = model(images_of())
    (logits * torch.randn_like(logits)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    for name, gradient in gradients.items():
        if gradient is None:
            assert any(added in name for added in ADDED), name
        else:
            assert gradient.isfinite().all(), name
            assert gradient.any(), name


@torch.no_grad()
def test_evaluation_is_deterministic_and_images_do_not_see_each_other(model: Any) -> None:
    # In double precision, since a decision between near equals may go either way in single.
    exact, images = copy.deepcopy(model).double(), images_of(batch=3).double()
    together = exact(images)
    assert torch.equal(together, exact(images))
    alone = torch.cat([exact(image) for image in images.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    tokens = torch.cat([exact.forward_features(image) for image in images.split(1)])
    torch.testing.assert_close(exact.forward_features(images), tokens, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_bfloat16(model: Any) -> None:
    logits = copy.deepcopy(model).bfloat16()(images_of().bfloat16())
    assert logits.dtype is torch.bfloat16
    assert logits.isfinite().all()


@torch.no_grad()
def test_parameters_are_those_of_the_unwrapped_model(model: Any) -> None:
    with torch.device("meta"):
        base = build_model(model.identifier.rpartition("+")[0], num_classes=CLASSES, image_size=SIZE)
    own = {name: value.shape for name, value in model.state_dict().items()}
    shared = {name: shape for name, shape in own.items() if not any(added in name for added in ADDED)}
    assert shared == {name: value.shape for name, value in base.state_dict().items()}
    assert (own != shared) == any(name in model.identifier for name in ("ia_red2", "sparsifiner"))


@torch.no_grad()
def test_state_dict_round_trip(model: Any) -> None:
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(1.1)
    assert not torch.equal(other(images_of()), model(images_of()))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(images_of()), model(images_of()))


@torch.no_grad()
def test_tokens_return_to_their_places(model: Any) -> None:
    prefix = getattr(model, "num_prefix_tokens", getattr(model, "prefix", 0))
    tokens = model.forward_features(images_of())
    assert tokens.shape[:2] == (2, prefix + 16)
    assert torch.equal(model.forward_head(tokens), model(images_of()))
    (last,) = maps(model, ["last"])(images_of())
    assert torch.equal(last, tokens[:, prefix:].mT.unflatten(2, (4, 4)))
    if hasattr(model, "features"):
        assert torch.equal(model.features(images_of())[0], last)
    assert embedder(model)(images_of()).shape == (2, 192)
    assert maps(model, ["blocks"])(images_of())[0].shape == last.shape
    for layer in ("-1", "blocks.3", "blocks.0.norm1"):
        with pytest.raises(ModelError, match="layer=last"):
            maps(model, [layer])(images_of())


@torch.no_grad()
def test_tokens_that_are_a_square_by_chance_are_no_map() -> None:
    """Of 196 tokens ToMe leaves 144 after four blocks, which are no map of 12 x 12."""
    model = build_model("vit_t16_cls+tome")
    found: list[int] = []
    model.blocks[3].register_forward_hook(lambda _, __, tokens: found.append(tokens.shape[1]))
    model(images_of((224, 224), batch=1))
    assert found == [1 + 12**2]
    with pytest.raises(ModelError, match=r"'tome' has no map.*layer=last"):
        maps(model, ["blocks.3"])


def keep_all(model: Any) -> nn.Module:
    """IA-RED2 whose interpreters find every token informative."""
    wrapped = ia_red2(model)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "interpreter" in name:
                parameter.fill_(0.0 if "weight" in name else 1.0)
    return wrapped


OFF: dict[str, Any] = {
    "tome": lambda model: tome(model, r=0),
    "evit": lambda model: evit(model, keep=1.0),
    "expedit": lambda model: expedit(model, share=1.0),
    "sparsifiner": lambda model: sparsifiner(model, keep=1.0),
    "ia_red2": keep_all,
}


@torch.no_grad()
@pytest.mark.parametrize("model_id", [*cases(METHODS), "timm:deit_tiny_distilled_patch16_224+tome"])
def test_without_reduction_nothing_changes(model_id: str) -> None:
    carrier, _, name = model_id.rpartition("+")
    base = build(carrier)
    wrapped = OFF[name](copy.deepcopy(base))
    torch.testing.assert_close(wrapped(images_of()), base(images_of()), rtol=0, atol=1e-6)


@torch.no_grad()
def test_options_of_timm_are_kept() -> None:
    import timm

    options = {"qk_norm": True, "init_values": 0.1, "reg_tokens": 4, "scale_attn_norm": True, "img_size": 64}
    base = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **options).eval()
    for switch_off in OFF.values():
        wrapped = switch_off(copy.deepcopy(base))
        torch.testing.assert_close(wrapped(images_of()), base(images_of()), rtol=0, atol=1e-6)
    assert (tome(copy.deepcopy(base))(images_of()) - base(images_of())).abs().max() > 1e-4


@pytest.mark.parametrize(
    "model_id",
    [
        "pyramid_t+{}",
        "vit_t16+linear+{}",
        "timm:resnet18+{}",
        "vit_t16+{}+tome",
        "timm:swin_tiny_patch4_window7_224+{}",
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_reduced_is_refused(name: str, model_id: str) -> None:
    name = name if "vit_t16+{}+" not in model_id or needs_no_class(name) else "evit"
    with torch.device("meta"), pytest.raises(ModelError, match=r"softmax attention.*Use vit_s16_cls\+"):
        build_model(model_id.format(name))


def test_a_class_token_is_asked_for() -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=r"vit_s16_cls\+ia_red2 instead of"):
        build_model("vit_t16+ia_red2")


@cache
def gmacs(model_id: str) -> float:
    with torch.device("meta"):
        return count_macs(build_model(model_id), torch.zeros(1, 3, 224, 224)).total / 1e9


# README of youweiliang/evit, DeiT-S with fusion; ToMe: 2.7 in arXiv:2210.09461, table of DeiT-S at r = 13.
@pytest.mark.parametrize(
    ("name", "published"),
    [("evit_k90", 4.0), ("evit_k80", 3.5), ("evit", 3.0), ("evit_k60", 2.6), ("evit_k50", 2.3), ("tome", 2.7)],
)
def test_macs_are_the_published(name: str, published: float) -> None:
    assert gmacs(f"vit_s16_cls+{name}") == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize("name", ["tome", "evit", "expedit", "sparsifiner"])
def test_macs_in_timm_are_those_in_the_carrier(name: str) -> None:
    assert gmacs(f"timm:deit_small_patch16_224+{name}") == pytest.approx(gmacs(f"vit_s16_cls+{name}"), rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NAMES if name not in METHODS])
def test_presets_run_and_differ(name: str) -> None:
    model_id, method = (f"vit_t16+{part}" for part in (name, name.rpartition("_")[0]))
    with torch.device("meta"):
        claims = [claimed_gmacs(build_model(part)) for part in (model_id, method)]
    assert gmacs(model_id) != gmacs(method) or claims[0] != claims[1]


def hand_count(tokens: list[tuple[int, int]], dim: int = 384) -> float:
    """Return GMACs of a DeiT from the tokens that each block's attention and MLP see."""
    blocks = sum(4 * before * dim**2 + 2 * before**2 * dim + 8 * after * dim**2 for before, after in tokens)
    return (blocks + 196 * 768 * dim + 1000 * dim) / 1e9


def test_macs_are_those_of_fewer_tokens() -> None:
    counts = [197 - 13 * layer for layer in range(13)]
    assert gmacs("vit_s16_cls+tome") == pytest.approx(hand_count(list(pairwise(counts))), rel=0.01)
    # 196 -> 138 and the fused token -> 98 and the fused token -> 70 and the fused token; the class token always.
    counts = [197] * 4 + [140] * 3 + [100] * 3 + [72] * 2
    pairs = list(zip(counts, [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3, strict=True))
    assert gmacs("vit_s16_cls+evit") == pytest.approx(hand_count(pairs), rel=0.01)
    counts = [197] * 5 + [101] * 7
    clusters = 2 * 196 * 100 * 384 * (2 * 5 + 2) / 2 / 1e9
    assert gmacs("vit_s16_cls+expedit") == pytest.approx(hand_count([(n, n) for n in counts]) + clusters, rel=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_work_is_saved_or_said_to_be_nominal(name: str) -> None:
    found, base = break_down(f"vit_t16_cls+{name}"), gmacs("vit_t16_cls")
    saved = found.count.total / 1e9 < 0.95 * base
    assert saved != found.nominal.startswith("nominal: ")
    assert not found.count.uncounted
    assert saved == (name != "sparsifiner")


def test_the_claim_of_sparsifiner_is_its_closed_form() -> None:
    tokens, dim, heads, kept, rank = 197, 384, 6, 50, 32
    attention = 12 * (2 * 196 * kept * dim + 2 * tokens * dim)
    width, reduced = dim // heads, dim // heads // 2
    guess = (tokens + 196) * width * reduced + (tokens + 196) * reduced * rank + 196 * 8 * tokens
    expected = gmacs("vit_s16_cls") - 12 * 2 * tokens**2 * dim / 1e9 + (attention + 12 * heads * guess) / 1e9
    assert build_model("vit_s16_cls+sparsifiner").nominal_gmacs == pytest.approx(expected, rel=1e-9)


def test_work_that_depends_on_the_image() -> None:
    model = build("vit_t16_cls+ia_red2")
    counts = [count_macs(model, image) for image in images_of(batch=6).split(1)]
    assert len({count.total for count in counts}) > 1
    assert all(count.tensors.startswith("cpu") for count in counts)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tome", "tome_r4", "evit", "evit_k50", "ia_red2"])
def test_the_class_token_is_never_dropped(name: str) -> None:
    model = build(f"vit_t16_cls+{name}")
    for seed in range(8):
        context = AttentionContext((0, 0))
        model(torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(seed)), context)
        notes = context.auxiliary
        if "source" in notes:
            assert (notes["source"] == 0).sum(dim=1).eq(1).all()
            assert (notes["source"][:, 0] == 0).all()
        elif "kept" in notes:
            assert (notes["kept"][:, 0] == 0).all()
        else:
            assert all(notes[f"kept.{place}"][:, 0].all() for place in (0, 4, 8))


@torch.no_grad()
@pytest.mark.parametrize("carrier", ["vit_t16_cls", "vit_t16"])
def test_merging_equal_tokens_loses_nothing(carrier: str) -> None:
    base = build(carrier)
    base.pos_embed.zero_()
    flat = images_of()[..., :1, :1].expand(2, 3, *SIZE)
    merged = tome(copy.deepcopy(base), r=3)
    context = AttentionContext((0, 0))
    torch.testing.assert_close(merged(flat, context), base(flat), rtol=1e-5, atol=1e-5)
    assert context.auxiliary["source"].max() < 4


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("model_id", [case for case in cases(METHODS) if needs_no_class(case.rpartition("+")[2])])
def test_compiles_as_one_graph(model_id: str) -> None:
    torch._dynamo.reset()
    model = build(model_id)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images_of()), model(images_of()), rtol=1e-4, atol=1e-4)
