"""A guard for detectors, which drop what is NaN without a word and then have found nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

# What torchvision's detectors, and those that are built of them, call the layers that put out scores and boxes.
HEADS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor", "conv_seg")


@contextmanager
def finite_heads(detector: nn.Module) -> Iterator[None]:
    """Run a detector, and refuse what its heads put out where it is not finite.

    Raises:
        ModelError: after the run, where any of it is NaN or infinite.
    """
    import torch

    flags: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        flags.extend(one.isfinite().all() for one in _tensors(output))

    parts = dict(detector.named_modules())
    hooks = [parts[name].register_forward_hook(note) for name in HEADS if name in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    # One look for all, since each waits for the GPU.
    if flags and not torch.stack(flags).all():
        raise ModelError("The detector's scores or boxes are NaN or infinite. Try --precision fp32.")


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of an output, which may lie in lists and mappings."""
    import torch

    if isinstance(output, torch.Tensor):
        yield output
    else:
        for one in output.values() if isinstance(output, dict) else output:
            yield from _tensors(one)
