"""Weights load safely, or are refused in one line that says why."""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.errors import WeightsError
from harness.models import build_model
from harness.record import Weights
from harness.weights import Inert, file_sha256, load_weights, read_state, state_sha256

State = dict[str, Tensor]
FILE = Weights(source="file")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)


class HistoryBuffer:
    """As mmengine's, whose checkpoints hold numpy arrays and methods of this class."""

    def __init__(self) -> None:
        self.history = np.array([0.5, 0.25])
        self.latest = np.float64(0.25)
        self.statistics = {"min": self.least}

    def least(self) -> float:
        return float(self.history.min())


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


class Touch:
    """Unpickled without care, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def a_state(seed: int = 1, module: Callable[[], nn.Module] = Net) -> State:
    torch.manual_seed(seed)
    return module().state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves an object as a checkpoint, or bytes as they are."""

    def save(content: Any, name: str = "weights.pth") -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
        return path

    return save


def loaded(path: Path, requested: Weights = FILE, module: Callable[[], nn.Module] = Net) -> tuple[State, Weights]:
    """Load a file into a fresh module; return its state and the stamp."""
    torch.manual_seed(0)
    target = module()
    stamp = load_weights(target, path, requested)
    return target.state_dict(), stamp


def refusal(path: Path, requested: Weights = FILE) -> str:
    """Return the message with which a file is refused: one line, that leaves the module as it was."""
    torch.manual_seed(0)
    target = Net()
    before = state_sha256(target)
    with pytest.raises(WeightsError) as caught:
        load_weights(target, path, requested)
    assert state_sha256(target) == before
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


# What loads


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


# Unsafe


@pytest.mark.parametrize("where", ["top", "inside", "bare pickle"])
def test_a_pickle_that_runs_code_does_not(where: str, save: Callable[..., Path], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    content: Any = {"top": Touch(mark), "inside": {"state_dict": a_state(), "extra": Touch(mark)}}.get(where)
    path = save(content if content is not None else pickle.dumps(Touch(mark), protocol=2))
    message = refusal(path)
    assert not mark.exists()
    assert re.search(r"it calls for (posix|nt)\.system, and may run any code\. Save the bare state dict", message)
    pickle.loads(pickle.dumps(Touch(mark)))
    assert mark.exists(), "the file would have run"


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (Decimal(1), "decimal.Decimal"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
def test_what_is_no_tensor_is_named(extra: Any, name: str, save: Callable[..., Path]) -> None:
    assert f"it calls for {name}, and may run any code" in refusal(save({"model": a_state(), "args": extra}))


@pytest.fixture
def mmengines(monkeypatch: pytest.MonkeyPatch) -> HistoryBuffer:
    """Return a history that is pickled under mmengine's name."""
    module = ModuleType("mmengine.logging.history_buffer")
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return HistoryBuffer()


def test_mmengines_log_is_passed_over_and_nothing_of_it_is_called(
    mmengines: HistoryBuffer, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"state_dict": a_state(), "message_hub": {"loss": mmengines}, "best": np.float64(0.5)})
    assert {"numpy.ndarray", "builtins.getattr"} < set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    monkeypatch.setattr(HistoryBuffer, "__new__", lambda *_: pytest.fail("it was called"))
    found = read_state(path)
    assert type(found["best"]) is type(found["message_hub"]["loss"]) is Inert
    assert vars(found["message_hub"]["loss"]) == {}
    monkeypatch.undo()
    state, _ = loaded(path)
    assert all(torch.equal(state[key], value) for key, value in a_state().items())
    assert not any(isinstance(one, tuple) for one in torch.serialization.get_safe_globals()), "for this file alone"


def test_code_beside_mmengines_log_is_refused(
    mmengines: HistoryBuffer, save: Callable[..., Path], tmp_path: Path
) -> None:
    content = {"state_dict": a_state(), "message_hub": {"loss": mmengines, "extra": Touch(tmp_path / "ran")}}
    assert "it calls for posix.system, and may run any code" in refusal(save(content))
    assert not (tmp_path / "ran").exists()


# The one exception lets names through as something that does nothing.
INERT = "torch.serialization.safe_globals([(Inert, name) for name in LOGGED])"
UNSAFE = (
    r"(import pickle\b|from pickle import (?!UnpicklingError$)|torch\.serialization|torch\.hub|.*allow_pickle=True)"
)


def test_every_load_is_weights_only() -> None:
    root = Path(__file__).resolve().parents[1]
    calls = []
    for path in [
        *root.glob("*.py"),
        *(file for name in ("harness", "tasks", "baselines") for file in (root / name).rglob("*.py")),
    ]:
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"joblib", "dill", "cloudpickle"}, path
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, ast.Call | ast.Import | ast.ImportFrom) else ""
            assert text == INERT or not re.match(UNSAFE, text), text
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load_state_dict_from_url"):
                calls.append({word.arg: ast.unparse(word.value) for word in node.keywords})
    assert calls
    assert all(call.get("weights_only") == "True" for call in calls)


# Unreadable


TEXTS = [
    b"hello world\n",
    b"this is a text",
    b"import os\n",
    b'{"a": 1}',
    b"<!DOCTYPE html>",
    b"version https://git-lfs",
]


@pytest.mark.parametrize("content", [b"", *TEXTS])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_text_files(content: bytes, name: str, save: Callable[..., Path]) -> None:
    assert re.search(
        r"is not a (readable safetensors file|checkpoint that torch reads) \(.*Download", refusal(save(content, name))
    )


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.97])
def test_truncated(name: str, keep: float, save: Callable[..., Path]) -> None:
    content = save(a_state(), name).read_bytes()
    assert "Download or export it again." in refusal(save(content[: int(len(content) * keep)], name))


def test_corrupt_safetensors(save: Callable[..., Path]) -> None:
    content = save(a_state(), "a.safetensors").read_bytes()
    assert "not a readable safetensors file" in refusal(save(b"\xff" * 8 + content[8:], "a.safetensors"))
    assert "not a readable safetensors file" in refusal(save(content.replace(b"F32", b"Q99"), "a.safetensors"))


def test_files_of_other_kinds(save: Callable[..., Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme", "text")
    for name in ("a.npz", "a.zip"):
        assert "not a checkpoint that torch reads" in refusal(tmp_path / name)
    assert "is a bare Python pickle" in refusal(save(pickle.dumps({"a": 1}, protocol=4), "p.pth"))


def test_checkpoints_without_a_state(save: Callable[..., Path]) -> None:
    assert "holds a list, not a state dict" in refusal(save([torch.ones(1)]))
    assert "holds a Tensor, not a state dict" in refusal(save(torch.ones(1)))
    assert "holds no tensors (its keys: epoch, lr)" in refusal(save({"epoch": 1, "lr": 0.1}))
    assert "holds no tensors (its keys: none)" in refusal(save({}))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_folder_and_nothing(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    assert "which is a folder" in refusal(folder)
    assert "There is no weights file" in refusal(tmp_path / f"none{suffix}")
    with pytest.raises(WeightsError, match="Give --weights random, pretrained, own, or the path of a file"):
        file_sha256(folder)


def test_file_sha256(save: Callable[..., Path]) -> None:
    assert file_sha256(save(b"")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# The hash of what ran


class Holder(nn.Module):
    """A module with one buffer."""

    def __init__(self, value: Tensor, name: str = "value") -> None:
        super().__init__()
        self.register_buffer(name, value)


def hashed(value: Tensor, name: str = "value") -> str:
    return state_sha256(Holder(value, name))


def test_equal_states_have_equal_hashes() -> None:
    torch.manual_seed(0)
    first, second = Net(), Net()
    assert state_sha256(first) != state_sha256(second)
    second.load_state_dict(first.state_dict())
    assert state_sha256(first) == state_sha256(second)
    assert state_sha256(first) == state_sha256(first.to(memory_format=torch.preserve_format).eval())


def test_the_hash_is_the_same_on_every_machine() -> None:
    content = b"value torch.float32 (3,)\n" + struct.pack("<3f", 0, 1, 2)
    assert hashed(torch.arange(3.0)) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_bit_changes_the_hash(dtype: torch.dtype) -> None:
    value = torch.linspace(1, 2, 5).to(dtype)
    bits = value.clone().view(torch.uint8)
    bits[0] ^= 1
    assert hashed(value) != hashed(bits.view(dtype))
    assert hashed(value) == hashed(value.clone())


def test_name_type_and_shape_are_part_of_the_hash() -> None:
    value = torch.zeros(4)
    others = [value.view(2, 2), value.view(1, 4), value.int(), torch.zeros(2, dtype=torch.float64), torch.zeros(0)]
    hashes = [hashed(value), hashed(value, "other"), *map(hashed, others)]
    assert len(set(hashes)) == len(hashes)


def test_layout_is_not_part_of_the_hash() -> None:
    value = torch.rand(2, 3, 4, 4)
    assert hashed(value) == hashed(value.contiguous(memory_format=torch.channels_last))
    assert hashed(value[:, 1]) == hashed(value[:, 1].clone())


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.zeros(0, 3),
        torch.tensor([1 + 2j]),
        torch.ones(2).to(torch.float8_e4m3fn),
    ],
    ids=lambda value: f"{value.dtype} {tuple(value.shape)}",
)
def test_every_kind_of_tensor_is_hashed(value: Tensor) -> None:
    assert len(hashed(value)) == 64


def test_state_that_is_no_tensor_is_left_out() -> None:
    class Extra(Net):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: object) -> None: ...

    extra, plain = Extra(), Net()
    extra.load_state_dict(plain.state_dict(), strict=False)
    assert state_sha256(extra) == state_sha256(plain)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_bare_pickle_that_runs_code_is_named_for_what_it_is_and_not_run(tmp_path: Path, protocol: int) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"state_dict": Runs()}, protocol=protocol))
    with pytest.raises(WeightsError, match=r"may run any code.*Save the bare state dict") as refusal:
        read_state(path)
    assert "was not read" in str(refusal.value)
    assert not (tmp_path / "ran").exists()
