"""Recurrent networks on meta tensors as one operator each: their steps would be thousands, and tell nothing more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FUNCTIONS = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
OPERATORS = frozenset(getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))


class WholeRecurrence(TorchFunctionMode):
    """Hands a recurrent network on meta tensors to the dispatcher whole, where autograd would take its steps apart.

    It records no gradients then, and counting needs none.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FUNCTIONS and args[0].is_meta:
            with torch._C._AutoDispatchBelowAutograd():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def call_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an operator; a whole recurrent network on meta tensors only makes its outputs, by their shapes."""
    return _outputs(*args) if func in OPERATORS and args[0].is_meta else func(*args, **kwargs)


def _outputs(
    steps: Tensor, state: Any, _weights: Any, _biases: bool, _layers: int, _dropout: float, _training: bool,
    bidirectional: bool, _batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The outputs of all steps (two dimensions as `steps`, then the state's width a direction), and the last state."""
    states = list(state) if isinstance(state, list | tuple) else [state]  # an LSTM has two
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    return steps.new_empty(*steps.shape[:2], width), *(torch.empty_like(one) for one in states)
