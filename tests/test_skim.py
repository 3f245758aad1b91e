"""Records that are skimmed give the boards that whole ones give, and are refused where whole ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_records import ENVIRONMENT, SETUP, accuracy
from msgspec.structs import replace
from test_record import golden

from harness.board import render
from harness.errors import RecordError
from harness.leaderboard import make_boards
from harness.ranking import with_ranks
from harness.record import Record, to_json
from harness.skim import skim
from harness.store import Store

ROOT = Path(__file__).resolve().parents[1]
PASSED_OVER = ("measurements", "details")


@pytest.mark.parametrize("folder", ["results", "results/attention"])
def test_skimmed_records_give_the_same_pages(folder: str) -> None:
    store = Store(ROOT / folder)
    pages = []
    for records in (store.load(), store.load(skim)):
        boards, left_out = make_boards(records)
        pages.append(render([with_ranks(board, store) for board in boards], left_out))
    assert pages[0] == pages[1]
    assert len(pages[0]["leaderboard.csv"]) > 1000


def test_a_skimmed_record_lacks_the_samples_of_one_run_alone() -> None:
    found, whole = skim(to_json(golden()), "x"), golden()
    assert [(m.metric, m.value, m.samples, m.reason, m.interval) for m in found.measurements] == [
        (m.metric, m.value, (), m.reason, m.interval) for m in whole.measurements
    ]
    assert any(one.samples for one in whole.measurements)
    assert all(getattr(found, n) == getattr(whole, n) for n in Record.__struct_fields__ if n not in PASSED_OVER)
    assert whole.details
    assert found.details == {}, "no board shows these"
    seeded = replace(golden(), details={"equal": {"recipe": "r", "order": "o"}, "seeds": [0, 1]})
    assert skim(to_json(seeded), "x") == seeded, "samples by seed are what such records are compared by"


@pytest.mark.parametrize("details", [
    {"nominal": "a note"}, {"disturbed": ["why"]}, {"unranked": ["why"], "else": 1}, {"source": "a paper"},
    {"protocol": "its own"}, {"race": {"id": "r", "models": ["a", "b"], "rounds": 3}}, {"submission": {"entry": "a"}},
])  # fmt: skip
def test_details_that_boards_look_at_are_kept(details: dict[str, Any]) -> None:
    assert skim(to_json(accuracy("a", details=details)), "x").details == details


@pytest.mark.parametrize("text", [b"", b"{", b'{"schema": 1}', b"\xff\xfe"])
def test_what_cannot_be_skimmed_is_named(text: bytes) -> None:
    with pytest.raises(RecordError, match=r"^x\.json is not a record"):
        skim(text, "x.json")


def test_equal_parts_of_loaded_records_are_one_object(tmp_path: Path) -> None:
    store, elsewhere = Store(tmp_path), replace(ENVIRONMENT, memory_gib=1.0)
    larger = replace(SETUP, batch_size=SETUP.batch_size + 1)
    for record in (
        accuracy("a"), accuracy("b"), accuracy("c", environment=elsewhere), accuracy("d", data=None),
        accuracy("e", setup=larger),
    ):  # fmt: skip
        store.save(record)
    a, b, c, d, e = store.load(skim)
    assert a.environment is b.environment
    assert a.data is b.data
    assert a.setup is b.setup
    assert (c.environment, d.data, e.setup) == (elsewhere, None, larger)
    assert e.setup.weights is a.setup.weights
    assert e.setup.preprocessing is a.setup.preprocessing
    assert [one.metric for one in a.measurements] == [one.metric for one in b.measurements]
    assert a.measurements[0].metric is b.measurements[0].metric
