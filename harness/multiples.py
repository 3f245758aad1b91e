"""Small multiples: a panel for each model beside its control, on shared axes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.plot import COLOURS, THEMES, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 6


@dataclass(frozen=True)
class Line:
    """Values over numbers of tokens, with their 95 % intervals."""

    tokens: tuple[int, ...]
    values: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One model's line, and that of its control."""

    title: str
    own: Line
    control: Line


def draw_multiples(panels: Sequence[Panel], label: str, theme: str) -> bytes:
    """Return an SVG with a panel for each model over the number of tokens, both on log axes.

    Args:
        label: of the values, with their unit.
        theme: `light` or `dark`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = -(-len(panels) // COLUMNS)
    ink = THEMES[theme]["ink"]
    with rc_context({**style(THEMES[theme]), "font.size": 8}):
        figure = Figure(figsize=(11, 0.6 + 1.6 * rows), layout="constrained")
        grid = figure.subplots(rows, min(COLUMNS, len(panels)), sharex=True, sharey=True, squeeze=False)
        for index, (panel, axes) in enumerate(zip(panels, grid.flat, strict=False)):
            _draw(axes, panel, ink)
            axes.tick_params(labelbottom=index + COLUMNS >= len(panels))
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        ticks = sorted({tokens for panel in panels for tokens in panel.own.tokens})
        _ticks(grid.flat[0], ticks)
        figure.supylabel(label)
        figure.supxlabel("tokens; dashed: softmax attention in the same place; number: exponent of the growth")
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _draw(axes: Axes, panel: Panel, ink: str) -> None:
    axes.plot(panel.control.tokens, panel.control.values, color=ink, linewidth=1, linestyle="--")
    pairs = list(zip(panel.own.values, panel.own.intervals, strict=True))
    errors = [max(value - low, 0) for value, (low, _) in pairs], [max(high - value, 0) for value, (_, high) in pairs]
    axes.errorbar(
        panel.own.tokens, panel.own.values, yerr=errors, color=COLOURS[0], marker="o", markersize=3, linewidth=1.2
    )
    axes.set_title(panel.title, fontsize=8)


def _ticks(axes: Axes, tokens: Sequence[int]) -> None:
    """Set log axes with sides as ticks, without those that would touch the one before."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    shown: list[int] = []
    for count in tokens:
        if not shown or count >= 2 * shown[-1]:
            shown.append(count)
    axes.set_xticks(shown, [f"{math.isqrt(count)}²" for count in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
