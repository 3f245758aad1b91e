"""The command `cost`: where a model's work lies, how it varies, and how it compares with what is published."""

from __future__ import annotations

import json as json_format
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import options
from harness.command import own_stdout, parse_size, print_table, set_quiet
from harness.errors import SetupError

if TYPE_CHECKING:
    from harness.breakdown import Breakdown, Spread
    from harness.reference import Comparison, Published

EXIT_DISAGREES = 1

ModelName = Annotated[str | None, typer.Argument(help=options.MODEL_HELP.partition(" Several")[0])]
ByModule = Annotated[bool, typer.Option("--by-module", help="A table of MACs, share and parameters by module.")]
Depth = Annotated[int | None, typer.Option(min=0, help="Of the deepest modules in the table [default: 2].")]
Images = Annotated[
    Path | None, typer.Option(help="Folder of real images: the distribution of MACs of a model whose work varies.")
]
Against = Annotated[
    Path | None, typer.Option(help="CSV of timm's published costs: compare every model of it, such as timm.csv.")
]
Only = Annotated[list[str] | None, typer.Option(help="With --against: models that match a glob. Several may follow.")]
MaxParameters = Annotated[float | None, typer.Option(help="With --against: models up to so many M parameters.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only N rows of the table, or N images, spread evenly.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, nothing else.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print the table as CSV on standard output, nothing else.")]


def cost(
    model: ModelName = None,
    by_module: ByModule = False,
    depth: Depth = None,
    image_size: options.ImageSize = None,
    images: Images = None,
    weights: options.Weights = "random",
    against: Against = None,
    only: Only = None,
    max_parameters: MaxParameters = None,
    limit: Limit = None,
    seed: options.Seed = 0,
    json: Json = False,
    csv: Csv = False,
    quiet: options.Quiet = False,
) -> None:
    """Show a model's MACs and parameters, or compare many with published ones; no model runs but on shapes.

    Exit code 1 where a figure disagrees with the published one and no reason is known.
    """
    if (model is None) == (against is None):
        raise SetupError("The command cost takes either a model or --against TABLE.csv. Give one of them.")
    if json and csv:
        raise SetupError("--json and --csv exclude each other. Give one of them.")
    set_quiet(quiet)
    out = own_stdout()
    form = "json" if json else "csv" if csv else "table"
    if against is not None:
        _compare(out, against, only or [], max_parameters, limit, form)
    elif images is not None:
        _show_spread(out, str(model), weights, seed, parse_size(image_size), images, limit, form)
    else:
        _show_breakdown(
            out, str(model), parse_size(image_size), 2 if depth is None else depth, by_module or depth is not None, form
        )
    out.flush()


def _show_breakdown(
    out: Any, model: str, image_size: tuple[int, int] | None, depth: int, by_module: bool, form: str
) -> None:
    """Print where the MACs and parameters of a model are."""
    from harness.progress import waiting

    with waiting(f"counting {model}"):
        from harness.breakdown import break_down

        found = break_down(model, image_size, depth if by_module or form != "table" else 0)
    head = ("module", "type", "MACs (M)", "share (%)", "parameters (M)")
    rows = [
        (part.path or "(all)", part.type, f"{part.macs / 1e6:.3f}", f"{part.share:.2f}", f"{part.parameters / 1e6:.4f}")
        for part in found.modules
    ]
    if form == "json":
        _dump(out, _breakdown_as_json(found))
    elif form == "csv":
        exact = [(m.path, m.type, m.macs, m.share, m.parameters) for m in found.modules]
        _write_csv(out, ("module", "type", "macs", "share_percent", "parameters"), exact)
    else:
        out.write("\n".join(found.lines()) + "\n")
        if by_module:
            out.write("\n")
            print_table(out, head, rows, right=3)


def _breakdown_as_json(found: Breakdown) -> dict[str, Any]:
    from dataclasses import asdict

    count = found.count
    return {
        "model": found.model, "image_size": found.image_size, "parameters": found.parameters, "macs": count.total,
        "fvcore_macs": found.second, "fvcore_missing": found.second_missing, "nominal": found.nominal,
        "by_kind": dict(count.by_kind), "uncounted": dict(count.uncounted), "calls": count.calls,
        "tensors": count.tensors, "modules": [asdict(module) for module in found.modules],
    }  # fmt: skip


def _show_spread(
    out: Any, model: str, weights: str, seed: int, size: tuple[int, int] | None, folder: Path, limit: int | None,
    form: str,
) -> None:  # fmt: skip
    """Print the distribution of a model's MACs over real images."""
    from harness.api import build_setup
    from harness.breakdown import find_images, spread_over_images
    from harness.models import public_id
    from harness.runner import Job, prepare
    from harness.task import build_task

    images = find_images(folder)
    setup, file = build_setup(weights, device="cpu", seed=seed, image_size=size)
    job = Job(model=model, task="cost:macs", setup=setup, weights_file=file)
    module, setup = prepare(job, build_task(job.task))
    spread = spread_over_images(module, setup, images, public_id(model), limit)
    if form == "json":
        _dump(
            out, {"model": spread.model, "fixed": spread.fixed, **spread.summary(), "gmacs": _by_name(spread, folder)}
        )
    elif form == "csv":
        _write_csv(out, ("image", "gmacs"), list(_by_name(spread, folder).items()))
    else:
        height, width = spread.image_size
        out.write(
            f"{spread.model} at {height}x{width}: GMACs of {len(spread.gmacs)} image{'s' * (len(spread.gmacs) > 1)}\n"
        )
        out.write(", ".join(f"{name} {value:.4f}" for name, value in spread.summary().items()) + "\n")
        if spread.fixed:
            out.write("The work does not depend on the image: shapes alone decide it.\n")


def _by_name(spread: Spread, folder: Path) -> dict[str, float]:
    return {str(Path(path).relative_to(folder)): gmacs for path, gmacs in spread.gmacs.items()}


def _compare(
    out: Any, table: Path, globs: Sequence[str], max_parameters: float | None, limit: int | None, form: str
) -> None:
    """Print what disagrees with a published table, and exit with 1 where no reason is known."""
    from harness.reference import compare_all, read_table

    rows = _chosen(read_table(table), globs, max_parameters, limit)
    found = list(compare_all(rows))
    head = ("model", "image", "verdict", "M, published", "M, ours", "GMACs, published", "GMACs, ours", "why")
    lines = [_comparison_row(item) for item in found if item.verdict != "agrees" or form != "table"]
    if form == "json":
        _dump(out, [dict(zip(head, line, strict=True)) for line in lines])
    elif form == "csv":
        _write_csv(out, head, lines)
    else:
        if lines:
            reordered = [(line[0], line[2], line[7], line[1], *line[3:7]) for line in lines]
            print_table(out, ("model", "verdict", "why", "image", *head[3:7]), reordered, right=5)
        out.write(_verdict_line(found) + "\n")
    out.flush()
    counts = Counter(item.verdict for item in found)
    if counts["disagrees"] or counts["not built"] == len(found):
        raise typer.Exit(EXIT_DISAGREES)


def _chosen(
    rows: Sequence[Published], globs: Sequence[str], max_parameters: float | None, limit: int | None
) -> list[Published]:
    """Return the rows that the options choose; there has to be one."""
    from fnmatch import fnmatchcase

    chosen = [
        row
        for row in rows
        if (not globs or any(fnmatchcase(row.model, glob) for glob in globs))
        and (max_parameters is None or row.parameters <= max_parameters)
    ]
    if not chosen:
        raise SetupError(
            f"None of the {len(rows)} rows is left to compare. Give another --only, such as 'resnet*', "
            "or a larger --max-parameters."
        )
    step = 1.0 if limit is None else max(len(chosen) / limit, 1.0)
    return [chosen[int(index * step)] for index in range(round(len(chosen) / step))]


def _comparison_row(item: Comparison) -> tuple[str, ...]:
    row = item.published
    ours = ("" if value is None else f"{value:.3f}" for value in (item.parameters, item.gmacs))
    parameters, gmacs = ours
    return (
        row.model, str(row.image_size), item.verdict, f"{row.parameters:.2f}", parameters, f"{row.gmacs:.2f}", gmacs,
        item.why,
    )  # fmt: skip


def _verdict_line(found: Sequence[Comparison]) -> str:
    counts = Counter(item.verdict for item in found)
    return (
        f"{len(found)} rows: {counts['agrees']} agree, {counts['explained']} differ for a known reason, "
        f"{counts['disagrees']} disagree, {counts['not built']} cannot be built by the installed timm."
    )


def _dump(out: Any, content: Any) -> None:
    out.write(json_format.dumps(content, indent=1) + "\n")


def _write_csv(out: Any, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    import csv

    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
