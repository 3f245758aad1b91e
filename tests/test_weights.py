"""Weights load wherever they lie in a file, and only into the model that they are of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from weight_files import FILE, Net, Outer, a_state, assert_equal, loaded, prefixed, refusal

from harness.models import build_model
from harness.record import Weights
from harness.weights import load_weights, state_sha256


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.pt", "a.bin", "a.tar"])
def test_bare_states(name: str, save: Callable[..., Path]) -> None:
    state = a_state()
    found, stamp = loaded(save(state, name))
    assert_equal(found, state)
    assert stamp == FILE


@pytest.mark.parametrize("container", ["state_dict", "model", "model_state_dict", "ema", "model_ema", "state_dict_ema"])
def test_containers(container: str, save: Callable[..., Path]) -> None:
    found, stamp = loaded(save({"epoch": 3, container: a_state(), "optimizer": {"lr": 0.1}}))
    assert_equal(found, a_state())
    assert stamp.container == container


@pytest.mark.parametrize("average", ["ema", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("raw", ["model", "state_dict"])
def test_averaged_weights_come_first(average: str, raw: str, save: Callable[..., Path]) -> None:
    found, stamp = loaded(save({raw: a_state(1), average: a_state(2)}))
    assert_equal(found, a_state(2))
    assert stamp.container == average


def test_a_container_without_tensors_is_none(save: Callable[..., Path]) -> None:
    found, stamp = loaded(save({"ema": {"decay": 0.9}, "model": a_state()}))
    assert_equal(found, a_state())
    assert stamp.container == "model"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
def test_prefixes(prefix: str, save: Callable[..., Path]) -> None:
    found, _ = loaded(save({"state_dict": prefixed(a_state(), prefix)}))
    assert_equal(found, a_state())


def test_a_prefix_of_the_models_own_stays(save: Callable[..., Path]) -> None:
    state = a_state(module=Outer)
    for prefix in ("", "module.", "model."):
        found, _ = loaded(save(prefixed(state, prefix)), module=Outer)
        assert_equal(found, state)


def test_torchs_averaged_model(save: Callable[..., Path]) -> None:
    torch.manual_seed(1)
    found, _ = loaded(save(torch.optim.swa_utils.AveragedModel(Net()).state_dict()))
    assert_equal(found, a_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_other_floating_point_types(dtype: torch.dtype, name: str, save: Callable[..., Path]) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in a_state().items()}
    found, _ = loaded(save(state, name))
    assert_equal(found, {key: value.to(found[key].dtype) for key, value in state.items()})
    assert found["stem.weight"].dtype == torch.float32


def test_old_checkpoints_without_batch_counters(save: Callable[..., Path]) -> None:
    state = {key: value for key, value in a_state().items() if not key.endswith("num_batches_tracked")}
    _, stamp = loaded(save(state))
    assert stamp.missing == ()


def test_old_file_format(tmp_path: Path) -> None:
    torch.save(a_state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_equal(loaded(tmp_path / "old.pth")[0], a_state())


@pytest.mark.data
@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224.fp16.safetensors"),
        ("torchvision.models:squeezenet1_1", "squeezenet1_1.fp16.safetensors"),
    ],
)
def test_real_weights(model: str, file: str, shared_data: Path) -> None:
    module = build_model(model)
    before = state_sha256(module)
    stamp = load_weights(module, shared_data / "weights" / file, FILE)
    assert (stamp.missing, stamp.unexpected) == ((), ())
    assert state_sha256(module) != before


# Of another model


def test_differences_are_listed_and_refused(save: Callable[..., Path]) -> None:
    state = a_state() | {"norm.weight": torch.ones(9), "head.bias": torch.ones(1)}
    del state["stem.bias"]
    message = refusal(save(state))
    assert "1 missing (stem.bias); 1 unexpected (head.bias)" in message
    assert "1 of another shape or type (norm.weight (9,) float32 for (4,) float32)" in message
    assert "--allow-partial" in message


def test_long_lists_are_cut(save: Callable[..., Path]) -> None:
    message = refusal(save(a_state() | {f"head.{number}": torch.ones(1) for number in range(50)}))
    assert "50 unexpected (head.0, head.1, head.10, ...)" in message


def test_allow_partial_loads_the_rest_and_lists_it(save: Callable[..., Path]) -> None:
    state = a_state() | {"norm.weight": torch.ones(9), "head.bias": torch.ones(1)}
    del state["stem.bias"]
    found, stamp = loaded(save(state), Weights(source="file", allow_partial=True))
    untouched = a_state(0)
    assert torch.equal(found["stem.weight"], state["stem.weight"])
    assert torch.equal(found["stem.bias"], untouched["stem.bias"])
    assert torch.equal(found["norm.weight"], untouched["norm.weight"])
    assert stamp.missing == ("norm.weight", "stem.bias")
    assert stamp.unexpected == ("head.bias", "norm.weight")


@pytest.mark.parametrize("partial", [False, True])
def test_checkpoint_of_another_model(partial: bool, save: Callable[..., Path]) -> None:
    state = {"conv.weight": torch.ones(2), "norm.num_batches_tracked": torch.tensor(3)}
    message = refusal(save(state), Weights(source="file", allow_partial=partial))
    assert "is a checkpoint of another model, since nothing in it fits: 6 missing" in message


def test_quantised_integers_are_no_weights(save: Callable[..., Path]) -> None:
    state = a_state() | {"stem.weight": torch.ones(4, 3, dtype=torch.int8)}
    assert "stem.weight (4, 3) int8 for (4, 3) float32" in refusal(save(state))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_that_are_not_finite(value: float, dtype: torch.dtype, save: Callable[..., Path]) -> None:
    state = a_state()
    state["stem.weight"] = state["stem.weight"].to(dtype).index_fill(0, torch.tensor(2), value)
    assert "values in 'stem.weight' that are not finite" in refusal(save(state))


def test_an_infinite_mask_is_no_fault(save: Callable[..., Path]) -> None:
    def masked() -> nn.Module:
        module = nn.Linear(1, 1)
        module.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        return module

    state, _ = loaded(save(masked().state_dict()), module=masked)
    assert state["mask"][0, 1] == -torch.inf
