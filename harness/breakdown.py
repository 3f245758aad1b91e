"""Where a model's work and parameters are, and how its work varies between images, without measuring time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from torch import nn

from harness.costs.macs import MacCount, count_macs, describe_nominal, describe_uncounted, second_count
from harness.errors import DataError, ModelError
from harness.images import decode
from harness.models import build_model, public_id
from harness.preprocessing import declared_by, transform
from harness.progress import track
from harness.record import Setup

T = TypeVar("T")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True)
class ModuleCost:
    """What one module costs, its children included; the root has the empty path."""

    path: str
    type: str
    macs: int
    share: float
    parameters: int


@dataclass(frozen=True)
class Breakdown:
    """The MACs and parameters of one image through a model.

    Args:
        image_size: height and width.
        parameters: of the whole model.
        second: fvcore's total; None where `second_missing` says why there is none.
        nominal: how much of the work the model saves in name only; empty for nothing.
        modules: those that cost anything, in the model's own order, the root first.
    """

    model: str
    image_size: tuple[int, int]
    parameters: int
    count: MacCount
    second: int | None
    second_missing: str
    nominal: str
    modules: tuple[ModuleCost, ...]

    def lines(self) -> Iterator[str]:
        """Yield what the table of modules does not say, one line each."""
        count = self.count
        height, width = self.image_size
        yield f"{self.model} at {height}x{width}: {self.parameters / 1e6:.3f} M parameters"
        bound = "at least " if count.uncounted else ""
        yield f"MACs: {bound}{count.total / 1e9:.4f} G (shapes from {count.tensors})"
        shares = sorted(count.by_kind.items(), key=lambda item: -item[1])
        yield "kinds: " + ", ".join(f"{kind} {_percent(macs, count.total):.2f} %" for kind, macs in shares if macs)
        if self.second is None:
            yield f"fvcore: none ({self.second_missing})"
        else:
            yield f"fvcore: {self.second / 1e9:.4f} G, {_percent(self.second - count.total, count.total):+.3f} %"
        yield f"uncounted: {describe_uncounted(count) or 'nothing'}"
        if self.nominal:
            yield self.nominal


def on_shapes(model_id: str, image_size: tuple[int, int] | None, job: Callable[[nn.Module], T]) -> T:
    """Do a job on a model made of meta tensors, or a real one where building or running it needs values.

    Raises:
        BenchError: what building the model or the job raises.
    """
    # What fails on meta tensors is tried for real, and its error, if any, is that of the second try.
    with suppress(ModelError):
        with torch.device("meta"):
            model = build_model(model_id, image_size=image_size)
        return job(model)
    return job(build_model(model_id, image_size=image_size))


def break_down(model_id: str, image_size: tuple[int, int] | None = None, depth: int | None = None) -> Breakdown:
    """Count the MACs of one image by module, twice in all, and the parameters.

    Args:
        image_size: height and width; None for the model's own.
        depth: of the deepest modules listed, the root having 0; None for all.

    Raises:
        BenchError: the model cannot be built or run.
    """

    def count(model: nn.Module) -> Breakdown:
        size = image_size or declared_by(model).image_size or (224, 224)
        images = torch.zeros(1, 3, *size, device=next(model.parameters(), torch.empty(0)).device)
        counted = count_macs(model, images)
        second, missing = second_count(model, images)
        return Breakdown(
            model=public_id(model_id),
            image_size=size,
            parameters=_parameters(model),
            count=counted,
            second=None if missing else second,
            second_missing=missing,
            nominal="" if image_size else describe_nominal(model, counted),
            modules=tuple(_modules(model, counted, depth)),
        )

    return on_shapes(model_id, image_size, count)


def _modules(model: nn.Module, count: MacCount, depth: int | None) -> Iterator[ModuleCost]:
    for path, module in model.named_modules():
        macs, parameters = count.by_module.get(path, 0), _parameters(module)
        level = path.count(".") + 1 if path else 0
        if (macs or parameters or not path) and (depth is None or level <= depth):
            yield ModuleCost(path, type(module).__name__, macs, _percent(macs, count.total), parameters)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


@dataclass(frozen=True)
class Spread:
    """The GMACs of one model on several images.

    Args:
        gmacs: by the image's name.
        fixed: whether shapes alone decide the count, so that all images cost the same.
    """

    model: str
    image_size: tuple[int, int]
    gmacs: Mapping[str, float]
    fixed: bool

    def summary(self) -> dict[str, float]:
        """Return the minimum, the 10th percentile, the median, the 90th percentile and the maximum, in G."""
        values = list(self.gmacs.values())
        points = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}
        return {name: float(numpy.percentile(values, point)) for name, point in points.items()}


def spread_over_images(
    model: nn.Module, setup: Setup, images: Sequence[Path], name: str, limit: int | None = None
) -> Spread:
    """Count the MACs of a model on real images, one at a time, preprocessed as the setup says.

    Args:
        model: with the weights that decide its work.
        setup: with a complete preprocessing.
        name: of the model, for the result.
        limit: count only so many images, spread evenly over the list.

    Raises:
        DataError: an image cannot be read.
        ModelError: the model cannot be counted, or runs an operator without a formula.
    """
    prepare = transform(setup.preprocessing)
    gmacs: dict[str, float] = {}
    fixed: float | None = None
    for path in track(_evenly(images, limit), "count MACs"):
        if fixed is None:
            pixels: Any = prepare(decode(path.read_bytes(), setup.preprocessing.decoder or "pil", path.name))
            count = count_macs(model, pixels[None])
            if count.uncounted:
                raise ModelError(f"{name} has no count of MACs: {describe_uncounted(count)}.")
            # Meta tensors hold no pixels: a model that runs on them does the same work for every image.
            fixed = count.total / 1e9 if count.tensors == "meta" else None
            gmacs[str(path)] = count.total / 1e9
        else:
            gmacs[str(path)] = fixed
    return Spread(name, setup.preprocessing.image_size or (0, 0), gmacs, fixed is not None)


def find_images(folder: Path) -> list[Path]:
    """Return the image files below a folder, by name.

    Raises:
        DataError: there are none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise DataError(
            f"There are no images below {str(folder)!r}: expected files that end in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}. Give another --images."
        )
    return found


def _evenly(items: Sequence[Path], limit: int | None) -> list[Path]:
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]
