"""Small modules with their states, and what becomes of a file that is loaded into them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.errors import WeightsError
from harness.record import Weights
from harness.weights import load_weights, state_sha256

State = dict[str, Tensor]
FILE = Weights(source="file")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


def a_state(seed: int = 1, module: Callable[[], nn.Module] = Net) -> State:
    torch.manual_seed(seed)
    return module().state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


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
