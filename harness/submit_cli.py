"""The command `submit`: write, check, evaluate and admit a submission; `import-published`: take in others' figures."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from harness import options
from harness.command import ListCommand, set_quiet
from harness.errors import SetupError

if TYPE_CHECKING:
    from harness.isolation import Way
    from harness.submission.evaluation import Report
    from harness.submission.lines import Fault
    from harness.submission.manifest import Submission

EXIT_FAULTS = 1
WORK = Path("results/submissions")


class SubmitGroup(TyperGroup):
    """Lets `submit PATH` stand for `submit run PATH`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put `run` before a folder that is no command's name."""
        known = args[0] in self.commands or not Path(args[0]).is_dir()
        return super().resolve_command(ctx, args if known else ["run", *args])


app = typer.Typer(
    cls=SubmitGroup,
    no_args_is_help=True,
    help="Submit a model, a checkpoint, predictions or a published number: a folder with a submission.toml.",
    epilog="Exit codes: 0 done; 1 the submission has faults or failed; 2 a mistake in what was asked.",
)
Folder = Annotated[Path, typer.Argument(metavar="PATH", help="The submission's folder.")]
Work = Annotated[Path, typer.Option(help="Where logs and records are kept until they are admitted.")]
JsonFaults = Annotated[bool, typer.Option("--json", help="Print faults as a JSON list on standard output.")]
JsonReport = Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")]
Trust = Annotated[bool, typer.Option("--trust-code", help="Run the Python code that came with the submission.")]
Isolation = Annotated[
    Literal["bubblewrap", "namespaces", "limits alone"] | None,
    typer.Option(help="How code is isolated; by default the strictest that this system has."),
]


@app.command()
def init(
    path: Folder,
    kind: Annotated[
        Literal["model", "checkpoint", "predictions", "claim"], typer.Option(help="What is submitted.")
    ] = "model",
) -> None:
    """Write a commented submission.toml, and for a model an example; nothing is overwritten."""
    from harness.submission.template import write

    for file in write(path, kind):
        print(file)
    print(f"Edit them, then: run_bench.py submit check {path}")


@app.command()
def check(path: Folder, json: JsonFaults = False) -> None:
    """Name every fault of a submission with its line, without running any of its code.

    Exit code 1 where there are faults.
    """
    from harness.submission.read import read

    submission, faults = read(path)
    if json:
        from dataclasses import asdict

        print(json_format.dumps([asdict(fault) for fault in faults], indent=1))
    elif submission is not None:
        from harness.submission.plan import needs_trust

        trust = " --trust-code" if needs_trust(submission) else ""
        print(f"{submission.submission.name}: no faults. Next: run_bench.py submit run {path}{trust}")
    else:
        _print_faults(faults)
    if faults:
        raise typer.Exit(EXIT_FAULTS)


@app.command(cls=ListCommand)
def run(
    path: Folder,
    task: Annotated[list[str] | None, typer.Option(help="Task ids in place of the submission's own.")] = None,
    suite: Annotated[str | None, typer.Option(help="In place of tasks: quick, classification or dense.")] = None,
    data: options.Data = None,
    results: options.Results = "results",
    work: Work = WORK,
    trust_code: Trust = False,
    isolation: Isolation = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for everything.", min=1)] = 4 * 3600,
    memory: Annotated[float, typer.Option(help="GiB of memory, of all its processes.", min=0.1)] = 16,
    disk: Annotated[float, typer.Option(help="GiB that it may write.", min=0.001)] = 8,
    processes: Annotated[int, typer.Option(help="Processes at once.", min=1)] = 64,
    device: options.Device = None,
    limit: options.Limit = None,
    rerun: options.Rerun = False,
    threads: options.Threads = None,
    json: JsonReport = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate a submission in an isolated process, and show the rows that it would have.

    Exit code 1 where it has faults, breaks the contract of models, was stopped, or a task failed.
    """
    set_quiet(quiet or json)
    submission = _without_faults(path)
    from harness.isolation import Limits
    from harness.submission.evaluation import claims, evaluate, keep, work_folder
    from harness.submission.plan import folder_sha256, make_plan, needs_trust, tasks_of

    if needs_trust(submission) and not trust_code:
        raise SetupError(
            f"{submission.submission.name!r} brings Python code: read it, then give --trust-code to run it."
        )
    place = work_folder(work, submission, path, folder_sha256(path))
    if submission.claim:
        report = claims(submission, path, place)
    else:
        plan = make_plan(
            submission, path, tasks_of(submission, task, suite), results=place / "isolated", data=data, device=device,
            limit=limit, threads=threads, seconds=time_limit, rerun=rerun,
        )  # fmt: skip
        limits = Limits(seconds=time_limit, memory_gib=memory, disk_gib=disk, processes=processes)
        report = evaluate(submission, path, plan, place, limits, _way(isolation))
    keep(report, place)
    _print_report(report, path, place, results, json)
    if report.failure:
        raise typer.Exit(EXIT_FAULTS)


@app.command()
def admit(path: Folder, results: options.Results = "results", work: Work = WORK) -> None:
    """Copy the records of a submission that ran well into the results; nothing there is overwritten."""
    submission = _without_faults(path)
    from harness.store import Store
    from harness.submission.admission import admit as take_in
    from harness.submission.evaluation import work_folder
    from harness.submission.plan import folder_sha256

    store = Store(results)
    for record in take_in(path, work_folder(work, submission, path, folder_sha256(path)), store):
        print(f"{record.model} on {record.task}: {store}/records/{record.name}.json")
    print(f"Next: run_bench.py board --results {store}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a submission.toml, as published in docs/submission.schema.json."""
    from harness.submission.manifest import json_schema

    print(json_format.dumps(json_schema(), indent=1))


def import_published(
    files: Annotated[list[Path] | None, typer.Argument(help="CSV as timm's results, or JSON of a system.")] = None,
    cards: Annotated[bool, typer.Option("--cards", help="Also what the cards of registered models tell.")] = False,
    results: options.Results = "results",
) -> None:
    """Take in published figures with their sources; boards show them beside measured values, and never rank them."""
    from harness.published import card_records, read_published
    from harness.store import Store

    if not files and not cards:
        raise SetupError("There is nothing to import: give files, or --cards.")
    store = Store(results)
    read = [(file.name, *read_published(file)) for file in files or []]
    for name, records, passed_over in [*read, *([("cards", card_records(), [])] if cards else [])]:
        for record in records:
            store.save(record)
        more = f"; passed over: {', '.join(passed_over)}" if passed_over else ""
        print(f"{name}: {len(records):,} records{more}")


def _without_faults(path: Path) -> Submission:
    """Read a submission, or name its faults and exit."""
    from harness.submission.read import read

    submission, faults = read(path)
    if submission is None:
        _print_faults(faults)
        raise typer.Exit(EXIT_FAULTS)
    return submission


def _print_faults(faults: list[Fault]) -> None:
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults." if len(faults) != 1 else "1 fault.", file=sys.stderr)


def _way(chosen: str | None) -> Way:
    """Return how code is isolated.

    Raises:
        SetupError: in the way that was asked for it cannot be.
    """
    from harness.isolation import best_way, why_not

    if chosen is None:
        return best_way()
    way: Way = chosen  # type: ignore[assignment]
    if reason := why_not(way):
        raise SetupError(f"--isolation {chosen!r} cannot be had here: {reason}.")
    return way


def _print_report(report: Report, path: Path, place: Path, results: str, json: bool) -> None:
    """Say what was checked, how it was isolated, what went wrong, and which rows the submission would have."""
    from harness.inspection.files import printable
    from harness.store import Store
    from harness.submission.evaluation import as_mapping, preview

    if json:
        print(json_format.dumps(as_mapping(report), indent=1))
        return
    for check in report.checks:
        print(printable(str(check)))
    if report.way:
        print(f"Isolated by {report.way}." + "".join(f" Not had: {what}." for what in report.lacks))
    if report.failure:
        print(f"Failed. {report.failure} The log: {place / 'log.txt'}")
    if rows := preview(Store(results), place, report):
        print(rows)
    if not report.failure:
        print(f"Next: run_bench.py submit admit {path}")
