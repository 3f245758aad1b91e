"""Files of weights that are unsafe or unreadable are refused in one line that says why."""

from __future__ import annotations

import argparse
import ast
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from weight_files import a_state, refusal

from harness.errors import WeightsError
from harness.weights import file_sha256, read_state


class Touch:
    """Unpickled without care, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


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
