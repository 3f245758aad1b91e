"""The command `sweep`: how cost grows with the image."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import options
from harness.command import own_stdout, print_table, set_quiet

if TYPE_CHECKING:
    from harness.store import Store
    from harness.sweep import Curve

RESULTS = "results"
EXIT_FAILED = 1

Sides = Annotated[
    str,
    typer.Option(
        help="FIRST:LAST or FIRST:LAST:STEP in pixels; without a step multiples of 32, each about 1.4 times the last."
    ),
]
Metrics = Annotated[list[str] | None, typer.Option(help="latency, macs, memory [default: all]. Several may follow.")]
Name = Annotated[str, typer.Option(help="Of the figures and tables in RESULTS/sweeps.")]
Json = Annotated[bool, typer.Option("--json", help="Print points and slopes as JSON on standard output, nothing else.")]


def sweep(
    model: options.Model,
    image_size: Sides = "128:1024",
    metric: Metrics = None,
    name: Name = "sweep",
    weights: options.Weights = "random",
    results: options.Results = RESULTS,
    rerun: options.Rerun = False,
    batch_size: options.BatchSize = 1,
    precision: options.Precision = "fp32",
    channels_last: options.ChannelsLast = False,
    compile: options.Compile = False,
    cuda_graphs: options.CudaGraphs = False,
    device: options.Device = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    executor: options.Executor = "process",
    json: Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure cost over image sizes, fit how it grows with the number of pixels, and draw it.

    Each point is an ordinary record, so that an interrupted sweep goes on where it stopped. Exit code 1 where a point
    failed.
    """
    out = own_stdout()
    set_quiet(quiet)
    from harness.store import Store
    from harness.sweep import METRICS, parse_sides
    from harness.sweep import sweep as measure

    store = Store(results)
    curves = measure(
        model, metric or list(METRICS), parse_sides(image_size), store, weights=weights, threads=threads,
        executor=executor, rerun=rerun, batch_size=batch_size, precision=precision, channels_last=channels_last,
        compile=compile, cuda_graphs=cuda_graphs, device=device, seed=seed,
    )  # fmt: skip
    written = write(curves, store, name)
    report(out, curves, written, json)
    out.flush()
    if any(point.value is None for curve in curves for point in curve.points):
        raise typer.Exit(EXIT_FAILED)


def write(curves: Sequence[Curve], store: Store, name: str) -> list[str]:
    """Write both tables as CSV and a light and a dark figure for each metric, and return where."""
    from harness.plot import THEMES, draw_curves
    from harness.sweep import points_table, slopes_table
    from harness.tables import csv_bytes

    files = {
        f"{name}_points.csv": csv_bytes(*points_table(curves)),
        f"{name}_slopes.csv": csv_bytes(*slopes_table(curves)),
    }
    for metric in dict.fromkeys(curve.metric for curve in curves):
        of_metric = [curve for curve in curves if curve.metric == metric]
        files |= {f"{name}_{metric}_{theme}.svg": draw_curves(of_metric, theme) for theme in THEMES}
    store.location.write({f"sweeps/{file}": content for file, content in files.items()})
    return [f"{store}/sweeps/{file}" for file in files]


def report(out: Any, curves: Sequence[Curve], written: Sequence[str], json: bool) -> None:
    """Print the slopes, what failed, and what was written."""
    from harness.progress import say
    from harness.sweep import points_table, slopes_table

    head, rows = slopes_table(curves)
    if json:
        points_head, points = points_table(curves)
        content = {
            "points": [dict(zip(points_head, row, strict=True)) for row in points],
            "slopes": [dict(zip(head, row, strict=True)) for row in rows],
        }
        out.write(json_format.dumps(content, indent=1) + "\n")
        return
    texts = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell or "") for cell in row] for row in rows]
    print_table(out, (*head[:3], head[-1], *head[3:-1]), [[*row[:3], row[-1], *row[3:-1]] for row in texts], right=4)
    for point in (point for curve in curves for point in curve.points if point.value is None):
        say(f"{point.model} at {point.side}: {point.reason}")
    say(f"Written: {', '.join(written)}")
