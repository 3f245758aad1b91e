"""Ranks as intervals: paired where outcomes are there, by intervals elsewhere; ties; budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_records import GMACS, LATENCY, PARAMETERS, TOP1, accuracy, cost
from msgspec.structs import replace
from test_gate import outcomes

from harness.budget import Limit, parse, within
from harness.errors import SetupError, UnknownName
from harness.leaderboard import Board, make_boards
from harness.metric import Measurement
from harness.ranking import with_ranks
from harness.record import Record
from harness.store import Store
from harness.tables import escape_latex, rank_shown, to_latex, to_markdown


def ranked(store: Store) -> Board:
    (board,) = make_boards(store.load())[0]
    return with_ranks(board, store)


def shown(board: Board) -> dict[str, str]:
    return {row.record.model: rank_shown(row) for row in board.rows}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def timed(model: str, value: float, reach: float) -> Record:
    record = cost(model, value)
    first = Measurement(LATENCY, value, interval=(value - reach, value + reach))
    return replace(record, measurements=(first, *record.measurements[1:]))


def test_models_that_the_images_do_not_tell_apart_share_ranks(store: Store) -> None:
    for model, right in (("a", 700), ("b", 698), ("c", 600)):
        store.save(accuracy(model, right / 10), outcomes(right))
    for _ in range(2):  # the second time from the cache
        assert shown(ranked(store)) == {"a": "1= (1–2)", "b": "2= (1–2)", "c": "3"}


def test_a_cache_does_not_outlive_its_outcomes(store: Store) -> None:
    store.save(accuracy("a", 70.0), outcomes(700))
    store.save(accuracy("b", 60.0), outcomes(600))
    assert shown(ranked(store)) == {"a": "1", "b": "2"}
    store.save(accuracy("b", 69.9), outcomes(699))
    assert shown(ranked(store)) == {"a": "1= (1–2)", "b": "2= (1–2)"}


def test_intervals_decide_where_there_are_no_outcomes(store: Store) -> None:
    for model, value, reach in (("a", 10.0, 0.02), ("b", 10.1, 0.02), ("c", 12.0, 0.02)):
        store.save(timed(model, value, reach))
    board = ranked(store)
    # One per cent is beyond chance here, but less than what changes from process to process.
    assert shown(board) == {"a": "1= (1–2)", "b": "2= (1–2)", "c": "3"}
    assert board.rows[0].interval(LATENCY) == (9.98, 10.02)
    assert "10.00 ±0.02" in to_markdown([board], [])


def test_without_outcomes_and_intervals_ranks_are_plain(store: Store) -> None:
    store.save(accuracy("a", 70.0))
    store.save(accuracy("b", 60.0))
    assert [row.ranks for row in ranked(store).rows] == [None, None]
    assert "ranks not tested: no intervals and no outcomes" in to_markdown([ranked(store)], [])
    store.save(accuracy("c", 65.0), outcomes(650))
    assert [row.ranks for row in ranked(store).rows] == [None, None, None]


def test_the_page_says_where_ranks_are_not_tested(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for model, value in (("a", 10.0), ("b", 12.0), ("c", 14.0)):
        store.save(timed(model, value, 0.02))
    assert "not tested" not in to_markdown([ranked(store)], [])
    monkeypatch.setattr("harness.ranking.MOST_ROWS", 2)
    for text in (to_markdown([ranked(store)], []), to_latex([ranked(store)])):
        assert "ranks not tested: more than 2 rows" in text


def test_outcomes_of_very_many_rows_are_not_paired(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for model, right in (("a", 700), ("b", 698), ("c", 600)):
        record = accuracy(model, right / 10)
        first, *others = record.measurements
        first = replace(first, interval=(right / 10 - 0.01, right / 10 + 0.01))
        store.save(replace(record, measurements=(first, *others)), outcomes(right))
    assert shown(ranked(store)) == {"a": "1= (1–2)", "b": "2= (1–2)", "c": "3"}
    monkeypatch.setattr("harness.ranking.MOST_PAIRED", 2)
    assert shown(ranked(store)) == {"a": "1", "b": "2", "c": "3"}
    assert "ranks tested by intervals alone: more than 2 rows" in to_markdown([ranked(store)], [])


def test_a_cost_that_may_be_nought_takes_no_ranks_from_others(store: Store) -> None:
    for model, value, reach in (("a", 10.0, 0.02), ("b", 12.0, 30.0), ("c", 14.0, 0.02), ("d", 16.0, 0.02)):
        store.save(timed(model, value, reach))
    assert shown(ranked(store)) == {"a": "1= (1–2)", "b": "2= (1–4)", "c": "3= (2–3)", "d": "4= (3–4)"}


def test_rows_without_an_interval_differ_from_none(store: Store) -> None:
    for model, value in (("a", 10.0), ("c", 14.0)):
        store.save(timed(model, value, 0.02))
    store.save(cost("b", 12.0))
    assert shown(ranked(store)) == {"a": "1= (1–2)", "b": "2= (1–3)", "c": "3= (2–3)"}


def test_outcomes_that_are_gone_are_no_reason_to_fail(store: Store) -> None:
    for model, right in (("a", 700), ("b", 600)):
        record = store.save(accuracy(model, right / 10), outcomes(right))
        (store.outcomes / f"{record.name}.csv.gz").unlink()
    assert [row.ranks for row in ranked(store).rows] == [None, None]


def test_a_budget_spans_boards() -> None:
    records = [accuracy("a", 70.0), accuracy("b", 80.0), cost("a", 10.0), cost("b", 30.0)]
    boards, _ = make_boards(records)
    kept = within(boards, parse("gmacs<5, p50_ms <= 10"))
    assert [(board.task, [(row.record.model, row.rank) for row in board.rows]) for board in kept] == [
        ("cost", [("a", 1)]),
        ("imagenet", [("a", 2)]),
    ]
    assert within(boards, parse("latency_b1<1")) == []
    with pytest.raises(UnknownName, match=r"'gmac'\. Did you mean 'gmacs'"):
        within(boards, parse("gmac<5"))


@pytest.mark.parametrize("text", ["gmacs", "gmacs<", "<5", "gmacs=5", "gmacs<5,", "gmacs<1.2.3", ""])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(SetupError, match="is no budget"):
        parse(text)


def test_a_budget_is_read_as_written() -> None:
    assert parse("params>=1e1") == [Limit("parameters", ">=", 10.0)]
    assert (GMACS.name, PARAMETERS.name, TOP1.name) == ("gmacs", "parameters", "top1")


def test_latex_is_ready_for_a_paper(store: Store) -> None:
    store.save(accuracy("a_b & c", 70.0), outcomes(700))
    store.save(accuracy("plain", 69.9), outcomes(699))
    text = to_latex([ranked(store)])
    assert r"a\_b \& c" in text
    assert r"\textbf{70.00}" in text
    assert r"1= (1--2)" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert escape_latex("\\input{x}^~$") == r"\textbackslash{}input\{x\}\textasciicircum{}\textasciitilde{}\$"
