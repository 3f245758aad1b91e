"""The command line: every command with its options.

Exit codes: 0 all went well; 1 some (model, task) pairs failed, and their records hold the error; 2 a mistake in what
was asked, and nothing ran; 130 interrupted, and the same command goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from harness import (
    attention_cli,
    audit_cli,
    board_cli,
    cache_cli,
    compare_cli,
    cost_cli,
    distributed,
    options,
    show_cli,
    submit_cli,
    suite_cli,
    sweep_cli,
)
from harness.command import ListCommand, own_stdout, parse_numbers, parse_size, set_quiet
from harness.errors import BenchError, SetupError

if TYPE_CHECKING:
    from harness.api import Records

RESULTS = "results"
EXIT_FAILED, EXIT_MISTAKE, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Evaluate vision backbones and attention variants: accuracy, MACs, latency, memory; one comparable table.",
    epilog="Exit codes: 0 done; 1 some pairs failed, see their records; 2 a mistake in what was asked, nothing ran; "
    "130 interrupted, the same command goes on.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make the embedded data sets, and see which ones are found.")
app.add_typer(data_app, name="data")
app.add_typer(cache_cli.app, name="cache")
app.add_typer(submit_cli.app, name="submit")
app.command("cost", cls=ListCommand)(cost_cli.cost)
app.command("sweep", cls=ListCommand)(sweep_cli.sweep)
app.command("attention")(attention_cli.attention)
app.command("suite", cls=ListCommand)(suite_cli.suite)
app.command("board")(board_cli.board)
app.command("verify")(audit_cli.verify)
app.command("rerun")(audit_cli.rerun)
app.command("show")(show_cli.show)
app.command("check")(compare_cli.check)
app.command("compare")(compare_cli.compare)
app.command("import-published")(submit_cli.import_published)


@app.command(cls=ListCommand)
def run(
    task: options.Task,
    model: options.ModelOrName = None,
    predictions: options.Predictions = None,
    annotations: options.Annotations = None,
    weights: options.Weights = "random",
    allow_partial: options.AllowPartial = False,
    data: options.Data = None,
    results: options.Results = RESULTS,
    rerun: options.Rerun = False,
    batch_size: options.BatchSize = 32,
    precision: options.Precision = "fp32",
    channels_last: options.ChannelsLast = False,
    compile: options.Compile = False,
    cuda_graphs: options.CudaGraphs = False,
    device: options.Device = None,
    seed: options.Seed = 0,
    limit: options.Limit = None,
    image_size: options.ImageSize = None,
    crop_pct: options.CropPct = None,
    crop_mode: options.CropMode = None,
    interpolation: options.Interpolation = None,
    antialias: options.Antialias = None,
    decoder: options.Decoder = None,
    mean: options.Mean = None,
    std: options.Std = None,
    workers: options.Workers = None,
    threads: options.Threads = None,
    cache: options.CacheFolder = None,
    cache_limit: options.CacheLimit = None,
    executor: options.Executor = "process",
    save_panels: options.SavePanels = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate every model on every task, or predictions made elsewhere; what has a record is skipped."""
    chosen = dict(locals())
    out = own_stdout() if chosen.pop("json") else None
    set_quiet(chosen.pop("quiet"))
    chosen |= {name: parse_numbers(name, chosen[name]) for name in ("mean", "std")}
    chosen["image_size"] = parse_size(image_size)

    from harness import api

    records = api.run(**chosen)
    if distributed.first():
        _end(records, out)


def _end(records: Records, out: Any) -> None:
    """Print the records as JSON where that is asked, and exit with the code that fits."""
    from harness.record import to_json

    if out is not None:
        out.write("[\n" + ",\n".join(to_json(record).decode().strip() for record in records) + "\n]\n")
        out.flush()
    if records.failed:
        raise typer.Exit(EXIT_FAILED)


@app.command(cls=ListCommand)
def race(
    model: options.Model,
    weights: options.Weights = "random",
    batch_size: options.BatchSize = 32,
    precision: options.Precision = "fp32",
    channels_last: options.ChannelsLast = False,
    compile: options.Compile = False,
    cuda_graphs: options.CudaGraphs = False,
    device: options.Device = None,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    threads: options.Threads = None,
    rounds: Annotated[int, typer.Option(help="Turns of each model; at least 15.", min=15)] = 40,
    results: Annotated[
        str | None, typer.Option(help="Also write a record a model here, for a board of this race; by default none.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Time models in turns in one process, so that drift hits all alike, and say which differ."""
    chosen = dict(locals())
    for name in ("model", "rounds", "threads", "results", "quiet"):
        del chosen[name]
    set_quiet(quiet)

    from harness.api import build_setup
    from harness.progress import waiting
    from harness.race import race as take_turns
    from harness.runner import Job
    from harness.store import Store
    from harness.tables import race_to_markdown

    setup, file = build_setup(**chosen | {"image_size": parse_size(image_size)})
    with waiting("models take turns"):
        found = take_turns(
            [Job(model=name, task="cost", setup=setup, weights_file=file, threads=threads) for name in model], rounds
        )
    print(race_to_markdown(found))
    if results is not None:
        store = Store(results)
        for record in found.records():
            store.save(record)


@app.command("list")
def list_(
    kind: Annotated[
        Literal[
            "models",
            "attentions",
            "wrappers",
            "tasks",
            "protocols",
            "segmenters",
            "detectors",
            "panoptic_segmenters",
            "heads",
            "costs",
        ],
        typer.Argument(),
    ],
) -> None:
    """List what is registered under a kind."""
    from rich.console import Console
    from rich.table import Table

    from harness import registry
    from harness.progress import waiting

    with waiting("importing"):
        entries = list(getattr(registry, kind.upper()).entries())
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, pad_edge=False)
    for column in ("name", "what", "paper"):
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column == "what" else None)
    for entry in entries:
        what = getattr(entry.card, "title", "") or (entry.build.__doc__ or "").strip().partition("\n")[0]
        table.add_row(entry.name, what, getattr(entry.card, "paper", ""))
    console.print(table)
    more = " Also any timm:NAME, package.module:callable and path/to/file.py:callable." if kind == "models" else ""
    console.print(f"{len(entries)} {kind}.{more}")


@data_app.command("mini")
def data_mini(
    root: Annotated[Path, typer.Option(help="Where the data sets go; give it to run as --data.")] = Path("data/mini"),
    quiet: options.Quiet = False,
) -> None:
    """Make the small embedded data sets, in the official layouts; no network, the same pixels everywhere."""
    from harness.progress import say
    from harness.registry import GENERATORS

    set_quiet(quiet)
    for name in GENERATORS:
        folder = GENERATORS.get(name).build(root)
        say(f"{name}: {folder}")
    say(f"Use them with: run_bench.py run --data {root} ...")


@data_app.command("where")
def data_where(
    data: options.Data = None,
) -> None:
    """Show which data sets are found, and what is missing of the others."""
    from harness.registry import TASKS
    from harness.task import build_task

    for name in TASKS:
        try:
            stamp = build_task(name, Path(data) if data else None).data()
            print(f"{name}: {f'{stamp.size:,} images of {stamp.classes:,} classes' if stamp else 'needs no data'}")
        except BenchError as error:
            print(f"{name}: {error}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a record, as published in docs/record.schema.json."""
    import json

    from harness.record import json_schema

    print(json.dumps(json_schema(), indent=1))


@app.command()
def doctor() -> None:
    """Say what this machine has, what is missing, and how to install it."""
    from harness.doctor import report
    from harness.progress import waiting

    with waiting("looking around"):
        lines = list(report())
    print("\n".join(lines))


def main() -> NoReturn:
    """Run the command line; a mistake of the user's is one line on standard error."""
    # Not by way of SIGINT, which a shell lets its background jobs ignore.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if distributed.active():
            _check_torchrun()
        app()
    except BenchError as error:
        _let_the_first_speak(error)
        sys.exit(_complain(f"Error: {error}", EXIT_MISTAKE))
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED and distributed.first():
            _complain("Interrupted. What was measured is saved; the same command goes on from there.", EXIT_INTERRUPTED)
        raise
    sys.exit()


def _check_torchrun() -> None:
    """Refuse commands that every rank would run for itself, and silence a warning that torch gives in vain."""
    if sys.argv[1:2] != ["run"]:
        raise SetupError("torchrun is for `run` alone: start this command without it.")
    # Torch advises against looking for unused parameters, which only some models have.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _let_the_first_speak(error: BenchError) -> None:
    """Give rank 0 time to say what is wrong, where that is the same for all: `torchrun` then ends this rank."""
    if not distributed.first() and not isinstance(error, distributed.FailedAlone):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(distributed.GRACE)


def _complain(message: str, code: int) -> int:
    """Print one line on standard error, and return the exit code that goes with it."""
    print(message, file=sys.stderr)
    return code
