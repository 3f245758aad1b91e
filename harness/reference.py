"""Parameters and MACs against those that timm publishes for its models, and why some differ."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from harness.costs.macs import MacCount, count_macs, describe_uncounted
from harness.errors import BenchError, DataError, ModelError
from harness.models import build_model
from harness.progress import track

# The table rounds both to two decimals; the parameters have to agree to 0.01 M, the MACs to 0.5 %.
ROUNDING = 0.00501
PARAMETERS_TOLERANCE = 0.01
MACS_TOLERANCE = 0.005

# The table differs from a plain count for these families; counted as the reason says, ours agrees.
REPARAMETERISED = "the table's MACs (not its parameters) are of the model with its training-time branches merged"
NO_SAME_PADDING = "the table lacks convolutions with padding='same', for which fvcore has no handle"
NO_LSTM = "the table lacks the LSTMs, for which fvcore has no handle"
EXCEPTIONS = {
    "fastvit": REPARAMETERISED,
    "ghostnetv3": REPARAMETERISED,
    "levit": REPARAMETERISED,
    "mobileone": REPARAMETERISED,
    "repghostnet": REPARAMETERISED,
    "repvgg": REPARAMETERISED,
    "repvit": REPARAMETERISED,
    "convmixer": NO_SAME_PADDING,
    "sequencer2d": NO_LSTM,
}

Verdict = Literal["agrees", "explained", "disagrees", "not built"]


@dataclass(frozen=True)
class Published:
    """One row of the table: a timm model, the side of its input, parameters in M, MACs in G."""

    model: str
    image_size: int
    parameters: float
    gmacs: float

    @property
    def architecture(self) -> str:
        """The model without its weights tag, which changes neither figure."""
        return self.model.partition(".")[0]


@dataclass(frozen=True)
class Comparison:
    """A row beside our figures, which are None where there are none, and why they differ."""

    published: Published
    verdict: Verdict
    parameters: float | None = None
    gmacs: float | None = None
    why: str = ""


def read_table(path: Path) -> list[Published]:
    """Read a table with the columns `model`, `img`, `params_m` and `gmacs`.

    Raises:
        DataError: there is no such file, or it lacks a column or a number.
    """
    try:
        with path.open(newline="") as file:
            return [
                Published(row["model"], int(row["img"]), float(row["params_m"]), float(row["gmacs"]))
                for row in csv.DictReader(file)
            ]
    except OSError as error:
        raise DataError(f"The table {str(path)!r} cannot be read ({error.strerror}). Give --against a CSV.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path.name} is no table of published costs ({type(error).__name__}: {error}); "
            "expected the columns model, img, params_m and gmacs with numbers."
        ) from error


def compare_all(rows: Sequence[Published]) -> Iterator[Comparison]:
    """Yield a comparison for each row; rows that differ in their weights tag alone are counted once."""
    known: dict[Published, Comparison] = {}
    for row in track(rows, "compare"):
        key = replace(row, model=row.architecture)
        if key not in known:
            known[key] = compare(row)
        yield replace(known[key], published=row)


def compare(row: Published) -> Comparison:
    """Build a row's model and compare; where the figures differ and a reason is known, count as the reason says."""
    try:
        model = build_on_meta(row)
    except BenchError as error:
        return Comparison(row, "not built", why=str(error))
    try:
        parameters, gmacs = plain_costs(model, row.image_size)
        if agree(row, parameters, gmacs):
            return Comparison(row, "agrees", parameters, gmacs)
        why = known_reason(row)
        if why and agree(row, parameters, gmacs_as_published(row)):
            return Comparison(row, "explained", parameters, gmacs, why)
    except ModelError as error:
        return Comparison(row, "disagrees", why=str(error))
    return Comparison(row, "disagrees", parameters, gmacs, f"not because {why}" if why else "no reason is known")


def agree(row: Published, parameters: float, gmacs: float) -> bool:
    """Whether both figures agree within the tolerances, beyond the table's rounding."""
    return abs(parameters - row.parameters) <= PARAMETERS_TOLERANCE + 1e-9 and disagreement(row, gmacs) < MACS_TOLERANCE


def disagreement(row: Published, gmacs: float) -> float:
    """Return how far MACs are from the table's, as a fraction, beyond its rounding."""
    excess = max(abs(gmacs - row.gmacs) - ROUNDING, 0)
    return excess / row.gmacs if row.gmacs else float(excess > 0)


def known_reason(row: Published) -> str:
    """Return why a model's family differs from the table; empty where it is not known to."""
    return next((reason for family, reason in EXCEPTIONS.items() if row.architecture.startswith(family)), "")


def plain_costs(model: nn.Module, image_size: int) -> tuple[float, float]:
    """Return a model's parameters in M and MACs in G.

    Raises:
        ModelError: the model cannot be run, or an operator has no formula.
    """
    return _parameters(model), _count(model, image_size).total / 1e9


def gmacs_as_published(row: Published) -> float:
    """Return MACs in G, counted as the known reason says that the table's were; plainly where none is known."""
    why = known_reason(row)
    if why == REPARAMETERISED:
        from timm.utils import reparameterize_model

        return _count(reparameterize_model(_build(row, "cpu").eval()), row.image_size).total / 1e9  # needs real weights
    model = build_on_meta(row)
    count = _count(model, row.image_size)
    lost = [path for path, module in model.named_modules() if why and _had_no_handle(module)]
    return (count.total - sum(count.by_module[path] for path in lost)) / 1e9


def build_on_meta(row: Published) -> nn.Module:
    """Build a row's model without memory for its weights.

    Raises:
        BenchError: the installed timm has no such model or weights tag, or cannot build it.
    """
    return _build(row, "meta")


def _build(row: Published, device: str) -> nn.Module:
    with torch.device(device):
        return build_model(f"timm:{row.model}", image_size=(row.image_size, row.image_size))


def _count(model: nn.Module, image_size: int) -> MacCount:
    count = count_macs(model, torch.empty(1, 3, image_size, image_size, device="meta"))
    if count.uncounted:
        raise ModelError(describe_uncounted(count))
    return count


def _had_no_handle(module: nn.Module) -> bool:
    return isinstance(module, nn.LSTM) or (isinstance(module, nn.Conv2d) and module.padding == "same")


def _parameters(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6
