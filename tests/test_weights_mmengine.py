"""Checkpoints of mmengine: its log is passed over without calling anything, and its averaged weights are found."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from weight_files import a_state, assert_equal, loaded, prefixed, refusal

from harness.weights import Inert, read_state


class HistoryBuffer:
    """As mmengine's, whose checkpoints hold numpy arrays and methods of this class."""

    def __init__(self) -> None:
        self.history = np.array([0.5, 0.25])
        self.statistics = {"min": self.least}

    def least(self) -> float:
        return float(self.history.min())


class Touch:
    """Unpickled without care, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> HistoryBuffer:
    """Return a history that is pickled under mmengine's name."""
    module = ModuleType("mmengine.logging.history_buffer")
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return HistoryBuffer()


def test_its_log_is_passed_over_and_nothing_of_it_is_called(
    log: HistoryBuffer, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"state_dict": a_state(), "message_hub": {"loss": log}, "best": np.float64(0.5)})
    assert {"numpy.ndarray", "builtins.getattr"} < set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    monkeypatch.setattr(HistoryBuffer, "__new__", lambda *_: pytest.fail("it was called"))
    found = read_state(path)
    assert type(found["best"]) is type(found["message_hub"]["loss"]) is Inert
    assert vars(found["message_hub"]["loss"]) == {}
    monkeypatch.undo()
    assert_equal(loaded(path)[0], a_state())
    assert not any(isinstance(one, tuple) for one in torch.serialization.get_safe_globals()), "for this file alone"


def test_code_beside_its_log_is_refused(log: HistoryBuffer, save: Callable[..., Path], tmp_path: Path) -> None:
    content = {"state_dict": a_state(), "message_hub": {"loss": log, "extra": Touch(tmp_path / "ran")}}
    assert "it calls for posix.system, and may run any code" in refusal(save(content))
    assert not (tmp_path / "ran").exists()


def test_averaged_weights_are_where_it_saves_them(save: Callable[..., Path]) -> None:
    """It exchanges the two before it saves, so that the usual key holds what is to be deployed."""
    averaged, trained = a_state(1), prefixed(a_state(2), "module.")
    content = {"state_dict": averaged, "ema_state_dict": {**trained, "steps": torch.tensor(3)}}
    state, stamp = loaded(save({**content, "meta": {"mmengine_version": "0.10.7"}}))
    assert_equal(state, averaged)
    assert stamp.container == "state_dict"
    # Everybody else's key says what it holds.
    state, stamp = loaded(save({"state_dict": averaged, "ema_state_dict": a_state(2), "meta": {"epoch": 1}}))
    assert_equal(state, a_state(2))
    assert stamp.container == "ema_state_dict"
