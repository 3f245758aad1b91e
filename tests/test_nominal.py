"""A pruner that only masks: it saves nothing, is no quicker, and the record and the board say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness import run
from harness.breakdown import break_down
from harness.costs.counter import MacCount
from harness.costs.latency import compare_latency
from harness.costs.macs import describe_nominal, macs
from harness.leaderboard import make_boards
from harness.models import ModelCard, build_model, claimed_gmacs
from harness.record import Preprocessing, Setup
from harness.registry import MODELS
from harness.store import Store
from harness.tables import to_csv, to_markdown

IMAGES = torch.zeros(1, 3, 64, 64)
PRUNERS = """
from torch import nn

class Pruner(nn.Module):
    '''Says that it keeps half of the tokens; it keeps, masks or drops them.'''

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.layers = nn.Sequential(*(nn.Linear(192, 192) for _ in range(8)))
        self.preprocessing = {"input_size": (3, 64, 64)}
        if way != "keep":
            self.nominal_gmacs = 8 * 32 * 192 * 192 / 1e9

    def forward(self, images):
        tokens = images.reshape(len(images), 64, 192)
        kept = tokens.mean(-1).argsort(1) < 32
        if self.way == "mask":
            tokens = tokens * kept[..., None]
        if self.way == "drop":
            tokens = tokens[kept]
        return self.layers(tokens)

def plain():
    return Pruner("keep")

def mask_only():
    return Pruner("mask")

def pruned():
    return Pruner("drop")
"""
COUNTED = 8 * 64 * 192 * 192 / 1e9


@pytest.fixture
def pruners(tmp_path: Path) -> str:
    path = tmp_path / "pruners.py"
    path.write_text(PRUNERS)
    return str(path)


def test_the_board_says_that_a_masks_saving_is_nominal(pruners: str, tmp_path: Path) -> None:
    names = ("plain", "mask_only", "pruned")
    options: dict[str, Any] = {"device": "cpu", "batch_size": 1, "executor": "inline", "results": tmp_path / "results"}
    run([f"{pruners}:{name}" for name in names], "cost:macs", **options)
    records = {record.model: record for record in Store(tmp_path / "results").load()}
    masked = records["pruners.py:mask_only"]
    assert masked.values()["gmacs"] == COUNTED
    assert masked.details["nominal"] == masked.details["macs"]["nominal"]
    assert masked.details["macs"]["nominal_gmacs"] == COUNTED / 2
    assert all("nominal" not in records[f"pruners.py:{name}"].details for name in ("plain", "pruned"))
    assert records["pruners.py:pruned"].values()["gmacs"] == COUNTED / 2
    boards, _ = make_boards(records.values())
    page = to_markdown(boards, [])
    assert "| pruners.py:mask_only † |" in page
    saving = "0.00944 G MACs are claimed and 0.0189 G are done, so that 50 % of the work is saved in name only"
    assert f"- † pruners.py:mask_only: nominal: {saving}\n" in page
    assert page.count("†") == 2
    assert "saved in name only" in to_csv(boards)


def test_a_mask_is_no_quicker_than_doing_all_the_work(pruners: str) -> None:
    plain, masked = (build_model(f"{pruners}:{name}").eval() for name in ("plain", "mask_only"))
    found = compare_latency(plain, masked, torch.randn(1, 3, 64, 64), Setup())
    assert not (found.differs and found.ratio < 1)


def test_the_note_stands_beside_accuracy_too(pruners: str, make_imagenet: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "executor": "inline", "results": tmp_path / "results"}
    options |= {"data": make_imagenet(val=2, train=3), "batch_size": 4, "workers": 0}
    net = tmp_path / "net.py"
    net.write_text(
        "import timm\ndef net(num_classes=1000):\n"
        "    model = timm.create_model('test_vit', num_classes=num_classes)\n"
        "    model.nominal_gmacs = 0.001\n    return model\n"
    )
    run(f"{net}:net", ["imagenet:knn", "cost:macs"], **options)
    boards, _ = make_boards(Store(tmp_path / "results").load())
    assert [bool(board.rows[0].note) for board in boards] == [True, True]


@pytest.mark.parametrize(("claimed", "nominal"), [(0.96, False), (1.0, False), (1.5, False), (0.94, True), (0.0, True)])
def test_a_claim_counts_beyond_the_margin(claimed: float, nominal: bool) -> None:
    model = nn.Identity()
    assert describe_nominal(model, MacCount(10**9)) == ""
    model.nominal_gmacs = claimed  # type: ignore[assignment]
    assert bool(describe_nominal(model, MacCount(10**9))) == nominal


def test_another_image_size_is_not_held_against_a_claim(pruners: str) -> None:
    model = build_model(f"{pruners}:mask_only")
    assert "nominal" in macs(model, IMAGES, Setup()).details
    resized = Setup(preprocessing=Preprocessing(image_size=(64, 64), overridden=("image_size",)))
    assert "nominal" not in macs(model, IMAGES, resized).details


def test_a_models_card_claims_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert claimed_gmacs(build_model("vit_t16_cls")) == 1.26
    assert claimed_gmacs(build_model("vit_t16_cls+linear")) is None
    assert break_down("vit_t16_cls").nominal == ""
    less = replace(MODELS.get("vit_t16_cls"), card=ModelCard("", published={"gmacs": 0.6}))
    monkeypatch.setattr(MODELS, "get", lambda name: less)
    found = break_down("vit_t16_cls")
    assert found.nominal.startswith("nominal: 0.6 G MACs are claimed and 1.26 G are done")
    assert found.nominal in list(found.lines())
