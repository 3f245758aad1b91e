"""The command line: run, list, board, data, doctor.

Exit codes: 0 all went well; 1 some (model, task) pairs failed, and their records hold the error; 2 a mistake in what
was asked, and nothing ran; 130 interrupted, and the same command goes on.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand

from harness.errors import BenchError, SetupError

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


class ListCommand(TyperCommand):
    """Lets `--model a b c` stand for `--model a --model b --model c`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat an option that takes many values before each of them."""
        many = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current = ""
        for word in args:
            if word.startswith("-"):
                current = word if word in many else ""
            elif current and spread[-1] != current:
                spread.append(current)
            spread.append(word)
        return super().parse_args(ctx, spread)


Results = Annotated[Path, typer.Option(help="Folder of records and boards.", show_default=True)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]


@app.command(cls=ListCommand)
def run(
    model: Annotated[list[str], typer.Option(help="Model ids: a registered name, carrier+attention, timm:NAME, "
                                             "package.module:callable, path/to/file.py:callable. Several may follow.")],
    task: Annotated[list[str], typer.Option(help="Task ids, such as imagenet, imagenet:knn, cost. Several may follow.")],
    weights: Annotated[str, typer.Option(help="random (seeded), pretrained (timm's hub), own (as the callable built "
                                         "them), or a .safetensors or weights-only checkpoint file.")] = "random",
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Load a checkpoint that misses or adds keys; the record says so.")] = False,
    data: Annotated[Path | None, typer.Option(help="Root of the data sets [default: $BENCH_DATA, or data].")] = None,
    results: Results = Path("results"),
    rerun: Annotated[bool, typer.Option("--rerun", help="Measure again what has a record.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass; for cost the larger of the two batches.")] = 32,
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16.")] = "fp32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels-last memory layout.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model with torch.compile.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N [default: cuda where there is one].")] = None,
    seed: Annotated[int, typer.Option(help="Of random weights and of generated inputs.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Evaluate only N items, spread evenly; never ranks.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Override the input size: N or H,W.")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Override the crop fraction.")] = None,
    crop_mode: Annotated[str | None, typer.Option(help="Override: center, squash or border.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="Override: bilinear, bicubic, nearest or lanczos.")] = None,
    antialias: Annotated[bool | None, typer.Option(help="Override; only the decoder torchvision can do without.")] = None,
    decoder: Annotated[str | None, typer.Option(help="Override: pil or torchvision.")] = None,
    mean: Annotated[str | None, typer.Option(help="Override: three numbers, comma-separated, for pixels in 0..1.")] = None,
    std: Annotated[str | None, typer.Option(help="Override: three numbers, comma-separated.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that load data [default: one a core, at most 8].")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch on the CPU [default: torch's choice].")] = None,
    executor: Annotated[Literal["process", "inline"], typer.Option(help="Each pair in a process of its own, or in this one.")] = "process",
    json: Annotated[bool, typer.Option("--json", help="Print the records of this call as a JSON list, and nothing else, on standard output.")] = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Evaluate every model on every task; what has a record is skipped."""
    from harness import api
    from harness.environment import cores
    from harness.record import to_json

    out = _own_stdout() if json else None
    _set_quiet(quiet)
    records = api.run(
        model, task, weights=weights, allow_partial=allow_partial, data=data, results=results, rerun=rerun,
        workers=min(8, cores()) if workers is None else workers, threads=threads, executor=executor,
        batch_size=batch_size, precision=precision, channels_last=channels_last, compile=compile, device=device,
        seed=seed, limit=limit, image_size=_size(image_size), crop_pct=crop_pct, crop_mode=crop_mode,
        interpolation=interpolation, antialias=antialias, decoder=decoder, mean=_numbers("mean", mean),
        std=_numbers("std", std),
    )  # fmt: skip
    if out is not None:
        out.write("[\n" + ",\n".join(to_json(record).decode().strip() for record in records) + "\n]\n")
        out.flush()
    if records.failed:
        raise typer.Exit(EXIT_FAILED)


@app.command("list")
def list_(
    kind: Annotated[Literal["models", "attentions", "wrappers", "tasks", "protocols", "costs"], typer.Argument()],
) -> None:
    """List what is registered under a kind."""
    from rich.console import Console
    from rich.table import Table

    from harness import registry

    found = getattr(registry, kind.upper())
    table = Table("name", "what", "paper", "where", box=None)
    for name in found:
        entry = found.get(name)
        what = getattr(entry.card, "title", "") or (entry.build.__doc__ or "").strip().partition("\n")[0]
        table.add_row(name, what, getattr(entry.card, "paper", ""), entry.place)
    console = Console()
    console.print(table)
    more = " Also any timm:NAME, package.module:callable and path/to/file.py:callable." if kind == "models" else ""
    console.print(f"{len(found)} {kind}.{more}")


@app.command()
def board(
    results: Results = Path("results"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Write the files, print nothing.")] = False,
) -> None:
    """Rank the records, and write README.md and leaderboard.csv beside them."""
    from harness.leaderboard import make_boards
    from harness.store import Store, write_atomically
    from harness.tables import to_csv, to_markdown

    if not results.is_dir():
        raise BenchError(f"There is no results folder {str(results)!r}. Run something first: run_bench.py run --help")
    boards, left_out = make_boards(Store(results).load())
    page = to_markdown(boards, left_out)
    write_atomically(results / "README.md", page.encode())
    write_atomically(results / "leaderboard.csv", to_csv(boards).encode())
    if not quiet:
        print(page)
        print(f"Written to {results / 'README.md'} and {results / 'leaderboard.csv'}.", file=sys.stderr)


@data_app.command("mini")
def data_mini(
    root: Annotated[Path, typer.Option(help="Where the data sets go; give it to run as --data.")] = Path("data/mini"),
    quiet: Quiet = False,
) -> None:
    """Make the small embedded data sets, in the official layouts; no network, the same pixels everywhere."""
    from harness.progress import say
    from harness.registry import GENERATORS

    _set_quiet(quiet)
    for name in GENERATORS:
        folder = GENERATORS.get(name).build(root)
        say(f"{name}: {folder}")
    say(f"Use them with: run_bench.py run --data {root} ...")


@data_app.command("where")
def data_where(
    data: Annotated[Path | None, typer.Option(help="Root of the data sets [default: $BENCH_DATA, or data].")] = None,
) -> None:
    """Show which data sets are found, and what is missing of the others."""
    from harness.registry import TASKS
    from harness.task import build_task

    for name in TASKS:
        try:
            stamp = build_task(name, data).data()
            print(f"{name}: {f'{stamp.size:,} images of {stamp.classes:,} classes' if stamp else 'needs no data'}")
        except BenchError as error:
            print(f"{name}: {error}")


@app.command()
def doctor() -> None:
    """Say what this machine has, what is missing, and how to install it."""
    from harness.doctor import report

    for line in report():
        print(line)


def main() -> NoReturn:
    """Run the command line; a mistake of the user's is one line on standard error."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        app()
    except BenchError as error:
        sys.exit(_complain(f"Error: {error}", EXIT_MISTAKE))
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:
            _complain("Interrupted. What was measured is saved; the same command goes on from there.", EXIT_INTERRUPTED)
        raise
    sys.exit()


def _complain(message: str, code: int) -> int:
    """Print one line on standard error, and return the exit code that goes with it."""
    print(message, file=sys.stderr)
    return code


def _own_stdout() -> Any:
    """Keep standard output for this command alone: whatever models and libraries print goes to standard error."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


def _set_quiet(quiet: bool) -> None:
    from harness.progress import QUIET

    if quiet:
        os.environ[QUIET] = "1"


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers separated by commas."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SetupError(f"--{option} is {text!r}; expected numbers separated by commas, such as 0.5,0.5,0.5.") from None


def _size(text: str | None) -> tuple[int, int] | None:
    """A side, or a height and a width."""
    numbers = _numbers("image-size", text.replace("x", ",") if text else None)
    if numbers is None:
        return None
    if len(numbers) > 2:
        raise SetupError(f"--image-size is {text!r}; expected N or H,W.")
    return int(numbers[0]), int(numbers[-1])
