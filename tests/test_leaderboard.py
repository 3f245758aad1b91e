"""Boards: who ranks with whom, who does not rank and why, and the tables made of it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from fake_records import DATA, ENVIRONMENT, PARAMETERS, SETUP, TOP1, accuracy, cost
from msgspec.structs import replace

from harness.audit import verify
from harness.board import render
from harness.leaderboard import differences, make_boards, why_unranked
from harness.metric import Measurement, Metric
from harness.ranking import with_ranks
from harness.record import Preprocessing, Record, Setup, Weights, from_json
from harness.store import Store
from harness.tables import pipe_table, to_csv, to_latex, to_markdown

GOLDEN = Path(__file__).parent / "golden"


def ranks(records: list[Record]) -> list[tuple[str, int]]:
    boards, _ = make_boards(records)
    return [(row.record.model, row.rank) for board in boards for row in board.rows]


def test_higher_is_better_where_the_metric_says_so() -> None:
    assert ranks([accuracy("a", 70.0), accuracy("b", 90.0), accuracy("c", 80.0)]) == [("b", 1), ("c", 2), ("a", 3)]


def test_lower_is_better_where_the_metric_says_so() -> None:
    assert ranks([cost("a", 7.0), cost("b", 9.0)]) == [("a", 1), ("b", 2)]


def test_equal_values_share_a_rank_and_the_next_one_is_skipped() -> None:
    assert ranks([accuracy("a", 70.0), accuracy("b", 90.0), accuracy("c", 90.0)]) == [("b", 1), ("c", 1), ("a", 3)]


def test_the_order_of_the_records_does_not_matter() -> None:
    records = [accuracy("a", 70.0), accuracy("b", 90.0), cost("c", 3.0)]
    assert make_boards(records) == make_boards(list(reversed(records)))


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"setup": replace(SETUP, precision="bf16")}, "precision"),
        ({"data": replace(DATA, fingerprint="f" * 16)}, "data"),
        ({"task_version": 2}, "version"),
    ],
)
def test_accuracies_under_other_conditions_do_not_rank_together(change: dict[str, Any], label: str) -> None:
    boards, _ = make_boards([accuracy("a", 70.0), accuracy("b", 90.0, **change)])
    assert [len(board.rows) for board in boards] == [1, 1]
    assert differences(boards) == {"imagenet": [label]}


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"environment": replace(ENVIRONMENT, device="another")}, "device"),
        ({"environment": replace(ENVIRONMENT, threads=1)}, "threads"),
        ({"environment": replace(ENVIRONMENT, versions={"torch": "2.14.0"})}, "torch"),
        ({"environment": replace(ENVIRONMENT, cpu_quota=1.5)}, "CPU quota"),
        ({"setup": replace(SETUP, preprocessing=Preprocessing(image_size=(384, 384)))}, "image"),
        ({"setup": replace(SETUP, preprocessing=Preprocessing(image_size=(224, 192)))}, "image"),
        ({"setup": replace(SETUP, precision="bf16")}, "precision"),
        ({"setup": replace(SETUP, precision="tf32")}, "precision"),
        ({"task_version": 2}, "version"),
        ({"setup": replace(SETUP, batch_size=8)}, "batch"),
        ({"setup": replace(SETUP, channels_last=True)}, "layout"),
        ({"setup": replace(SETUP, compile=True)}, "mode"),
        ({"setup": replace(SETUP, cuda_graphs=True)}, "mode"),
        ({"setup": replace(SETUP, cuda_graphs=True, compile=True)}, "mode"),
    ],
)
def test_costs_under_other_conditions_do_not_rank_together(change: dict[str, Any], label: str) -> None:
    boards, _ = make_boards([cost("a", 7.0), cost("b", 9.0, **change)])
    assert [len(board.rows) for board in boards] == [1, 1]
    assert differences(boards) == {"cost": [label]}


VERSIONS = {"torch": "2.15.0", "cuda": "13.0", "cudnn": "92000", "driver": "580.1"}
GPU = replace(ENVIRONMENT, device="a GPU", power_limit=700.0, versions=VERSIONS)
ON_GPU: dict[str, Any] = {"setup": replace(SETUP, device="cuda"), "environment": GPU}


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"device": "another GPU"}, "device"),
        ({"power_limit": 500.0}, "power limit"),
        ({"versions": VERSIONS | {"cuda": "12.6"}}, "CUDA"),
        ({"versions": VERSIONS | {"driver": "570.2"}}, "driver"),
    ],
)
def test_costs_of_gpus_that_differ_do_not_rank_together(change: dict[str, Any], label: str) -> None:
    other = ON_GPU | {"environment": replace(GPU, **change)}
    boards, _ = make_boards([cost("a", 7.0, **ON_GPU), cost("b", 9.0, **other)])
    assert [len(board.rows) for board in boards] == [1, 1]
    assert differences(boards) == {"cost": [label]}


def test_what_the_processor_does_beside_a_gpu_is_no_condition() -> None:
    other = ON_GPU | {"environment": replace(GPU, threads=1, cpu_quota=2.0)}
    assert len(make_boards([cost("a", 7.0, **ON_GPU), cost("b", 9.0, **other)])[0]) == 1


def test_a_cpu_and_a_gpu_do_not_rank_together() -> None:
    boards, _ = make_boards([cost("a", 7.0), cost("b", 9.0, **ON_GPU)])
    assert {"device", "threads", "driver"} <= set(differences(boards)["cost"])


def test_forward_and_forward_with_backward_are_boards_of_their_own() -> None:
    forward, both = (replace(cost("a", 7.0), task=f"cost:{name}") for name in ("latency", "training_latency"))
    assert [board.task for board in make_boards([forward, both])[0]] == [forward.task, both.task]


def test_accuracy_ranks_across_machines_and_batches() -> None:
    other = {"environment": replace(ENVIRONMENT, device="another"), "setup": replace(SETUP, batch_size=8)}
    assert len(ranks([accuracy("a", 70.0), accuracy("b", 90.0, **other)])) == 2
    assert len(make_boards([accuracy("a", 70.0), accuracy("b", 90.0, **other)])[0]) == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"error": "it broke"}, "it broke"),
        ({"setup": replace(SETUP, limit=10)}, "--limit 10"),
        ({"setup": Setup()}, "random weights"),
        ({"measurements": ()}, "no measurements"),
    ],
)
def test_what_does_not_rank_is_left_out_with_its_reason(fields: dict[str, Any], reason: str) -> None:
    boards, left_out = make_boards([accuracy("a", 70.0, **fields)])
    assert not boards
    assert reason in left_out[0].reason
    assert reason in to_markdown(boards, left_out)


def test_a_disturbed_record_does_not_rank_and_shows_what_was_measured() -> None:
    disturbed = cost("a", 7.0, details={"disturbed": ["latency: b1: heat", "latency: b8: company"]})
    boards, left_out = make_boards([disturbed, cost("b", 9.0)])
    assert [row.record.model for row in boards[0].rows] == ["b"]
    assert left_out[0].reason == (
        "disturbed: latency: b1: heat; latency: b8: company. Measured latency_b1 7.00 ms; --rerun measures again"
    )


def test_parameters_of_a_disturbed_record_stand_beside_accuracy_all_the_same() -> None:
    boards, _ = make_boards([accuracy("a", 70.0), cost("a", 3.0, details={"disturbed": ["latency: b1: heat"]})])
    assert boards[0].rows[0].value(PARAMETERS) == 5.0


def test_an_uncounted_headline_does_not_rank() -> None:
    assert why_unranked(accuracy("a", None)) == "not to be had"


def test_untrained_features_rank_only_with_their_like() -> None:
    records = [accuracy("a", 70.0, untrained="apart"), accuracy("b", 30.0, untrained="apart", setup=Setup())]
    boards, _ = make_boards(records)
    assert [len(board.rows) for board in boards] == [1, 1]
    assert differences(boards) == {"imagenet": ["weights"]}


def test_parameters_stand_beside_accuracy() -> None:
    boards, _ = make_boards([accuracy("a", 70.0), cost("a", 3.0), accuracy("b", 60.0)])
    board = next(board for board in boards if board.task == "imagenet")
    assert [row.value(PARAMETERS) for row in board.rows] == [5.0, None]


def test_parameters_of_another_image_size_do_not() -> None:
    small = replace(SETUP, preprocessing=Preprocessing(image_size=(96, 96)))
    boards, _ = make_boards([accuracy("a", 70.0), cost("a", 3.0, setup=small)])
    board = next(board for board in boards if board.task == "imagenet")
    assert board.rows[0].value(PARAMETERS) is None


def test_minor_metrics_are_in_the_csv_and_not_in_the_table() -> None:
    minor = Measurement(Metric("share_attention", "%", False, minor=True), 12.5)
    boards, _ = make_boards([accuracy("a", 70.0, measurements=(Measurement(TOP1, 70.0), minor))])
    assert "share_attention" not in to_markdown(boards, [])
    assert "share_attention" in to_csv(boards)


def test_names_are_escaped_everywhere() -> None:
    evil = accuracy("=cmd|' /C calc'!A0<script>[x](y)`|", 70.0)
    boards, left_out = make_boards([evil, replace(evil, error="<img src=x>\n# title", key="00000000")])
    page = to_markdown(boards, left_out)
    assert "<script>" not in page
    assert "<img" not in page
    assert "\n# title" not in page
    cells = next(csv.DictReader(io.StringIO(to_csv(boards))))
    assert cells["model"].startswith("'=")


def test_names_are_neither_emphasised_nor_headings_nor_lists() -> None:
    from markdown_it import MarkdownIt

    names = ["**a**", "_b_", "lab/__init__.py:net_s", "~~c~~", "# d", "- e", "1. f", "+ g", "a_b_c"]
    broken = [accuracy(name, error="*it* _broke_", measurements=()) for name in names]
    page = to_markdown(*make_boards([*map(accuracy, names), *broken]))
    assert "a_b_c" in page
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(page)
    assert [html.count(f"<{tag}") for tag in ("em>", "s>", "h1", "h2", "ul", "ol", "li")] == [
        0,
        0,
        1,
        2,
        1,
        0,
        len(names),
    ]
    assert html.count("<strong>") == len(names)
    assert all(html.count(f"{name} on imagenet") == 1 and f">{name}</td>" in html for name in names)


def test_a_backslash_and_a_return_undo_no_escape() -> None:
    metric = replace(TOP1, name="<b>|", unit="")
    evil = accuracy("\\[x](javascript:y)\\|\r# title", measurements=(Measurement(metric, 70.0),))
    boards, _ = make_boards([evil])
    page = to_markdown(boards, [])
    assert "| \\\\\\[x](javascript:y)\\\\\\| # title |" in " ".join(page.split())
    assert "| &lt;b&gt;\\| ↑ |" in " ".join(page.split())
    assert "\r" not in page + to_latex(boards)


def test_latex_marks_the_best_ties_and_notes_and_sets_names_as_they_are() -> None:
    records = [accuracy(name, value) for name, value in (("a|b_\x1b\u202e", 70.0), ("c", 70.0), ("d", 60.0))]
    noted = accuracy("e", 50.0, details={"nominal": "100 % of it"})
    text = to_latex(make_boards([*records, noted])[0])
    assert "1= & a\\textbar{}b\\_ & pretrained & 224 & \\textbf{70.00} & -- & -- \\\\\n" in text
    assert "1= & c & pretrained & 224 & \\textbf{70.00}" in text
    assert "3 & d & pretrained & 224 & 60.00" in text
    assert "4 & e \\dag & " in text
    assert "\n\\dag{} e: 100 \\% of it\n" in text
    assert text.count("{") == text.count("}")


def test_partial_weights_and_overrides_are_shown() -> None:
    weights = Weights(source="file", file="x.pth", missing=("a", "b"))
    setup = replace(
        SETUP, weights=weights, preprocessing=Preprocessing(image_size=(96, 128), overridden=("image_size",))
    )
    page = to_markdown(*make_boards([accuracy("a", 70.0, setup=setup)]))
    assert "x.pth (partial: 2 missing, 0 unexpected)" in page
    assert "96x128 (set: image_size)" in page


def test_rows_that_would_look_alike_show_their_keys() -> None:
    boards, _ = make_boards(
        [accuracy("a", 70.0), accuracy("a", 60.0, setup=replace(SETUP, batch_size=8)), accuracy("b", 50.0)]
    )
    labels = [row.label[0] for row in boards[0].rows]
    assert labels[2] == "b"
    assert len(set(labels)) == 3
    assert all(label.startswith("a [") for label in labels[:2])


def test_the_generated_tables_equal_the_committed_ones() -> None:
    record = from_json((GOLDEN / "record_v1.json").read_bytes(), "golden")
    ranked = replace(record, setup=replace(record.setup, limit=None))
    costs = [replace(found, measurements=found.measurements[:2]) for found in (cost("a", 3.0), cost("b", 2.0))]
    others = [accuracy("a", 70.126), accuracy("b", 70.1), *costs, accuracy("c", 1.0, error="it broke")]
    boards, left_out = make_boards([record, replace(ranked, key="00000001"), *others])
    assert to_markdown(boards, left_out) == (GOLDEN / "board.md").read_text()
    assert to_csv(boards) == (GOLDEN / "board.csv").read_text()


def test_the_committed_pages_are_those_of_the_committed_records() -> None:
    results = Path(__file__).resolve().parents[1] / "results"
    store = Store(results)
    boards, left_out = make_boards(store.load())
    assert boards
    for name, content in render([with_ranks(board, store) for board in boards], left_out).items():
        assert content == (results / name).read_bytes(), name
    assert verify(store) == []


def test_tables_are_those_of_tabulate() -> None:
    from tabulate import tabulate

    head, align = ["#", "a model", "value (ms) ↓"], ("right", "left", "right")
    rows = [["1=", "n", "**70.00**"], ["12", " padded ", "–"], ["3", "a longer name \\| with a bar", "1.00 ±0.50"]]
    expected = tabulate(rows, head, tablefmt="pipe", colalign=align, disable_numparse=True)
    assert pipe_table(head, rows, "rlr") == expected


def test_a_long_board_is_several_tables_in_latex() -> None:
    note = {"nominal": "a note"}
    boards, _ = make_boards(accuracy(f"net_{n}", 90.0 - n / 10, details=note if n == 50 else {}) for n in range(85))
    tables = to_latex(boards).split("\\begin{table}")[1:]
    assert [table.count("net\\_") for table in tables] == [40, 41, 5], "a row each, and the note on the page of its row"
    assert [
        re.search(r"rows \d+ to \d+ of \d+", table)[0]
        for table in tables
        if table.count("\\toprule") == 1  # type: ignore[index]
    ] == ["rows 1 to 40 of 85", "rows 41 to 80 of 85", "rows 81 to 85 of 85"]
    assert tables[0].count("\\textbf") == 1
    assert not tables[1].count("\\textbf")


def test_the_csv_keeps_every_digit_and_quotes_names() -> None:
    values = {"a,b": 70.123456789012, '"c"': 60.0, "d\ne": 1e-9}
    records = [*(accuracy(model, value) for model, value in values.items()), cost("f", 1e22)]
    lines = list(csv.DictReader(io.StringIO(to_csv(make_boards(records)[0]))))
    assert [line["model"] for line in lines] == ["f", "a,b", '"c"', "d\ne"]
    assert [line["top1"] for line in lines] == ["", "70.123456789012", "60.0", "1e-9"]
    assert lines[0]["latency_b1"] == "1e22"
    assert to_csv([]) == "\n"


def test_records_that_rank_by_other_metrics_stand_apart() -> None:
    upside_down = Measurement(replace(TOP1, higher_is_better=False), 60.0)
    renamed = Measurement(replace(TOP1, name="top3"), 90.0)
    boards, left_out = make_boards([
        accuracy("a", 70.0), accuracy("b", 80.0), accuracy("0", measurements=(upside_down,)),
        accuracy("1", measurements=(renamed,)),
    ])  # fmt: skip
    assert not left_out
    assert [[row.label[0] for row in board.rows] for board in boards] == [["b", "a"], ["0"], ["1"]]
    assert [dict(board.conditions)["ranked by"] for board in boards] == [
        "top1 (%), higher is better", "top1 (%), lower is better", "top3 (%), higher is better",
    ]  # fmt: skip
    assert "they differ in ranked by" in to_markdown(boards, left_out)
