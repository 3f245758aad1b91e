"""Published figures: read with their sources, shown beside measured values, never ranked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_records import GMACS, PARAMETERS, TOP1, accuracy, cost
from typer.testing import CliRunner

from harness.cli import app
from harness.compare import compare
from harness.errors import DataError
from harness.gate import Policy, judge
from harness.leaderboard import make_boards, why_unranked
from harness.page import payload
from harness.published import beside, card_records, published_record, read_published
from harness.store import Store
from harness.tables import to_markdown

TABLE = (
    "model,img,top1,top5,params_m,gmacs,crop_pct,real_top1\n"
    "net.a_in1k,224,81.50,95.50,5.00,1.25,0.9,\nother.b_in1k,384,83.00,96.00,86.00,55.00,1.0,88.1\n"
)
SYSTEM = {
    "title": "A System (arXiv 2103.14030)",
    "variants": [
        {
            "name": "Net-T", "source": "README table", "params_m": 28, "flops_g": None, "input": 224,
            "metrics": {"imagenet_top1": 81.2, "imagenet_top5": None, "fps": 30.0, "seen": "x", "pq": None},
        },
        {"name": "Net-X", "source": "paper", "params_m": None, "flops_g": [3], "input": "256 (latent)", "metrics": {}},
    ],
}  # fmt: skip


def test_a_table_of_timm_becomes_records_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "timm.csv"
    path.write_text(TABLE)
    records, passed_over = read_published(path)
    assert [(one.model, one.task, one.values()) for one in records] == [
        ("timm:net.a_in1k", "cost", {"parameters": 5.0, "gmacs": 1.25}),
        ("timm:net.a_in1k", "imagenet", {"top1": 81.5, "top5": 95.5}),
        ("timm:other.b_in1k", "cost", {"parameters": 86.0, "gmacs": 55.0}),
        ("timm:other.b_in1k", "imagenet", {"top1": 83.0, "top5": 96.0, "real_top1": 88.1}),
    ]
    assert {(one.provenance, one.details["source"]) for one in records} == {("published", "timm, timm.csv")}
    assert records[2].setup.preprocessing.image_size == (384, 384)
    assert passed_over == ["crop_pct"]
    assert read_published(path)[0] == records


def test_a_system_becomes_records_with_the_source_of_each_size(tmp_path: Path) -> None:
    path = tmp_path / "system.json"
    path.write_text(json.dumps({**SYSTEM, "kind": "backbone"}))
    records, passed_over = read_published(path)
    assert [(one.model, one.task, one.values()) for one in records] == [
        ("Net-T", "cost", {"parameters": 28.0}), ("Net-T", "imagenet", {"top1": 81.2})
    ]  # fmt: skip
    assert records[1].details["source"] == "A System (arXiv 2103.14030): README table"
    assert passed_over == ["flops_g", "fps", "seen"]


@pytest.mark.parametrize(("name", "content"), [
    ("a.csv", "model,img\nx,224\n"), ("a.csv", ""), ("a.csv", "model,img,top1\nx,224,good\n"),
    ("a.csv", "model,img,top1\nx,,80\n"), ("a.json", "["), ("a.json", "{}"), ("a.json", '{"title": 3, "variants": []}'),
])  # fmt: skip
def test_other_files_are_refused_in_a_line(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name):
        read_published(tmp_path / name)


def test_cards_tell_what_their_authors_published() -> None:
    found = {(one.model, one.task): one for one in card_records()}
    record = found["vit_s16_cls", "cost"]
    assert record.values()["parameters"] == pytest.approx(22.05, abs=0.1)
    assert record.details["source"]


def published(model: str, value: float = 81.2, size: int | None = None, task: str = "imagenet", **more: Any) -> Any:
    metrics = {"imagenet": TOP1, "cost": GMACS}
    return published_record(model, task, {metrics[task]: value}, "arXiv:1, Table 1", size, **more)


def cells(*records: Any) -> list[tuple[str, ...]]:
    return [one.cells for one in beside(*make_boards(records))]


def test_a_published_value_stands_beside_the_measured_one() -> None:
    source = "arXiv:1, Table 1"
    assert cells(accuracy("a", 80.0), published("a")) == [("top1 (%)", "81.20", "80.00", "-1.20", source)]
    assert cells(accuracy("b", 80.0), published("a")) == [("top1 (%)", "81.20", "–", "–", source)]
    assert cells(accuracy("a", 80.0), published("a", size=224))[0][2] == "80.00"
    assert cells(accuracy("a", 80.0), published("a", size=384))[0][2] == "–"
    assert cells(accuracy("a", error="broke", measurements=()), published("a"))[0][2] == "–"
    tagged = published("timm:a.tag_in1k", 1.2, task="cost")
    assert cells(cost("timm:a", 9.0), tagged) == [("gmacs (G)", "1.20", "1.25", "+0.05", source)]
    assert cells(accuracy("timm:a"), published("timm:a.tag_in1k"))[0][2] == "–"


def test_it_never_ranks_and_changes_no_board() -> None:
    record = published("z", 99.9)
    assert why_unranked(record) == "published, not measured: arXiv:1, Table 1"
    assert make_boards([accuracy("a"), record])[0] == make_boards([accuracy("a")])[0]


def test_it_is_nothing_to_compare_and_no_cell_of_a_gate(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for record in (accuracy("a"), accuracy("b"), published("a", 1.0), published("a", 2.0), published("b", 1.0)):
        store.save(record)
    assert [one.first for one in compare(store, "a", "b")[0]] == [70.0]
    findings = judge(store.load(), store.load(), Policy(), (store, store))
    assert [one.cell[0] for one in findings] == ["a", "b"]


def test_pages_show_it_in_a_section_of_its_own() -> None:
    claim = published("never measured", submission={"name": "x"})
    found = make_boards([accuracy("a", 80.0), published("a"), published("b"), claim])
    text = re.sub(" +", " ", to_markdown(*found))
    assert "## Published and claimed" in text
    assert "| a | top1 (%) | 81.20 | 80.00 | -1.20 | arXiv:1, Table 1 |" in text
    assert "| never measured | top1 (%) | 81.20 | – | – | arXiv:1, Table 1 |" in text
    assert "1 more published values are of models that were not measured here." in text
    assert "Left out" not in text
    models = payload(*found)["models"]
    assert [(one["name"], len(one["published"]), len(one["records"])) for one in models] == [("a", 1, 1)]
    assert payload(*found)["leftOut"] == []


def test_hostile_sources_stay_text() -> None:
    record = published_record("<b>", "imagenet", {PARAMETERS: 1.0}, "<script>|`x`[y](javascript:z)\n# h", submission={})
    text = to_markdown(*make_boards([record]))
    assert "<script>" not in text
    assert "<b>" not in text
    assert "\n# h" not in text
    assert "\\|\\`x\\`\\[y]" in text


def test_the_command_imports_and_says_what_it_passed_over(tmp_path: Path) -> None:
    (tmp_path / "timm.csv").write_text(TABLE)
    words = ["import-published", str(tmp_path / "timm.csv"), "--results", str(tmp_path / "results")]
    for _ in range(2):
        done = CliRunner().invoke(app, words)
        assert (done.exit_code, done.output) == (0, "timm.csv: 4 records; passed over: crop_pct\n")
    assert len(Store(tmp_path / "results").load()) == 4
    done = CliRunner().invoke(app, ["verify", "--results", str(tmp_path / "results")])
    assert done.output == "4 records are as they were written.\n"


def test_the_published_tables_at_hand_are_read(shared_data: Path) -> None:
    home = shared_data.parent
    records, _ = read_published(home / "reference" / "timm.csv")
    assert len(records) > 3000
    systems = sorted((home / "systems").glob("*.json"))
    found = [record for path in systems for record in read_published(path)[0]]
    assert len(systems) == 50
    assert len(found) > 300
    assert {record.provenance for record in found} == {"published"}
    assert all(record.details["source"] and record.measurements for record in found)
