"""The command `attention`: every token mixer over token counts, beside softmax attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import options
from harness.command import set_quiet
from harness.errors import SetupError

if TYPE_CHECKING:
    from harness.runner import Job
    from harness.store import Store

RESULTS = "results"
EXIT_FAILED = 1
NONE = "none"
ON_GPU = "49,196,784,3136,4096,16384"

All = Annotated[bool, typer.Option("--all", help="Every mixer; else those of --mixers.")]
Mixers = Annotated[str | None, typer.Option(help="Mixers, comma-separated: `list attentions` shows them.")]
Carrier = Annotated[str, typer.Option(help="Carriers to measure whole, comma-separated, or none.")]
Alone = Annotated[str, typer.Option(help="Carriers whose first two mixers are measured without the rest, or none.")]
Tokens = Annotated[
    str | None,
    typer.Option(help=f"Squares, comma-separated. [default: 49,196,784,3136,4096; with a GPU {ON_GPU}]"),
]
Batch = Annotated[str, typer.Option(help="Batch sizes, comma-separated.")]
Precision = Annotated[str, typer.Option("--precision", "--dtype", help="fp32, tf32, bf16 or fp16.")]
Seconds = Annotated[float | None, typer.Option(help="Of turns at each size, forward and backward each.")]
Longest = Annotated[float | None, typer.Option(help="Seconds that a size may take at least, else it is left out.")]
Memory = Annotated[float | None, typer.Option(help="GiB that a pass may need, else it is left out; 0: half is free.")]


def attention(
    all: All = False,
    mixers: Mixers = None,
    carrier: Carrier = "pyramid_t",
    alone: Alone = "vit_t16",
    tokens: Tokens = None,
    batch: Batch = "1",
    seconds: Seconds = None,
    longest: Longest = None,
    memory: Memory = None,
    precision: Precision = "fp32",
    compile: options.Compile = False,
    device: options.Device = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    results: options.Results = RESULTS,
    executor: options.Executor = "process",
    rerun: options.Rerun = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how the costs of token mixers grow with the number of tokens, and from where on softmax costs more.

    A record a mixer, carrier and batch size; an interrupted run goes on where it stopped. Tables and figures in
    RESULTS/token_counts are of all such records there. Exit code 1 where one failed.
    """
    set_quiet(quiet)
    from harness.api import EXECUTORS, run_jobs
    from harness.device import default_device
    from harness.progress import say
    from harness.store import Store

    device = device or default_device()
    tokens = tokens or (ON_GPU if device.startswith("cuda") else "")
    chosen = {"tokens": tokens.replace(",", "-"), "seconds": seconds, "longest": longest, "memory": memory}
    named = chosen_mixers(all, mixers)
    models = [
        (f"{place}+{mixer}", task_id(scope, chosen))
        for scope, places in (("alone", alone), ("carrier", carrier))
        for place in _names(places)
        for mixer in named
    ]
    if not models:
        raise SetupError("Both --alone and --carrier are none: there is nothing to measure.")
    common: dict[str, Any] = {"precision": precision, "compile": compile, "device": device, "seed": seed}
    store = Store(results)
    jobs = [job for size in _batches(batch) for job in jobs_of(models, threads, batch_size=size, **common)]
    records = run_jobs(jobs, store, EXECUTORS[executor], rerun)
    say(f"Written: {', '.join(write(store))}")
    if records.failed:
        raise typer.Exit(EXIT_FAILED)


def jobs_of(models: Sequence[tuple[str, str]], threads: int | None, **options: Any) -> list[Job]:
    """Return the jobs of some models with their tasks under one setup."""
    from harness.api import build_setup
    from harness.runner import Job

    setup, _ = build_setup("random", **options)
    return [Job(model=model, task=task, setup=setup, threads=threads) for model, task in models]


def chosen_mixers(all: bool, mixers: str | None) -> list[str]:
    """Return the mixers that were asked for.

    Raises:
        UnknownName: with the nearest names.
        SetupError: none or both ways to ask were used.
    """
    from harness.registry import ATTENTIONS

    named = [] if mixers is None else _names(mixers)
    if all == (mixers is not None) or not (all or named):
        raise SetupError("Give --all for every mixer, or --mixers with their names, and not both.")
    return list(ATTENTIONS) if all else [ATTENTIONS.get(name).name for name in named]


def task_id(scope: str, chosen: dict[str, Any]) -> str:
    """Return the id of the task with those options that were given."""
    from harness.task_id import canonical

    given = {name: value for name, value in chosen.items() if value not in (None, "")}
    return canonical(",".join(["attention", f"scope={scope}", *(f"{name}={value}" for name, value in given.items())]))


def write(store: Store) -> list[str]:
    """Write the tables and figures of all records of token counts in a store, and return where."""
    from harness.growth_report import figures, grouped, tables

    groups = grouped(store.load())
    files = tables(groups)
    for group in groups:
        files |= figures(group)
    store.location.write({f"token_counts/{file}": content for file, content in files.items()})
    return [f"{store}/token_counts/{file}" for file in files]


def _names(text: str) -> Sequence[str]:
    """The names in a list with commas; none where it says so."""
    return [] if text == NONE else list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _batches(text: str) -> list[int]:
    parts = _names(text)
    if not parts or not all(part.isdigit() for part in parts):
        raise SetupError(f"--batch is {text!r}; expected numbers separated by commas, such as 1,8.")
    return [int(part) for part in parts]
