"""`run_bench.py cost`: MACs by module, over real images, and against published figures."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from torch import Tensor, nn

from harness import cost_cli, reference
from harness.breakdown import break_down, find_images, spread_over_images
from harness.costs.formulas import FORMULAS
from harness.errors import DataError, ModelError, SetupError
from harness.preprocessing import resolve
from harness.record import Preprocessing, Setup

ROOT = Path(__file__).resolve().parents[1]
HEADER = "model,img,params_m,gmacs\n"
# resnet18 has 11.69 M parameters and 1.82 GMACs at 224 (timm's results-imagenet.csv and benchmark files).
RIGHT = "resnet18.a1_in1k,224,11.69,1.82\n"

MODELS = """
import torch
import typer
from torch import nn

class Twice(nn.Module):
    '''One linear layer by itself, and two in a list, which is never called.'''
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(192, 8, bias=False)
        self.blocks = nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)])
        self.preprocessing = {"input_size": (3, 8, 8)}

    def forward(self, images):
        tokens = self.stem(images.flatten(1))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

class Values(Twice):
    '''Cannot run on shapes alone.'''
    def forward(self, images):
        return super().forward(images) if float(images.sum()) == 0 else None

class Fixed(Twice):
    '''Cannot even be built on shapes alone.'''
    def __init__(self):
        super().__init__()
        self.scale = torch.ones(1).item()
"""

Cost = Callable[..., str]


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Return the command as a function that returns what it printed."""

    def run(**options: Any) -> str:
        out = io.StringIO()
        monkeypatch.setattr(cost_cli, "own_stdout", lambda: out)
        try:
            cost_cli.cost(**options)
        except typer.Exit as end:
            out.write(f"exit {end.exit_code}\n")
        return out.getvalue()

    return run


@pytest.fixture
def toys(tmp_path: Path) -> str:
    path = tmp_path / "toys.py"
    path.write_text(MODELS)
    return str(path)


@pytest.mark.parametrize("name", ["Twice", "Values", "Fixed"])
def test_breakdown_is_that_counted_by_hand(toys: str, name: str) -> None:
    found = break_down(f"{toys}:{name}")
    assert {m.path: (m.macs, m.parameters) for m in found.modules} == {
        "": (192 * 8 + 2 * 64, 192 * 8 + 2 * 64),
        "stem": (192 * 8, 192 * 8),
        "blocks": (128, 128),
        "blocks.0": (64, 64),
        "blocks.1": (64, 64),
    }
    assert found.image_size == (8, 8)
    assert found.modules[1].share == pytest.approx(100 * 1536 / 1664)
    assert found.second == found.count.total
    assert found.count.tensors.startswith("cpu" if name == "Values" else "meta")


def test_depth_bounds_the_modules(toys: str) -> None:
    assert [m.path for m in break_down(f"{toys}:Twice", depth=1).modules] == ["", "stem", "blocks"]
    assert [m.path for m in break_down(f"{toys}:Twice", depth=0).modules] == [""]


def test_an_image_size_reaches_models_that_refuse_it_in_timms_own_words() -> None:
    """Some constructors of timm say "argument(s): ['img_size']", and take images of any size."""
    found = break_down("timm:poolformer_s12", (64, 64), depth=0)
    assert found.count.total == pytest.approx(
        break_down("timm:poolformer_s12", depth=0).count.total * (64 / 224) ** 2, rel=0.02
    )


def test_an_uncounted_operator_makes_a_lower_bound(toys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FORMULAS, "aten::mm")
    lines = "\n".join(break_down(f"{toys}:Twice").lines())
    assert "MACs: at least" in lines
    assert "uncounted: no formula counts aten::mm (3 of" in lines


def test_table_json_and_csv_hold_the_same(toys: str, cost: Cost) -> None:
    table = cost(model=f"{toys}:Twice", by_module=True)
    assert "toys.py:Twice at 8x8: 0.002 M parameters" in table
    assert "blocks.1" in table
    assert "blocks" not in cost(model=f"{toys}:Twice")
    assert "blocks.1" not in cost(model=f"{toys}:Twice", depth=1)
    content = json.loads(cost(model=f"{toys}:Twice", by_module=True, json=True))
    assert (content["macs"], content["fvcore_macs"], content["uncounted"]) == (1664, 1664, {})
    lines = cost(model=f"{toys}:Twice", csv=True).splitlines()
    assert lines[0] == "module,type,macs,share_percent,parameters"
    assert [int(line.split(",")[2]) for line in lines[1:]] == [m["macs"] for m in content["modules"]]


def test_the_command_line_prints_a_table_and_mistakes_exit_with_2(toys: str) -> None:
    command = [sys.executable, str(ROOT / "run_bench.py"), "cost"]
    done = subprocess.run([*command, f"{toys}:Twice", "--by-module"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stem" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["cost", "sweep"])
def test_help_does_not_import_torch(command: str) -> None:
    program = "import sys; from harness.cli import app; app(standalone_mode=False); print('torch' in sys.modules)"
    words = [sys.executable, "-c", program, command, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_options_that_exclude_each_other_are_refused(cost: Cost, tmp_path: Path) -> None:
    for options in ({}, {"model": "vit_t16", "against": tmp_path}, {"model": "vit_t16", "json": True, "csv": True}):
        with pytest.raises(SetupError):
            cost(**options)


# --- against published figures ---------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    def make(rows: str, header: str = HEADER) -> Path:
        path = tmp_path / "table.csv"
        path.write_text(header + rows)
        return path

    return make


def test_a_right_row_agrees(cost: Cost, table: Callable[[str], Path]) -> None:
    printed = cost(against=table(RIGHT))
    assert printed == (
        "1 rows: 1 agree, 0 differ for a known reason, 0 disagree, 0 cannot be built by the installed timm.\n"
    )


@pytest.mark.parametrize("wrong", ["resnet18.a1_in1k,224,11.69,1.84\n", "resnet18.a1_in1k,224,11.72,1.82\n"])
def test_a_wrong_row_exits_with_1(wrong: str, cost: Cost, table: Callable[[str], Path]) -> None:
    printed = cost(against=table(RIGHT + wrong + "no_such_net,224,1.0,1.0\n"))
    assert "1 agree, 0 differ for a known reason, 1 disagree, 1 cannot be built" in printed
    assert "no reason is known" in printed
    assert "no model named 'no_such_net'" in printed
    assert printed.endswith("exit 1\n")


def test_what_differs_for_a_known_reason_is_no_failure(cost: Cost, table: Callable[[str], Path]) -> None:
    printed = cost(against=table("repvgg_a0.rvgg_in1k,224,9.11,1.36\n"))
    assert reference.REPARAMETERISED in printed
    assert "1 differ for a known reason" in printed
    assert "exit" not in printed


def test_a_known_reason_excuses_no_other_difference(cost: Cost, table: Callable[[str], Path]) -> None:
    printed = cost(against=table("repvgg_a0.rvgg_in1k,224,9.11,1.30\n"))
    assert "1 disagree" in printed
    assert f"not because {reference.REPARAMETERISED}" in printed
    assert printed.endswith("exit 1\n")


def test_nothing_compared_is_no_success(cost: Cost, table: Callable[[str], Path]) -> None:
    assert cost(against=table("no_such_net,224,1.0,1.0\n")).endswith("exit 1\n")
    with pytest.raises(SetupError, match="None of the 1 rows"):
        cost(against=table(RIGHT), only=["vit*"])


def test_rows_are_chosen(cost: Cost, table: Callable[[str], Path]) -> None:
    others = "no_such_net,224,99.0,1.0\n" + "".join(f"absent_{number},224,1.0,1.0\n" for number in range(6))
    assert cost(against=table(RIGHT + others), only=["resnet*"]).startswith("1 rows: 1 agree")
    rows = json.loads(cost(against=table(RIGHT + others), limit=3, max_parameters=50.0, json=True))
    assert [row["model"] for row in rows] == ["resnet18.a1_in1k", "absent_1", "absent_3"]


@pytest.mark.parametrize(("rows", "header"), [("a,b,c,d\n", HEADER), ("resnet18,224\n", "model,img\n")])
def test_what_is_no_table_is_refused(rows: str, header: str, table: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv is no table of published costs"):
        reference.read_table(table(rows, header))
    with pytest.raises(DataError, match="cannot be read"):
        reference.read_table(tmp_path / "absent.csv")


# --- work that depends on the image ----------------------------------------------------------------------------------


class Pruner(nn.Module):
    """Drops, or only masks, the tokens that are darker than grey."""

    def __init__(self, mask_only: bool) -> None:
        super().__init__()
        self.mask_only = mask_only
        self.layer = nn.Linear(3, 5, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2)  # (B, N, 3)
        kept = tokens.mean(-1) > 0
        return self.layer(tokens * kept[..., None]) if self.mask_only else self.layer(tokens[kept])


@pytest.fixture
def shaded(tmp_path: Path) -> Path:
    """Images of 32x32 pixels, of which 8, 16 and 32 rows are white."""
    for rows in (8, 16, 32):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[:rows] = 255
        Image.fromarray(pixels).save(tmp_path / f"{rows:02}.png")
    return tmp_path


def setup_of(model: nn.Module) -> Setup:
    return Setup(preprocessing=resolve(Preprocessing(image_size=(32, 32), crop_pct=1.0), model))


def test_real_images_show_what_pruning_saves(shaded: Path) -> None:
    spread = spread_over_images(Pruner(False), setup_of(Pruner(False)), find_images(shaded), "pruner")
    assert [round(1e9 * gmacs) for gmacs in spread.gmacs.values()] == [rows * 32 * 15 for rows in (8, 16, 32)]
    summary = {name: round(1e9 * value) for name, value in spread.summary().items()}
    assert summary == {"min": 3840, "p10": 4608, "median": 7680, "p90": 13824, "max": 15360}
    assert not spread.fixed


def test_a_mask_saves_nothing(shaded: Path) -> None:
    spread = spread_over_images(Pruner(True), setup_of(Pruner(True)), find_images(shaded), "mask")
    assert {round(1e9 * gmacs) for gmacs in spread.gmacs.values()} == {32 * 32 * 15}
    assert spread.fixed


def test_the_command_prints_the_distribution(shaded: Path, cost: Cost) -> None:
    printed = cost(model="timm:test_vit", images=shaded)
    assert "GMACs of 3 images" in printed
    assert "The work does not depend on the image" in printed
    content = json.loads(cost(model="timm:test_vit", images=shaded, json=True, limit=2))
    assert list(content["gmacs"]) == ["08.png", "16.png"]
    assert content["min"] == content["max"]


def test_what_cannot_be_counted_on_images_says_so(
    shaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images below"):
        find_images(tmp_path / "empty")
    monkeypatch.delitem(FORMULAS, "aten::mm")
    with pytest.raises(ModelError, match="no formula counts aten::mm"):
        spread_over_images(Pruner(False), setup_of(Pruner(False)), find_images(shaded), "pruner")
