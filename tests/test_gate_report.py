"""What the gate tells machines: JUnit XML, GitHub annotations and the step's summary, whatever names hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_records import accuracy, cost
from test_gate import POLICY, Sides, finding, samples
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import SetupError
from harness.gate import Finding, Verdict
from harness.gate_report import headline, to_annotations, to_junit, to_markdown


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


def test_what_machines_read() -> None:
    found = [finding(verdict) for verdict in Verdict]
    suite = ElementTree.fromstring(to_junit(found, POLICY))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "6",
        "2",
        "1",
        "1",
    )
    told = to_annotations(found, POLICY).splitlines()
    assert [line.split(" ")[0] for line in told] == ["::error", "::error", "::error", "::warning"]
    assert all("5 %25 more" in line for line in told)
    assert headline(found, POLICY).startswith("failed: 1 worse, 1 not measured")


def test_a_hostile_name_stays_text() -> None:
    hostile = Finding(("a|b<script>\n::error::", "t\x00", "", "m,:"), Verdict.WORSE, "why\n::warning::", 1.0, 2.0)
    assert "<script>" not in to_markdown([hostile], POLICY)
    assert len(to_annotations([hostile], POLICY).splitlines()) == 1
    ElementTree.fromstring(to_junit([hostile, replace(hostile, reason="\ud800\uffff")], POLICY))


def test_long_texts_do_not_fill_the_summary() -> None:
    name = "&|" * 250
    worst = Finding((name, name, name, "m" * 80), Verdict.WORSE, "&|\n" * 100_000, 1.0, 2.0)
    assert len(to_markdown([worst] * 200, POLICY).encode()) < 2**20
    assert len(to_annotations([worst] * 200, POLICY).encode()) < 2**16
    assert ElementTree.fromstring(to_junit([worst], POLICY)).get("failures") == "1"


def test_what_cannot_be_written_is_a_mistake(sides: Sides, tmp_path: Path) -> None:
    sides.before.save(accuracy("net"))
    words = [
        "check",
        "--baseline",
        str(sides.before.root),
        "--results",
        str(sides.after.root),
        "--junit",
        str(tmp_path),
    ]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, SetupError)
    assert "cannot be written" in str(done.exception)


def test_on_github_it_writes_annotations_and_a_summary(
    sides: Sides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    sides.before.save(cost("net", 10.0, samples(10, 1)))
    sides.after.save(cost("net", 15.0, samples(15, 2)))
    code, output = sides.check("--junit", str(tmp_path / "junit.xml"))
    assert code == 3
    assert "::error title=worse%3A latency_b1 of net on cost::+49." in output
    assert "| worse" in (tmp_path / "summary.md").read_text()
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "1"
