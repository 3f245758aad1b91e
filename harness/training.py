"""The only training loop of the harness: resumable, and on the CPU the same to the last bit wherever it was resumed.

Nothing random is carried from step to step. Every step begins with the generators of Python, NumPy and torch seeded by
the training's seed and the step's number, so that dropout and mixing at a step do not depend on what ran before.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness import distributed
from harness.checkpoint import Checkpoint
from harness.device import autocast
from harness.errors import ModelError
from harness.models import AttentionContext
from harness.progress import track
from harness.record import Setup

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

CHECKPOINT_SECONDS = 60.0
# Reading a loss waits for the GPU, so there it is done for many steps at once.
GPU_LOSSES = 20
CURVE_POINTS = 100


def derived_seed(*parts: int | str) -> int:
    """Return a seed in 0..2**32-1 that stands for some numbers and words, the same on every machine."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def seed_generators(*parts: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch by some numbers and words."""
    import numpy
    import torch

    seed = derived_seed(*parts)
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


@dataclass
class Curve:
    """The training loss, as means over at most `CURVE_POINTS` equal stretches of steps."""

    steps: int
    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, step: int, loss: float) -> None:
        """Take in the loss of the next step."""
        if step * min(self.steps, CURVE_POINTS) // self.steps >= len(self.sums):
            self.sums.append(0.0)
            self.counts.append(0)
        self.sums[-1] += loss
        self.counts[-1] += 1

    def points(self) -> list[float]:
        """Return the mean loss of each stretch; the last is the final one."""
        return [total / count for total, count in zip(self.sums, self.counts, strict=True)]


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Args:
        module: in eval mode; the moving average where one was asked for.
        curve: the mean training loss of each of at most 100 stretches of steps.
        seconds: wall-clock time of all steps, loading of data included, checkpoints not.
        batch_norm: of several ranks, over whose images batch normalisation takes its statistics.
    """

    module: nn.Module
    curve: list[float]
    steps: int
    seconds: float
    parameters: int
    batch_norm: str = ""

    @property
    def details(self) -> dict[str, Any]:
        """What records say of a training."""
        return {
            "steps": self.steps,
            "final_training_loss": self.curve[-1],
            "training_loss": self.curve,
            "seconds_per_step": round(self.seconds / self.steps, 4),
            "parameters_trained": self.parameters,
            "ranks": distributed.count(),
            **({"batch_norm_over": self.batch_norm} if self.batch_norm else {}),
        }


@dataclass(kw_only=True)
class Training:
    """A module, what is minimised, and how.

    Args:
        module: holds every parameter and buffer that the training changes; placed on the setup's device.
        loss: from a batch, or a rank's share of one, to a scalar: a mean, in the setup's precision.
        schedule: called with the number of each step, from 0, before it; sets the learning rates.
        batches: from the number of a step to the batches from that step on; what a step gets is the same wherever
            the training was resumed.
        clip_grad: the largest norm of all gradients together; None for no limit.
        average: decay of a moving average of the parameters, which is then what is returned; None for none.
        checkpoint: where the state is kept; None for nowhere.
    """

    module: nn.Module
    loss: Callable[[Any], Tensor]
    optimizer: Optimizer
    schedule: Callable[[int], object]
    batches: Callable[[int], Iterable[Any]]
    steps: int
    setup: Setup
    seed: int = 0
    clip_grad: float | None = None
    average: float | None = None
    checkpoint: Checkpoint | None = None

    def __post_init__(self) -> None:
        import torch
        from timm.utils import ModelEmaV3

        fp16 = self.setup.precision == "fp16"
        self._batch_norm = distributed.synchronize_norms(self.module, self.setup.device)
        self._scaler = torch.amp.GradScaler(self.setup.device.partition(":")[0], enabled=fp16)
        self._average = None if self.average is None else ModelEmaV3(self.module, decay=self.average)
        self._curve = Curve(self.steps)
        self._seconds = 0.0
        self._pending: list[tuple[int, float, Tensor]] = []

    def run(self, description: str = "train") -> Trained:
        """Train, from the checkpoint on if there is one.

        Raises:
            ModelError: the loss is not finite, or does not depend on the parameters.
        """
        start = self._restore()
        self.module.train()
        self._shared_loss = distributed.parallel(self.module, self.loss)
        clock = written = time.monotonic()
        remaining = self.batches(start) if start < self.steps else ()
        for step, batch in enumerate(track(remaining, description), start):
            self._step(step, batch)
            if len(self._pending) < (1 if self.setup.device == "cpu" else GPU_LOSSES):
                continue
            self._read_losses()
            if time.monotonic() - written >= CHECKPOINT_SECONDS:
                self._seconds += time.monotonic() - clock
                self._save(step + 1)
                clock = written = time.monotonic()
        if start < self.steps:
            self._read_losses()
            self._seconds += time.monotonic() - clock
            self._save(self.steps)
        module = self._average.module if self._average else self.module
        trained = sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])
        return Trained(module.eval(), self._curve.points(), self.steps, self._seconds, trained, self._batch_norm)

    def _step(self, step: int, batch: Any) -> None:
        from torch.nn.utils import clip_grad_norm_

        # What ranks draw for their images is not the same.
        seed_generators(self.seed, "step", step, *(() if distributed.first() else ("rank", distributed.rank())))
        self.schedule(step)
        with autocast(self.setup):
            loss = self._shared_loss(batch)
        if not loss.requires_grad:
            raise ModelError(
                f"The loss of {type(self.module).__name__} does not depend on its parameters: expected one with a "
                "gradient. Do not detach the output, nor run the model without gradients."
            )
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.clip_grad is not None:
            self._scaler.unscale_(self.optimizer)
            clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.clip_grad)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._average:
            self._average.update(self.module)
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        self._pending.append((step, rate, distributed.total(loss.detach()) / distributed.count()))

    def _read_losses(self) -> None:
        """Move the losses of the last steps to the curve, and refuse one that is not finite."""
        import torch

        losses = torch.stack([loss for *_, loss in self._pending]).tolist() if self._pending else []
        for (step, rate, _), loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                raise ModelError(
                    f"The training loss is {loss} at step {step} of {self.steps}, at learning rate {rate:.3g}: "
                    "expected a finite number. Try a lower lr, or --precision fp32."
                )
            self._curve.add(step, loss)
        self._pending.clear()

    def _save(self, step: int) -> None:
        if self.checkpoint is None or not distributed.first():
            return
        self.checkpoint.write(
            {
                "step": step,
                "module": tensors(self.module),
                "average": tensors(self._average.module) if self._average else {},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "curve": [self._curve.sums, self._curve.counts],
                "seconds": self._seconds,
            }
        )

    def _restore(self) -> int:
        """Take up the state of the checkpoint, and return the step that comes next."""
        found = self.checkpoint.read() if self.checkpoint else None
        if found is None:
            return 0
        restore(self.module, found["module"])
        if self._average:
            restore(self._average.module, found["average"])
        self.optimizer.load_state_dict(found["optimizer"])
        self._scaler.load_state_dict(found["scaler"])
        self._curve.sums, self._curve.counts = found["curve"]
        self._seconds = found["seconds"]
        return int(found["step"])


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, also those that a state dict leaves out."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def restore(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy tensors that `tensors` gave into a module of the same form."""
    import torch

    with torch.no_grad():
        for name, tensor in tensors(module).items():
            tensor.copy_(state[name])


def forward_with_losses(module: nn.Module) -> Callable[[Tensor], tuple[Any, Tensor | float]]:
    """Return the function from images to a module's output and the sum of the losses of its own.

    A module whose `forward` takes `context: AttentionContext` is given a fresh one; entries of its `auxiliary` whose
    names end in `loss` are added up.
    """
    parameter = inspect.signature(module.forward).parameters.get("context")
    if parameter is None or "AttentionContext" not in str(parameter.annotation):
        return lambda images: (module(images), 0.0)

    def forward(images: Tensor) -> tuple[Any, Tensor | float]:
        context = AttentionContext((0, 0))
        output = module(images, context=context)
        losses = [value.sum() for name, value in context.auxiliary.items() if name.endswith("loss")]
        return output, sum(losses, 0.0)

    return forward
