"""The HTML page: what it holds, that it is the same every time, and that nothing in a record becomes code."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_records import ENVIRONMENT, accuracy, cost
from msgspec.structs import replace
from typer.testing import CliRunner

from harness.budget import parse, within
from harness.cli import app
from harness.leaderboard import make_boards
from harness.page import to_html
from harness.page_data import family, page_data
from harness.record import Record
from harness.store import Store

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028"


def page(records: list[Record]) -> str:
    return to_html(*make_boards(records)).decode()


def data_of(html: str) -> dict[str, object]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found
    data: dict[str, object] = json.loads(found[1])
    return data


def named(data: Any, kind: str, holders: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Cells as the script of the page reads them, by the names that the data gives them."""
    return [dict(zip(data["columns"][kind], cells, strict=True)) for holder in holders for cells in holder[key]]


def test_the_page_holds_every_board_and_record() -> None:
    records = [accuracy("a"), accuracy("b", 60.0), cost("a", 10.0), accuracy("c", error="it broke", measurements=())]
    html = page(records)
    data: Any = data_of(html)
    assert data == json.loads(msgspec.json.encode(page_data(*make_boards(records))))
    assert [board["task"] for board in data["boards"]] == ["cost", "imagenet"]
    assert {model["name"]: len(model["records"]) for model in data["models"]} == {"a": 2, "b": 1, "c": 1}
    assert [record["refused"] for record in named(data, "record", data["models"], "records")] == [
        "",
        "",
        "",
        "it broke",
    ]
    rows = named(data, "row", data["boards"], "rows")
    assert [(row["rank"], row["label"], row["model"]) for row in rows] == [
        (1, ["a", "pretrained", "224"], 0), (1, ["a", "pretrained", "224"], 0), (2, ["b", "pretrained", "224"], 1),
    ]  # fmt: skip
    assert data["summary"] == "3 ranked results of 2 models on 2 boards"


def test_equal_records_give_equal_bytes() -> None:
    records = [accuracy("a"), accuracy("b", 60.0), cost("a", 10.0)]
    assert page(records) == page(list(reversed(records)))


def test_hostile_text_stays_data() -> None:
    html = page([accuracy(HOSTILE), accuracy("b", error=HOSTILE, measurements=())])
    assert HOSTILE not in html
    assert html.count("</script>") == 2
    assert "\u2028" not in html
    assert "{{" not in html


def test_the_policy_of_the_page_allows_its_own_script_alone() -> None:
    html = page([accuracy("a")])
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    expected = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{expected}'" in html
    assert "default-src 'none'" in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("timm:swin_tiny_patch4.ms", "swin"), ("vit_s16+agent", "vit_s16"), ("nets.py:tiny", "nets.py")],
)
def test_families(model: str, expected: str) -> None:
    assert family(model) == expected


def test_the_command_writes_pages_and_tells_stale_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(accuracy("a"))
    words = ["board", "--results", str(tmp_path), "-q"]
    assert CliRunner().invoke(app, [*words, "--check"]).exit_code == 1
    assert CliRunner().invoke(app, words).exit_code == 0
    assert CliRunner().invoke(app, [*words, "--check"]).exit_code == 0
    store.save(accuracy("b", 60.0))
    stale = CliRunner().invoke(app, [*words, "--check"])
    assert stale.exit_code == 1
    assert "Stale: README.md, leaderboard.csv, leaderboard.tex, leaderboard.html" in stale.output


def test_a_budget_is_shown_and_nothing_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(cost("light", 10.0))
    store.save(cost("heavy", 30.0))
    done = CliRunner().invoke(app, ["board", "--results", str(tmp_path), "--budget", "latency_b1<20"])
    assert "light" in done.output
    assert "heavy" not in done.output
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("latency_b1<1", "No ranked model is within latency_b1<1."),
        ("p50_ms <= 10 , gmacs>1", "light"),
        ("", "'' is no budget"),
        ("gmacs", "'gmacs' is no budget; expected conditions such as gmacs<5"),
        ("gmacs<5 G", "'gmacs<5 G' is no budget"),
        ("gmac<5", "No board has a metric named 'gmac'. Did you mean 'gmacs'?"),
        ("smell<5", "No board has a metric named 'smell'. The heads of the tables"),
    ],
)
def test_what_a_budget_says(tmp_path: Path, budget: str, said: str) -> None:
    store = Store(tmp_path)
    store.save(cost("light", 10.0))
    store.save(cost("heavy", 30.0))
    done = CliRunner().invoke(app, ["board", "--results", str(tmp_path), "--budget", budget])
    assert said in (done.output or str(done.exception))
    assert "heavy" not in done.output
    assert list(tmp_path.iterdir()) == [tmp_path / "records"]
    refused = CliRunner().invoke(app, ["board", "--results", str(tmp_path), "--budget", budget, "--check"])
    assert "give one of them" in str(refused.exception)


def test_a_budget_takes_the_value_of_the_row_and_where_it_has_none_any() -> None:
    fast, slow = cost("a", 5.0, environment=replace(ENVIRONMENT, device="fast")), cost("a", 30.0)
    boards, _ = make_boards([accuracy("a"), accuracy("b"), fast, slow])
    kept = within(boards, parse("latency_b1<10"))
    assert [(board.task, row.record.model) for board in kept for row in board.rows] == [
        ("cost", "a"),
        ("imagenet", "a"),
    ]
    assert dict(kept[0].conditions)["device"] == "fast"


@pytest.mark.parametrize("name", ["README.md", "leaderboard.csv", "leaderboard.tex", "leaderboard.html"])
def test_each_page_is_told_that_is_stale_missing_or_rewritten(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    store.save(accuracy("a"))
    words = ["board", "--results", str(tmp_path), "-q"]
    assert CliRunner().invoke(app, words).exit_code == 0
    path = tmp_path / name
    good = path.read_bytes()
    for bad in (good.replace(b"\n", b"\r\n"), good + b"\n", good[:-1], None):
        if bad is None:
            path.unlink()
        else:
            path.write_bytes(bad)
        checked = CliRunner().invoke(app, [*words, "--check"])
        assert (checked.exit_code, f"Stale: {name}. " in checked.output) == (1, True)
