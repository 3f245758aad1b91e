"""Optimisers and schedules of training recipes, as timm builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def adamw(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Optimizer:
    """Return AdamW with timm's parameter groups: no decay of biases, norms and what the model excepts itself.

    Args:
        lr: of the last layer; the schedule scales each group's share of it.
        layer_decay: the learning rate of a layer over that of the layer after it. It needs to know the layers, see
            `knows_layers`; where they are not known, all have one rate.

    Raises:
        ModelError: the module has no parameter to train.
    """
    from timm.optim import create_optimizer_v2, param_groups_weight_decay

    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ModelError(f"{type(module).__name__} has no parameter that can be trained: set requires_grad of some.")
    decay = layer_decay if knows_layers(module) else None
    # A backbone inside a larger module excepts its own, which timm does not look for.
    inner = {f"{name}.{own}" for name, part in module.named_modules() if name for own in _excepted(part)}
    if decay is None and inner:
        groups = param_groups_weight_decay(module, weight_decay, no_weight_decay_list=inner | _excepted(module))
        return create_optimizer_v2(groups, "adamw", lr=lr, weight_decay=weight_decay, betas=betas)  # type: ignore[no-any-return]
    return create_optimizer_v2(module, "adamw", lr=lr, weight_decay=weight_decay, layer_decay=decay, betas=betas)  # type: ignore[no-any-return]


def _excepted(module: nn.Module) -> set[str]:
    """The parameters that a module excepts from weight decay itself."""
    names = getattr(module, "no_weight_decay", None)
    return set(names()) if callable(names) else set()


def knows_layers(module: nn.Module) -> bool:
    """Whether a module tells the order of its layers by timm's `group_matcher`."""
    return callable(getattr(module, "group_matcher", None))


def cosine(optimizer: Optimizer, steps: int, warmup: int, lr_min: float = 0.0) -> Callable[[int], None]:
    """Return the function that sets the learning rates of a step, from 0: a linear warm-up, then half a cosine.

    The first step has the rate lr / (warmup + 1), step `warmup` has lr, and the step after the last would have
    `lr_min`. It depends on the step alone.
    """
    from timm.scheduler import CosineLRScheduler

    warmup = min(warmup, steps - 1)
    peak = max(group["lr"] for group in optimizer.param_groups)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=max(2, steps - warmup),
        lr_min=min(lr_min, peak),
        warmup_t=warmup,
        warmup_lr_init=peak / (warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    return lambda step: scheduler.step_update(step)


def scaled(optimizer: Optimizer, factor: Callable[[int], float]) -> Callable[[int], None]:
    """Return the function that gives every group its learning rate times a factor of the step, from 0."""
    rates = [group["lr"] for group in optimizer.param_groups]

    def set_rates(step: int) -> None:
        share = factor(step)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share

    return set_rates
