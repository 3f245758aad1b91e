"""MACs: hand-counted nets, invariance, guards that fail when removed, and timm's published table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.costs.counter import MacCounter
from harness.costs.formulas import FORMULAS, count_operator, formula
from harness.costs.free import FREE, is_free
from harness.costs.macs import count_macs, fvcore_macs, macs
from harness.errors import BenchError, DuplicateName
from harness.metric import Measurement
from harness.record import Setup

ROOT = Path(__file__).parents[1]
TABLE = ROOT.parent / "shared" / "reference" / "timm.csv"
needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="timm's table (shared/reference/timm.csv) is not here")


class Net(nn.Module):
    """A function of images and of some layers, as a module."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Any:
        return self.function(images, *self.layers)


def tokens_of(images: Tensor) -> Tensor:
    """(B, 3, 8, 8) -> (B, 64, 12)."""
    return images.flatten(2).transpose(1, 2).repeat(1, 1, 4)


def attention(images: Tensor) -> Tensor:
    query, key, value = (tokens_of(images).reshape(-1, 64, 3, 4).transpose(1, 2) for _ in range(3))
    return functional.scaled_dot_product_attention(query, key, value)


def written_out_attention(images: Tensor) -> Any:
    query, key, value = (tokens_of(images).reshape(-1, 64, 3, 4).transpose(1, 2) for _ in range(3))
    return (query @ key.transpose(2, 3)).softmax(-1) @ value


def cross_attention(images: Tensor) -> Tensor:
    key = tokens_of(images)[:, None]  # (B, 1, 64, 12)
    return functional.scaled_dot_product_attention(key[:, :, :5], key, key[..., :7])


def window_attention(images: Tensor, projection: nn.Module) -> Any:
    windows = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, 3)  # (4B, 16, 3)
    query, key, value = projection(windows).chunk(3, dim=-1)
    return functional.scaled_dot_product_attention(query, key, value)


def linear_attention(images: Tensor) -> Any:
    tokens = tokens_of(images)
    return torch.einsum("bnd,bde->bne", tokens, torch.einsum("bnd,bne->bde", tokens, tokens[..., :5]))


def fourier_mixer(images: Tensor) -> Any:
    return torch.fft.irfft2(torch.fft.rfft2(images, norm="ortho"), s=(8, 8), norm="ortho")


def self_attention(images: Tensor, layer: nn.Module) -> Any:
    tokens = tokens_of(images)
    return layer(tokens, tokens, tokens, need_weights=False)[0]


def deformable(images: Tensor, layer: nn.Module) -> Any:
    return layer(images, torch.zeros(len(images), 18, 8, 8, device=images.device))


def sampled(images: Tensor) -> Tensor:
    return functional.grid_sample(images, torch.zeros(len(images), 5, 5, 2, device=images.device), align_corners=False)


def deform_layer() -> Any:
    from torchvision.ops import DeformConv2d

    return DeformConv2d(3, 6, 3, padding=1)


def apply(images: Tensor, layer: nn.Module) -> Any:
    return layer(images)


def apply_to_tokens(images: Tensor, layer: nn.Module) -> Any:
    return layer(tokens_of(images))


# The images are (1, 3, 8, 8), the tokens (1, 64, 12).
TOYS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "attention": (lambda: Net(attention), 2 * 64 * 64 * 12),
    "attention written out": (lambda: Net(written_out_attention), 2 * 64 * 64 * 12),
    "cross attention": (lambda: Net(cross_attention), 5 * 64 * (12 + 7)),
    "window attention": (lambda: Net(window_attention, nn.Linear(3, 9)), 64 * 3 * 9 + 4 * 2 * 16 * 16 * 3),
    "linear attention": (lambda: Net(linear_attention), 2 * 64 * 12 * 5),
    "MultiheadAttention": (
        lambda: Net(self_attention, nn.MultiheadAttention(12, 4, batch_first=True)),
        4 * 64 * 12 * 12 + 2 * 64 * 64 * 12,
    ),
    "TransformerEncoderLayer": (
        lambda: Net(apply_to_tokens, nn.TransformerEncoderLayer(12, 4, 24, batch_first=True)),
        4 * 64 * 12 * 12 + 2 * 64 * 64 * 12 + 2 * 64 * 12 * 24 + 2 * 5 * 64 * 12,
    ),
    # Each way: 24 real transforms of 8 points, 15 complex ones; 2.5 N log2 N MACs a complex one, half of it a real one.
    "Fourier mixer": (lambda: Net(fourier_mixer), 2 * (24 * 30 + 15 * 60)),
    "convolution": (lambda: Net(apply, nn.Conv2d(3, 5, 3, stride=2, padding=1)), 16 * 5 * 3 * 9),
    "grouped convolution": (lambda: Net(apply, nn.Conv2d(3, 6, 3, padding="same", groups=3)), 64 * 6 * 9),
    "transposed convolution": (lambda: Net(apply, nn.ConvTranspose2d(3, 6, 3, stride=2)), 64 * 3 * 6 * 9),
    "1d convolution": (
        lambda: Net(lambda images, layer: layer(images.flatten(2)), nn.Conv1d(3, 4, 5, dilation=2)),
        56 * 3 * 4 * 5,
    ),
    "deformable convolution": (lambda: Net(deformable, deform_layer()), 64 * 3 * 6 * 9 + 4 * 64 * 3 * 9),
    "grid sampling": (lambda: Net(sampled), 4 * 3 * 25),
    "bilinear": (lambda: Net(lambda images: functional.interpolate(images, scale_factor=2, mode="bilinear")), 4 * 768),
    "bicubic": (lambda: Net(lambda images: functional.interpolate(images, (5, 5), mode="bicubic")), 16 * 75),
    "antialiased": (
        lambda: Net(lambda images: functional.interpolate(images, (4, 4), mode="bilinear", antialias=True)),
        4 * 4 * 48,
    ),
    "nearest": (lambda: Net(lambda images: functional.interpolate(images, scale_factor=2)), 768),
    "batch norm": (lambda: Net(apply, nn.BatchNorm2d(3)), 2 * 192),
    "batch norm, not affine": (lambda: Net(apply, nn.BatchNorm2d(3, affine=False)), 192),
    "instance norm": (lambda: Net(apply, nn.InstanceNorm2d(3)), 4 * 192),
    "group norm": (lambda: Net(apply, nn.GroupNorm(1, 3)), 5 * 192),
    "layer norm": (lambda: Net(apply_to_tokens, nn.LayerNorm(12, elementwise_affine=False)), 4 * 768),
    "RMS norm": (lambda: Net(apply_to_tokens, nn.RMSNorm(12)), 0),
    "LSTM": (
        lambda: Net(apply_to_tokens, nn.LSTM(12, 7, batch_first=True, bidirectional=True)),
        2 * 64 * 28 * (12 + 7),
    ),
    "GRU": (lambda: Net(apply_to_tokens, nn.GRU(12, 7, batch_first=True)), 64 * 21 * (12 + 7)),
    "bilinear layer": (
        lambda: Net(lambda images, layer: layer(tokens_of(images), tokens_of(images)), nn.Bilinear(12, 12, 5)),
        64 * 5 * 12 * 12,
    ),
    "distances": (lambda: Net(lambda images: torch.cdist(tokens_of(images), tokens_of(images)[:, :9])), 64 * 9 * 12),
}
GRAD_MODES = (torch.no_grad, torch.inference_mode, torch.enable_grad)
IMAGES = torch.zeros(1, 3, 8, 8)


def values(measurements: list[Measurement]) -> dict[str, float | None]:
    return {measurement.metric.name: measurement.value for measurement in measurements}


@pytest.mark.parametrize("toy", TOYS)
def test_hand_counts(toy: str) -> None:
    build, expected = TOYS[toy]
    count = count_macs(build(), IMAGES)
    assert (count.total, count.uncounted, count.tensors) == (expected, {}, "meta")
    assert sum(count.by_kind.values()) == sum(count.by_operator.values()) == expected
    assert fvcore_macs(build(), IMAGES) == expected


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("grad_mode", GRAD_MODES)
def test_device_and_grad_mode_do_not_matter(toy: str, device: str, grad_mode: Any) -> None:
    build, expected = TOYS[toy]
    model = build().eval().to(device)
    with grad_mode(), MacCounter() as counter:
        model(IMAGES.to(device))
    count = counter.result()
    assert (count.total, count.uncounted) == (expected, {})


@pytest.mark.parametrize(
    ("toy", "operator"),
    [
        ("MultiheadAttention", "aten::_native_multi_head_attention"),
        ("TransformerEncoderLayer", "aten::_transformer_encoder_layer_fwd"),
    ],
)
def test_the_fast_path_has_formulas(toy: str, operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, expected = TOYS[toy]
    model = build().eval()
    with torch.no_grad(), MacCounter() as counter:
        model(IMAGES)
    assert counter.result().by_operator == {operator: expected}
    assert counter.result().by_kind == count_macs(model, IMAGES).by_kind
    monkeypatch.delitem(FORMULAS, operator)
    with torch.no_grad(), MacCounter() as counter:
        model(IMAGES)
    assert (counter.result().total, counter.result().uncounted) == (0, {operator: 1})


def test_every_fused_attention_has_a_formula() -> None:
    """Also those of other devices, and those that a later torch adds."""
    query, key, value = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 7, 8), torch.zeros(2, 2, 7, 3)
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    fused = {
        name
        for name in names
        if name.startswith("aten::_scaled_dot_product") and "backward" not in name and "quantized" not in name
    }
    assert len(fused) >= 7
    for name in fused:
        assert count_operator(name, None, (query, key, value), {}) == {"attention": 2 * 4 * 5 * 7 * (8 + 3)}, name


def test_flex_attention() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    def flexible(images: Tensor) -> Any:
        query = tokens_of(images).reshape(-1, 64, 3, 4).transpose(1, 2)
        return flex_attention(query, query, query)

    count = count_macs(Net(flexible), IMAGES)
    assert count.by_operator == {"higher_order::flex_attention": 2 * 64 * 64 * 12}
    assert count.tensors.startswith("cpu; not meta (")


@pytest.mark.parametrize(
    ("toy", "formulas_removed", "named"),
    [
        ("attention", ["aten::bmm"], "aten::bmm"),
        ("Fourier mixer", ["aten::_fft_c2r"], "aten::_fft_c2r"),
        ("deformable convolution", ["torchvision::deform_conv2d"], "torchvision::deform_conv2d"),
        ("convolution", ["aten::convolution"], "aten::convolution"),
        ("layer norm", ["aten::native_layer_norm"], "aten::native_layer_norm"),
        ("grid sampling", ["aten::grid_sampler_2d"], "aten::grid_sampler_2d"),
    ],
)
def test_without_a_formula_there_is_no_count(
    toy: str, formulas_removed: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TOYS[toy][0]()
    assert values(macs(model, IMAGES, Setup()).measurements)["gmacs"] is not None
    for name in formulas_removed:
        monkeypatch.delitem(FORMULAS, name)
    headline, *others = macs(model, IMAGES, Setup()).measurements
    assert headline.metric.name == "gmacs"
    assert headline.value is None
    assert f"{named} (1 of " in headline.reason or f"{named} (2 of " in headline.reason
    rest = values(others)
    assert rest["gmacs_fvcore"] is None
    assert rest["uncounted_calls"] is not None
    assert rest["uncounted_calls"] > 0


def test_fvcore_needs_the_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TOYS["attention"][0]()
    assert fvcore_macs(model, IMAGES) == TOYS["attention"][1]
    monkeypatch.delitem(FORMULAS, "aten::scaled_dot_product_attention")
    assert fvcore_macs(model, IMAGES) == 0


def test_a_custom_operator_counts_once_it_has_a_formula() -> None:
    @torch.library.custom_op("bench_test::scan", mutates_args=())
    def scan(states: Tensor) -> Tensor:
        return states.cumsum(-1)

    scan.register_fake(torch.empty_like)
    count = count_macs(Net(scan), IMAGES)
    assert count.uncounted == {"bench_test::scan": 1}
    assert count.calls == 1
    formula("other", "bench_test::scan")(lambda _output, states, *_, **__: 9 * states.numel())
    try:
        count = count_macs(Net(scan), IMAGES)
        assert (count.total, count.by_kind, count.uncounted) == (9 * 192, {"other": 9 * 192}, {})
        assert fvcore_macs(Net(scan), IMAGES) == 9 * 192
        with pytest.raises(DuplicateName, match="bench_test::scan"):
            formula("other", "bench_test::scan")(lambda *_, **__: 0)
    finally:
        del FORMULAS["bench_test::scan"]


def test_a_formula_needs_a_known_kind() -> None:
    with pytest.raises(BenchError, match="'attn' is no kind"):
        formula("attn", "bench_test::other")  # type: ignore[arg-type]


def foreign_kernel(images: Tensor) -> Tensor:
    """As a compiled extension does: allocate by torch, fill behind its back."""
    output = torch.empty(images.shape, device=images.device)
    output.numpy()[:] = 2 * images.numpy()
    return output + 1


def test_a_kernel_outside_torch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(Net(foreign_kernel))
    headline = macs(model, IMAGES, Setup()).measurements[0]
    assert headline.value is None
    assert "a kernel outside torch's dispatcher in 0 (1 of " in headline.reason
    monkeypatch.setattr(MacCounter, "_notice_foreign_kernels", lambda *_: None)
    assert macs(model, IMAGES, Setup()).measurements[0].value == 0


def test_memory_that_is_written_first_is_no_foreign_kernel() -> None:
    def fill(images: Tensor) -> Tensor:
        output = torch.empty_like(images)
        zeros = torch.zeros_like(output)
        output[:, :1] = images[:, :1] + zeros[:, :1]
        drop = images.new_empty(1).bernoulli_(0.5)
        return torch.add(output, drop, out=torch.empty(0, device=images.device)) + images.new_empty(0).sum()

    assert count_macs(Net(fill), IMAGES).uncounted == {}
    assert count_macs(Net(lambda images: fill(images).numpy()), IMAGES).uncounted == {}


def test_sparse_tensors_pass() -> None:
    count = count_macs(Net(lambda images: images.flatten(1).to_sparse().to_dense() + 1), IMAGES)
    assert count.uncounted.keys() <= {"aten::_to_sparse", "aten::_to_dense"}


def test_free_operators_exist_and_have_no_formula() -> None:
    assert [name for name in FREE if not hasattr(torch.ops.aten, name)] == []
    assert not {f"aten::{name}" for name in FREE} & FORMULAS.keys()
    assert is_free(torch.ops.aten.add_.Tensor)
    assert is_free(torch.ops.aten.scatter_.src)
    assert not is_free(torch.ops.aten.linalg_svd.default)
