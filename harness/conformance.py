"""Whether a model keeps the contract of models, found in seconds before an evaluation of hours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from harness.device import evaluating, noise, synchronize
from harness.errors import reason
from harness.record import Setup

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 4
WARM, REPEATED = 3, 12
MIB = 2**20
# Beyond this, over some repeated batches, a model keeps what it has seen.
GROWTH_MIB = 64
# Largest difference over the largest output: sums are taken in another order for another batch.
SAME = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 5e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Check:
    """What one check found.

    Args:
        name: stable, for machines.
        passed: whether the model does what is asked.
        message: what was seen, and where it failed what to mend.
        blocking: whether an evaluation would mean nothing where it failed.
    """

    name: str
    passed: bool
    message: str
    blocking: bool = True

    def __str__(self) -> str:
        return f"{'ok' if self.passed else 'FAILED' if self.blocking else 'note'}: {self.name}: {self.message}"


@dataclass(frozen=True)
class Subject:
    """A model on its device, in eval mode, with what is expected of it.

    Args:
        classes: columns that its output must have; None where nobody looks at them.
        images: how many will be evaluated.
        seconds: that they may take.
    """

    module: nn.Module
    setup: Setup
    classes: int | None
    images: int
    seconds: float


def examine(subject: Subject) -> list[Check]:
    """Run all checks, each on its own; where the first forward pass fails, the others are not run."""
    first = _guarded("output shape", _shape, subject)
    return [first, *(_guarded(name, run, subject) for name, run in CHECKS.items())] if first.passed else [first]


def blocking(checks: Sequence[Check]) -> list[Check]:
    """Return the failed checks for which an evaluation would mean nothing."""
    return [check for check in checks if check.blocking and not check.passed]


def _guarded(name: str, run: Callable[[Subject], tuple[bool, str]], subject: Subject) -> Check:
    """Run a check; whatever the model raises is its finding."""
    try:
        with evaluating(subject.setup):
            passed, message = run(subject)
    except Exception as error:
        passed, message = False, f"The model raised {reason(error)}."
    return Check(name, passed, message, name not in ADVISORY)


def _images(subject: Subject, count: int = BATCH, size: tuple[int, int] | None = None) -> Tensor:
    chosen = subject.setup.preprocessing
    return noise(
        replace(subject.setup, batch_size=count, preprocessing=replace(chosen, image_size=size or chosen.image_size))
    )


def _outputs(found: Any) -> Iterator[Tensor]:
    """The tensors of an output, however it is packed."""
    import torch

    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from _outputs(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from _outputs(value)


def _shape(subject: Subject) -> tuple[bool, str]:
    """An output has a row an image, and as many columns as the data has classes."""
    import torch

    found = subject.module(_images(subject))
    if subject.classes is None:
        tensors = list(_outputs(found))
        wrong = [tuple(one.shape) for one in tensors if one.shape[:1] != (BATCH,)]
        told = f"shapes {wrong[:3]}" if wrong else f"{len(tensors)} tensors"
        return not wrong and bool(tensors), f"{told} for {BATCH} images; the first dimension has to be the batch."
    expected = (BATCH, subject.classes)
    if not isinstance(found, torch.Tensor):
        return False, f"The model returns a {type(found).__name__}; return a tensor of shape {expected}."
    shape = tuple(found.shape)
    hint = "" if shape == expected else f"; expected {expected}: the factory has to take num_classes and use it"
    return shape == expected, f"{shape} for {BATCH} images{hint}."


def _finite(subject: Subject) -> tuple[bool, str]:
    """No NaN and no infinity comes of plain noise."""
    import torch

    wrong = sum(int((~torch.isfinite(one)).sum()) for one in _outputs(subject.module(_images(subject))))
    return not wrong, f"{wrong} NaN or infinite outputs." + (" Look for a division or a logarithm." if wrong else "")


def _determinism(subject: Subject) -> tuple[bool, str]:
    """The same images give the same outputs twice."""
    images = _images(subject)
    apart = _difference(subject.module(images), subject.module(images))
    return _judge(subject, apart, "between two passes", "Is dropout or noise on in eval mode?")


def _invariance(subject: Subject) -> tuple[bool, str]:
    """An image's outputs do not depend on which others are in its batch."""
    images = _images(subject)
    together = [one[:1] for one in _outputs(subject.module(images))]
    apart = _difference(together, list(_outputs(subject.module(images[:1]))))
    return _judge(subject, apart, "between an image alone and in a batch", "Does a layer use the batch's statistics?")


def _difference(one: Any, other: Any) -> float:
    """The largest difference between two outputs, over the largest output."""
    pairs = list(zip(_outputs(one), _outputs(other), strict=True))
    largest = max(float(first.float().abs().max()) for first, _ in pairs)
    return max(float((first.float() - second.float()).abs().max()) for first, second in pairs) / max(largest, 1e-12)


def _judge(subject: Subject, apart: float, where: str, hint: str) -> tuple[bool, str]:
    same = apart <= SAME[subject.setup.precision]
    return same, f"largest difference {apart:.2g} of the largest output {where}." + ("" if same else f" {hint}")


def _two_sizes(subject: Subject) -> tuple[bool, str]:
    """Another image size is taken too; many tasks and sweeps need that."""
    height, width = subject.setup.preprocessing.image_size or (224, 224)
    other = (height + 64, width + 64)
    rows = {tuple(one.shape)[:1] for one in _outputs(subject.module(_images(subject, 2, other)))}
    return rows == {(2,)}, f"{other[0]} x {other[1]} beside {height} x {width}."


def _growth(subject: Subject) -> tuple[bool, str]:
    """Batch after batch, memory stays as it is."""
    images = _images(subject)
    for _ in range(WARM):
        subject.module(images)
    before = _memory(subject.setup.device)
    for _ in range(REPEATED):
        subject.module(images)
    grown = (_memory(subject.setup.device) - before) / MIB
    kept = grown > GROWTH_MIB
    return not kept, f"{grown:.0f} MiB over {REPEATED} batches." + (" Does it keep tensors in a list?" if kept else "")


def _memory(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


def _time(subject: Subject) -> tuple[bool, str]:
    """The evaluation would end within its limit."""
    images = _images(subject)
    subject.module(images)
    synchronize(subject.setup.device)
    start = time.perf_counter()
    for _ in range(WARM):
        subject.module(images)
    synchronize(subject.setup.device)
    each = (time.perf_counter() - start) / (WARM * BATCH)
    whole = each * subject.images
    told = f"{1000 * each:.1f} ms an image at batch {BATCH}; {subject.images:,} images take about {whole:.0f} s"
    return whole <= subject.seconds, f"{told}; the limit is {subject.seconds:.0f} s (--time-limit)."


CHECKS: dict[str, Callable[[Subject], tuple[bool, str]]] = {
    "finite outputs": _finite,
    "determinism": _determinism,
    "batch invariance": _invariance,
    "two image sizes": _two_sizes,
    "memory growth": _growth,
    "time per image": _time,
}
ADVISORY = frozenset({"two image sizes"})
