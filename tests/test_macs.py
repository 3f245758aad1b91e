"""MACs: hand-counted nets, invariance, guards that fail when removed, and timm's published table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from toys import GRAD_MODES, IMAGES, TOYS, Net, tokens_of, values

from harness.costs.counter import MacCounter
from harness.costs.formulas import FORMULAS, count_operator, formula
from harness.costs.free import FREE, is_free
from harness.costs.macs import count_macs, fvcore_macs, macs
from harness.errors import BenchError, DuplicateName
from harness.record import Setup


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


def test_the_fused_kernel_of_the_processor_has_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    build, expected = TOYS["attention"]
    kernel = "aten::_scaled_dot_product_flash_attention_for_cpu"
    for grad_mode in GRAD_MODES:
        with grad_mode(), MacCounter() as counter:
            build()(IMAGES)
        assert counter.result().total == expected
    with torch.no_grad(), MacCounter() as counter:
        build()(IMAGES)
    assert counter.result().by_operator == {kernel: expected}
    monkeypatch.delitem(FORMULAS, kernel)
    with torch.no_grad(), MacCounter() as counter:
        build()(IMAGES)
    assert (counter.result().total, counter.result().uncounted) == (0, {kernel: 1})


RECURRENT = {
    "LSTM with projections": lambda: nn.LSTM(12, 7, num_layers=2, bidirectional=True, proj_size=3, batch_first=True),
    "GRU of two layers": lambda: nn.GRU(12, 7, num_layers=2, bidirectional=True),
    "RNN": lambda: nn.RNN(12, 7, batch_first=True),
    "RNN with ReLU": lambda: nn.RNN(12, 7, nonlinearity="relu"),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_network_is_one_operator_on_meta_tensors(name: str) -> None:
    shapes: list[list[torch.Size]] = []

    def run(images: Tensor, layer: nn.Module) -> Any:
        outputs = layer(tokens_of(images))
        shapes.append([tensor.shape for tensor in tree_leaves(outputs)])
        return outputs

    model = Net(run, RECURRENT[name]())
    count = count_macs(model, IMAGES)
    assert count.total == sum(64 * weight.numel() for weight in model.parameters() if weight.ndim == 2)
    assert count.calls < 20  # of 64 steps
    assert fvcore_macs(model, IMAGES) == count.total
    with torch.no_grad(), MacCounter() as counter:
        model(IMAGES)
    assert counter.result().total == count.total
    assert shapes == [shapes[0]] * len(shapes)  # whole or in steps, traced or not


def test_without_its_formula_a_recurrent_network_is_counted_by_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    build, expected = TOYS["LSTM"]
    monkeypatch.delitem(FORMULAS, "aten::lstm")
    count = count_macs(build(), IMAGES)
    assert count.total == expected
    assert count.calls > 2 * 64


def test_a_packed_sequence_counts_its_steps() -> None:
    def run(images: Tensor, layer: nn.Module) -> Any:
        return layer(nn.utils.rnn.pack_sequence([tokens_of(images)[0, :40], tokens_of(images)[0, :24]]))[0].data

    count = count_macs(Net(run, nn.GRU(12, 7)), IMAGES)
    assert (count.total, count.uncounted) == (64 * 21 * (12 + 7), {})


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
        ("cross attention", ["aten::bmm"], "aten::bmm"),
        ("window attention", ["aten::bmm"], "aten::bmm"),
        ("MultiheadAttention", ["aten::bmm"], "aten::bmm"),
        ("Fourier mixer", ["aten::_fft_c2r"], "aten::_fft_c2r"),
        ("deformable convolution", ["torchvision::deform_conv2d"], "torchvision::deform_conv2d"),
        ("grouped convolution", ["aten::convolution"], "aten::convolution"),
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
