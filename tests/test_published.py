"""Published figures: read with their sources, shown beside measured values, never ranked."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_records import GMACS, PARAMETERS, TOP1, accuracy, cost
from typer.testing import CliRunner

from harness import figures
from harness.cli import app
from harness.compare import compare
from harness.errors import DataError
from harness.gate import Policy, judge
from harness.leaderboard import make_boards, why_unranked
from harness.page_data import page_data
from harness.published import beside, card_records, published_record, read_published
from harness.store import Store
from harness.tables import to_markdown
from harness.task_id import canonical

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
    assert "| a | published | – | top1 (%) | 81.20 | 80.00 | -1.20 | arXiv:1, Table 1 |" in text
    assert "| never measured | claimed | – | top1 (%) | 81.20 | – | – | arXiv:1, Table 1 |" in text
    assert "Published values that nothing measured here answers, by task: imagenet 1." in text
    assert "Left out" not in text
    page = page_data(*found)
    shown = [(one.name, len(one.published), len(one.records)) for one in page.models]
    assert shown == [("a", 1, 1), ("never measured", 1, 0)]
    assert page.models[0].published[0][:4] == ("published", "imagenet", "–", "top1 (%)")
    assert page.elsewhere == 1


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


VTAB = "method,count_1000,dist_1000,count_full,dist_full,arch\nRotation,45.5,60.9,99.7,93.2,ResNet50\n"
FAVOR = (
    "run name,model,taxonomy class,image resolution (finetuning),top-1 validation accuracy,number of parameters,FLOPs,"
    "throughput,inference VRAM @1,GPU type (finetuning)\n"
    "ViT @224->384,ViT-S/16,Baseline,384,0.8425,22205416,15762685510.0,829.9,3735122432,A100-SXM4-80GB\n"
)


def test_results_of_vtab_keep_their_protocol(tmp_path: Path) -> None:
    path = tmp_path / "vtab_clevr.csv"
    path.write_text(VTAB)
    records, passed_over = read_published(path)
    assert passed_over == []
    found = {(one.task, str(one.details["protocol"])): one.values() for one in records}
    few, every = "VTAB, fine-tuned on 1,000 examples", "VTAB, fine-tuned on all training examples"
    assert found == {
        ("clevr_count:fine_tune,preset=vtab", few): {"top1": 45.5},
        ("clevr_count:fine_tune,preset=vtab", every): {"top1": 99.7},
        ("clevr_dist:fine_tune,preset=vtab", few): {"top1": 60.9},
        ("clevr_dist:fine_tune,preset=vtab", every): {"top1": 93.2},
    }
    assert {(one.model, one.details["source"]) for one in records} == {
        ("Rotation (ResNet50)", "VTAB (arXiv:1910.04867), vtab_clevr.csv")
    }
    assert len({one.name for one in records}) == 4


def test_runs_of_which_transformer_to_favor_become_records(tmp_path: Path) -> None:
    path = tmp_path / "favor.csv"
    path.write_text(FAVOR)
    records, passed_over = read_published(path)
    assert passed_over == ["taxonomy class", "GPU type (finetuning)"]
    found = {(one.task, "protocol" in one.details): {} for one in records}
    for one in records:
        found[one.task, "protocol" in one.details] |= one.values()
        assert "run 'ViT @224->384'" in one.details["source"]
        assert (one.model, one.setup.preprocessing.image_size) == ("ViT-S/16", (384, 384))
    assert found == {
        ("imagenet", False): {"top1": 84.25},
        ("cost", False): {"parameters": 22.205416},
        ("cost", True): {"gmacs": 15.76268551, "throughput": 829.9, "memory_b1": pytest.approx(3562.09, abs=0.01)},
    }


DENSE = {
    "coco_box_ap_maskrcnn_1x": 43.7, "coco_mask_ap_cascade_3x": 43.7, "ade20k_miou_upernet": 44.51,
    "ade20k_miou_upernet_ms": 45.81, "ade20k_macc_semantic_fpn_40k": 51.76, "pq": 53.3, "pq_th": 58.8,
    "denoised": {"ade20k_miou": 45.14},
}  # fmt: skip


def test_dense_figures_become_shares_of_the_task_that_they_answer(tmp_path: Path) -> None:
    path = tmp_path / "system.json"
    variants = [
        {"name": f"Net, {data}", "source": "README", "input": 800, "metrics": DENSE} for data in ("COCO", "ADE")
    ]
    path.write_text(json.dumps({"title": "A System", "variants": variants}))
    records, passed_over = read_published(path)
    found = {(one.task, one.details.get("protocol", "")): one.values() for one in records if one.model == "Net, COCO"}
    assert found == {
        ("coco:mask_rcnn,preset=1x", ""): {"box_ap": 0.437},
        ("coco", "cascade, 3x"): {"mask_ap": 0.437},
        ("ade20k:upernet,preset=160k", ""): {"miou": 0.4451},
        ("ade20k:upernet,preset=160k,test=ms_whole", ""): {"miou": 0.4581},
        ("ade20k", "Semantic FPN, 40,000 steps"): {"macc": 0.5176},
        ("coco_panoptic", ""): {"pq": 0.533, "pq_things": 0.588},
    }
    assert passed_over == ["pq", "pq_th"], "of another data set"
    (state,) = [one for one in records if one.model == "Net, COCO (denoised)"]
    assert (state.task, state.values()) == ("ade20k", {"miou": 0.4514})
    assert {one.setup.preprocessing.image_size for one in records} == {None}


def test_every_listed_figure_answers_a_task_that_exists() -> None:
    for table in (figures.CARD, figures.TIMM, figures.SYSTEM, figures.VTAB, figures.FAVOR):
        for name, one in table.items():
            assert one.task == canonical(one.task), name


def test_a_value_with_a_protocol_of_its_own_stands_beside_none() -> None:
    assert cells(accuracy("a", 80.0), published("a", protocol="ten crops")) == [
        ("top1 (%)", "81.20", "–", "–", "arXiv:1, Table 1; ten crops")
    ]
    assert published("a", protocol="ten crops").key != published("a").key


def test_the_published_tables_at_hand_are_read(shared_data: Path) -> None:
    home = shared_data.parent
    records, _ = read_published(home / "reference" / "timm.csv")
    assert len(records) > 3000
    assert len(read_published(home / "reference" / "vtab_clevr.csv")[0]) == 16 * 4
    assert len(read_published(home / "reference" / "which_transformer_to_favor.csv")[0]) == 90 * 5
    systems = sorted((home / "systems").glob("*.json"))
    found = [record for path in systems for record in read_published(path)[0]]
    assert len(systems) == 50
    assert len(found) > 500
    tasks = Counter(record.task.partition(":")[0] for record in found)
    assert min(tasks["coco"], tasks["ade20k"]) > 60
    assert tasks["coco_panoptic"] > 10
    assert {record.provenance for record in found} == {"published"}
    assert all(record.details["source"] and record.measurements for record in found)
