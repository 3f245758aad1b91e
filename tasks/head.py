"""A classifier of the right width for a backbone that was pretrained with another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.device import evaluating
from harness.errors import ModelError
from harness.record import Setup
from harness.training import seed_generators

if TYPE_CHECKING:
    from torch import Tensor, nn


def fit_head(module: nn.Module, classes: int, images: Tensor, setup: Setup, seed: int) -> str:
    """Replace a module's classifier where its output has another width than `classes`, and say what was done.

    timm's `reset_classifier` does it, and otherwise a new linear layer takes the place of the one whose output the
    module returns. The new weights depend on the seed alone.

    Args:
        images: (B, 3, H, W) that the module can be tried with.

    Raises:
        ModelError: it has neither.
    """
    with evaluating(setup):
        output = module(images)
    logits = getattr(output, "logits", output)
    width = logits.shape[-1] if getattr(logits, "ndim", 0) == 2 else 0
    declared = getattr(module, "num_classes", width)
    if width == declared == classes:
        return "the model's own"
    seed_generators(seed, "head")
    reset = getattr(module, "reset_classifier", None)
    if callable(reset):
        reset(classes)
        done = "new, by the model's reset_classifier"
    else:
        done = f"new, in place of {_replace_linear(module, classes, images, setup)!r}"
    module.to(setup.device)
    return done


def _replace_linear(module: nn.Module, classes: int, images: Tensor, setup: Setup) -> str:
    """Put a new linear layer where the last one was, and return its name."""
    from torch import nn

    outputs: dict[str, Any] = {}
    linears = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, part in linears.items()
    ]
    try:
        with evaluating(setup):
            output = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    logits = getattr(output, "logits", output)
    found = [name for name, result in outputs.items() if name and result is logits]
    if not found:
        raise ModelError(
            f"The classifier of {type(module).__name__} cannot be replaced for {classes} classes: it has no "
            "reset_classifier, and its output is not that of a linear layer. Build it with num_classes, or give it "
            "a method reset_classifier(num_classes)."
        )
    old = linears[found[-1]]
    module.set_submodule(found[-1], nn.Linear(old.in_features, classes, bias=old.bias is not None))
    return found[-1]
