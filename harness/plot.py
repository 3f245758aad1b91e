"""Figures as SVG, the same bytes for the same numbers, once for light pages and once for dark ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.metric import Metric
    from harness.sweep import Curve
    from harness.tradeoff import Tradeoff

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow and black show on one kind of page only.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {"page": "#ffffff", "ink": "#1f2328", "grid": "#d0d7de"},
    "dark": {"page": "#0d1117", "ink": "#e6edf3", "grid": "#30363d"},
}


def draw_curves(curves: Sequence[Curve], theme: str) -> bytes:
    """Return an SVG of the curves of one metric over the pixels, with their power laws and 95 % intervals.

    Args:
        theme: `light` or `dark`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style(THEMES[theme])):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for index, curve in enumerate(curves):
            _draw(axes, curve, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        _label(axes, curves)
        return _svg(figure)


def draw_tradeoff(found: Tradeoff, theme: str) -> bytes:
    """Return an SVG of accuracy over each cost, with the intervals over seeds and the Pareto fronts.

    Args:
        theme: `light` or `dark`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style(THEMES[theme])):
        rows = max(1, -(-len(found.costs) // 2))
        figure = Figure(figsize=(10, max(4.6, 3.6 * rows)), layout="constrained")
        plots, key = figure.subfigures(1, 2, squeeze=False, width_ratios=(4, 1))[0]
        grid = plots.subplots(rows, 2, squeeze=False, sharey=True).ravel()
        for axes, metric in zip(grid, found.costs, strict=False):
            _draw_costs(axes, found, metric, THEMES[theme]["grid"])
        for axes in grid[len(found.costs) :]:
            axes.set_axis_off()
        plots.suptitle(f"{found.carrier}, {found.board.task}", fontsize=10)
        names = [f"{number}  {one.attention}" for number, one in enumerate(found.contenders, 1)]
        for line, name in enumerate(names):
            key.text(0, 0.9 - 0.85 * line / max(len(names), 14), name, fontsize=8)
        return _svg(figure)


def _draw_costs(axes: Axes, found: Tradeoff, metric: Metric, faint: str) -> None:
    """Draw every attention over one cost by its number; the control is a star, and the front a line of steps."""
    points = [
        (float(one.costs[metric.name].value or 0), float(one.row.value(found.accuracy) or 0), number, one)
        for number, one in enumerate(found.contenders, 1) if metric.name in one.costs
    ]  # fmt: skip
    for x, y, number, one in points:
        low, high = one.row.interval(found.accuracy) or (y, y)
        axes.plot([x, x], [low, high], color=faint, linewidth=1, zorder=1)
        control = one.row.record.model == found.carrier
        colour = COLOURS[5] if control else COLOURS[0]
        axes.plot(x, y, marker="*" if control else "o", markersize=11 if control else 5, color=colour, zorder=3)
        # To the right and to the left in turns, since neighbours in accuracy are often neighbours in cost.
        side, align = (5, "left") if number % 2 else (-5, "right")
        axes.annotate(f"{number}", (x, y), (side, 0), textcoords="offset points", fontsize=8, ha=align, va="center")
    front = sorted((x, y) for x, y, _, one in points if metric.name in one.front)
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=COLOURS[1], linewidth=1.5, zorder=2)
    axes.set_xlabel(f"{metric.name} ({metric.unit})")
    axes.set_ylabel(f"{found.accuracy.name} ({found.accuracy.unit})")


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def style(colours: Mapping[str, str]) -> Any:
    """Return the colours of a theme, and what makes the bytes repeat: fixed ids, and text as text."""
    ink, grid, page = colours["ink"], colours["grid"], colours["page"]
    return {
        "svg.hashsalt": "backbone-bench", "svg.fonttype": "none", "font.size": 10,
        "figure.facecolor": page, "axes.facecolor": page, "savefig.facecolor": page, "legend.facecolor": page,
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "xtick.color": ink, "ytick.color": ink,
        "grid.color": grid, "legend.edgecolor": grid, "axes.grid": True, "axes.spines.top": False,
        "axes.spines.right": False,
    }  # fmt: skip


def _draw(axes: Axes, curve: Curve, colour: str, marker: str) -> None:
    """Draw the points with their intervals, and the law through them."""
    points = [(point, point.value) for point in curve.points if point.value]
    if not points:
        return
    x, y = [point.pixels for point, _ in points], [value for _, value in points]
    intervals = [point.interval or (value, value) for point, value in points]
    errors = (
        [max(value - low, 0) for value, (low, _) in zip(y, intervals, strict=True)],
        [max(high - value, 0) for value, (_, high) in zip(y, intervals, strict=True)],
    )
    label = curve.model
    if curve.law is not None:
        label += f": slope {curve.law.slope:.2f} [{curve.law.low:.2f}, {curve.law.high:.2f}]"
        axes.plot(x, [curve.law.at(pixels) for pixels in x], color=colour, linewidth=1, linestyle="--")
    axes.errorbar(x, y, yerr=errors, fmt=marker, color=colour, markersize=5, capsize=3, label=label)


def _label(axes: Axes, curves: Sequence[Curve]) -> None:
    """Set log axes with the sides as ticks, and the legend."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    sides = sorted({point.side for curve in curves for point in curve.points})
    axes.set_xticks([side**2 for side in sides], [f"{side}²" for side in sides])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("pixels of the image (tokens grow with them)")
    axes.set_ylabel(f"{curves[0].metric} ({curves[0].unit})")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=True)
