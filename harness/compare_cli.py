"""The commands `compare` and `check`: how two models differ, and whether a change is worse than its baseline."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness import options
from harness.errors import SetupError

BASELINE_HELP = "A results folder or address, or a git revision such as origin/main, whose results are meant."
JUNIT_HELP = "Write JUnit XML there."
POLICY_HELP = "A TOML file that says what counts as a change; see docs/ci."


def check(
    baseline: Annotated[str, typer.Option(help=BASELINE_HELP)],
    results: options.Results = "results",
    policy: Annotated[Path | None, typer.Option(help=POLICY_HELP)] = None,
    junit: Annotated[Path | None, typer.Option(help=JUNIT_HELP)] = None,
) -> None:
    """Compare the records in --results with a baseline, cell by cell; fail where something became worse.

    Exit codes: 0 nothing is worse; 2 a mistake in what was asked; 3 something is worse; 4 something that the baseline
    has was not measured, or nothing was; 5 the data or the machine changed; 6 inconclusive, where the policy does not
    tolerate that or nothing else was shown. On GitHub it also writes annotations and the step's summary.
    """
    from harness import gate_report
    from harness.baseline import opened
    from harness.gate import exit_code, judge, read_policy
    from harness.progress import say
    from harness.store import Store, uncollected, write_atomically

    rules, after = read_policy(policy), Store(results)
    with opened(baseline, after) as before, uncollected():
        if before.location.key == after.location.key:
            raise SetupError(f"The baseline {baseline!r} is the candidate itself: give another one, or a git revision.")
        findings = judge(before.load(), after.load(), rules, (before, after))
        if not findings:
            say(f"The baseline {baseline!r} has no records to compare with: give the folder that holds `records`.")
    page = shown(gate_report.to_markdown(findings, rules))
    print(page)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        sys.stdout.write(gate_report.to_annotations(findings, rules))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        if junit:
            write_atomically(junit, gate_report.to_junit(findings, rules))
        if summary:
            with open(summary, "a", encoding="utf-8") as file:
                file.write(page)
    except OSError as error:
        raise SetupError(f"{error.filename!r} cannot be written ({error.strerror}). Give another place.") from error
    raise typer.Exit(exit_code(findings, rules))


def compare(
    first: Annotated[str, typer.Argument(help="A model as the records name it.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    results: options.Results = "results",
) -> None:
    """Print every task that two models share: difference, interval, test, and the items on which they disagree most."""
    from harness.compare import compare as find
    from harness.compare import to_markdown
    from harness.store import Store

    print(shown(to_markdown(first, second, *find(Store(results), first, second))))


def shown(page: str) -> str:
    """Return a page as a terminal can show it: records hold text of strangers, such as errors and names of images."""
    from harness.inspection.files import printable

    return "\n".join(map(printable, page.split("\n")))
