"""What the gate found, for people and for machines: a table, JUnit XML, GitHub annotations and step summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from harness.gate import Cell, Finding, Policy, Verdict, exit_code
from harness.tables import escape

# Of one reason in the table and in annotations: GitHub takes 1 MiB of summary, and an error may be long.
LONGEST = 300
# Within a group the cells keep their order.
GRAVEST = (
    Verdict.WORSE,
    Verdict.NOT_MEASURED,
    Verdict.CHANGED,
    Verdict.INCONCLUSIVE,
    Verdict.BETTER,
    Verdict.SAME,
)


def headline(findings: Sequence[Finding], policy: Policy) -> str:
    """Return one line: how it ended, and how many cells got which verdict."""
    counts = Counter(finding.verdict for finding in findings)
    told = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in GRAVEST if counts[verdict]) or "nothing measured"
    return f"{'passed' if exit_code(findings, policy) == 0 else 'failed'}: {told}"


def to_markdown(findings: Sequence[Finding], policy: Policy, most: int = 100) -> str:
    """Return the summary page: the headline, then a table of every cell that is not the same, the gravest first.

    Args:
        most: rows of the table; how many are left out is said.
    """
    from tabulate import tabulate

    changed = sorted((f for f in findings if f.verdict is not Verdict.SAME), key=lambda f: GRAVEST.index(f.verdict))
    parts = [f"## Regression check {headline(findings, policy)}"]
    if changed:
        head = ["verdict", "model", "task", "metric", "before", "after", "why"]
        rows = [_row(finding) for finding in changed[:most]]
        parts.append(tabulate(rows, head, tablefmt="pipe", disable_numparse=True))
    if findings and all(finding.copied for finding in findings):
        parts.append("Nothing was measured: every record is the baseline's own. Run again with --rerun.")
    if len(changed) > most:
        parts.append(f"{len(changed) - most:,} more are not shown.")
    return "\n\n".join(parts) + "\n"


def _row(finding: Finding) -> list[str]:
    model, task, _, metric = finding.cell
    values = ["–" if value is None else f"{value:.4g}" for value in (finding.before, finding.after)]
    return [finding.verdict, escape(model), escape(task), escape(metric), *values, escape(_short(finding.reason))]


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST else f"{reason[:LONGEST]} …"


def to_junit(findings: Sequence[Finding], policy: Policy) -> bytes:
    """Return JUnit XML: a case a cell; what fails the gate is a failure, or an error where nothing was measured."""
    suite = ElementTree.Element("testsuite", name="backbone-bench check", tests=str(len(findings)))
    counts = Counter[str]()
    for finding in findings:
        model, task, setup, metric = finding.cell
        # The setup is a part of the name: readers take two cases of one name for one.
        words = {"classname": _xml(f"{model} on {task}"), "name": _xml(f"{metric} ({setup})"), "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", words)
        kind = _kind(finding, policy)
        counts[kind] += 1
        if kind:
            told = ElementTree.SubElement(case, kind, message=_xml(f"{finding.verdict}: {finding.reason}"))
            if kind != "skipped":
                told.set("type", finding.verdict)
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(counts[kind]))
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _kind(finding: Finding, policy: Policy) -> str:
    """The JUnit element that tells a verdict; empty for a case that passed."""
    if finding.verdict in (Verdict.SAME, Verdict.BETTER):
        return ""
    if finding.verdict in policy.tolerate:
        return "skipped"
    return "error" if finding.verdict is Verdict.NOT_MEASURED else "failure"


def _xml(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def to_annotations(findings: Sequence[Finding], policy: Policy, most: int = 10) -> str:
    """Return GitHub workflow commands, one a finding; GitHub shows ten of each kind."""
    lines = []
    for finding in findings:
        if finding.verdict in (Verdict.SAME, Verdict.BETTER):
            continue
        level = "warning" if finding.verdict in policy.tolerate else "error"
        title = _property(f"{finding.verdict}: {_name(finding.cell)}")
        lines.append((level, f"::{level} title={title}::{_data(_short(finding.reason))}"))
    shown = [line for level in ("error", "warning") for line in [text for kind, text in lines if kind == level][:most]]
    return "".join(f"{line}\n" for line in shown)


def _name(cell: Cell) -> str:
    model, task, _, metric = cell
    return f"{metric} of {model} on {task}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
