"""Training from scratch gives every model the same budget and the same batches, and reports seeds with an interval."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from msgspec.structs import replace

from harness import run
from harness.errors import DataError, SetupError
from harness.leaderboard import make_boards
from harness.metric import Evaluation, Measurement, Metric
from harness.record import Record, Setup, Weights
from harness.statistics import proportion_interval
from harness.store import Store
from harness.task import build_task
from harness.task_id import canonical
from tasks.data.endless import Endless
from tasks.data.mini import CLASSES, GENERATOR, draw, generate
from tasks.data.train_loader import Shuffled, TrainingBatches
from tasks.imagenet import ImageNet
from tasks.protocols.scratch import Scratch, summarize

ROOT = Path(__file__).resolve().parents[1]
TASK = "imagenet:scratch,steps=24,batch=8,size=32,seeds=2,lr=0.02"

# Two architectures that write down the hash of each batch that they are trained with.
SPIES = """
import hashlib, os
import torch
from torch import nn

class Spy(nn.Module):
    def __init__(self, body, name):
        super().__init__()
        self.body, self.name = body, name
        if name == "conv":  # the other declares nothing
            self.preprocessing = {"input_size": (3, 48, 48), "mean": (0.1, 0.1, 0.1), "crop_pct": 0.5}

    def forward(self, images):
        if self.training:
            with open(os.path.join(os.path.dirname(__file__), self.name), "a") as file:
                file.write(hashlib.sha256(images.numpy().tobytes()).hexdigest() + "\\n")
        return self.body(images)

def conv(num_classes=1000):
    torch.randn(17)  # another number of draws before the weights
    layers = nn.Conv2d(3, 8, 7, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return Spy(nn.Sequential(*layers, nn.Linear(8, num_classes)), "conv")

class Fragile(nn.Linear):
    def forward(self, values):
        return super().forward(values) * (float("nan") if self.weight.abs().max() > 0.45 else 1)

def fragile(num_classes=1000, image_size=48):
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), Fragile(3 * (image_size // 8) ** 2, num_classes))

def mlp(num_classes=1000, image_size=48):
    return Spy(nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * (image_size // 8) ** 2, num_classes)), "mlp")
"""


def go(model: str, data: Path, results: Path, task: str = TASK, **options: Any) -> Record:
    (record,) = run(model, task, data=data, results=results, **{"executor": "inline", "workers": 0, **options})
    return record


@pytest.fixture
def spies(tmp_path: Path) -> str:
    path = tmp_path / "spies.py"
    path.write_text(SPIES)
    return str(path)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini")
    generate(root, train_per_class=2, val_per_class=1)
    return root


def test_two_architectures_see_the_same_batches_in_the_same_order(coloured: Path, spies: str, tmp_path: Path) -> None:
    records = [go(f"{spies}:{name}", coloured, tmp_path / "r") for name in ("conv", "mlp")]
    assert [record.error for record in records] == [None, None]
    conv, mlp = ((tmp_path / name).read_text().splitlines() for name in ("conv", "mlp"))
    assert conv == mlp
    assert len(set(conv)) == len(conv) == 2 * 24
    assert records[0].setup.preprocessing.fingerprint == records[1].setup.preprocessing.fingerprint
    assert records[0].setup.preprocessing.image_size == (32, 32)
    assert records[0].setup.preprocessing.crop_pct == 1.0


def test_it_learns_and_ranks_with_random_weights(coloured: Path, spies: str, tmp_path: Path) -> None:
    records = [go(f"{spies}:{name}", coloured, tmp_path / "r") for name in ("conv", "mlp")]
    for record in records:
        assert record.values()["top1"] >= 75
        assert len(record.measurements[0].samples) == 2
        assert record.values()["top1"] == pytest.approx(np.mean(record.measurements[0].samples))
        assert record.details["seeds"] == [0, 1]
        first, second = record.details["trainings"]
        assert first["training_loss"][-1] < first["training_loss"][0] != second["training_loss"][0]
    ((board,), left_out) = make_boards(records)
    assert len(board.rows) == 2
    assert left_out == []


def test_a_seed_gives_the_same_wherever_it_stands(coloured: Path, spies: str, tmp_path: Path) -> None:
    both = go(f"{spies}:conv", coloured, tmp_path / "r")
    second = go(f"{spies}:conv", coloured, tmp_path / "r", TASK.replace("seeds=2", "seeds=1"), seed=1)
    assert second.error is None
    assert both.measurements[0].samples[1] == second.values()["top1"]
    losses = [record.details["trainings"][-1]["training_loss"] for record in (both, second)]
    assert losses[0] == losses[1]
    assert second.measurements[0].interval is None


def test_workers_processes_and_reruns_change_nothing(coloured: Path, spies: str, tmp_path: Path) -> None:
    def essence(record: Record) -> Any:
        losses = [training["training_loss"] for training in record.details["trainings"]]
        return record.measurements, record.outcomes_sha256, losses

    first = essence(go(f"{spies}:conv", coloured, tmp_path / "0"))
    assert essence(go(f"{spies}:conv", coloured, tmp_path / "0", rerun=True)) == first
    assert essence(go(f"{spies}:conv", coloured, tmp_path / "1", workers=2, executor="process", threads=1)) == first


def test_finished_seeds_are_not_trained_again(
    coloured: Path, spies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(f"{spies}:conv", coloured, tmp_path / "whole")
    (tmp_path / "conv").unlink()

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.protocols.scratch.rebuilt", interrupt)  # asked for when the second seed begins
        with pytest.raises(KeyboardInterrupt):
            go(f"{spies}:conv", coloured, tmp_path / "r")
    assert [path.suffixes[-2:] for path in (tmp_path / "r" / "unfinished").iterdir()] == [[".seed0", ".pt"]]
    resumed = go(f"{spies}:conv", coloured, tmp_path / "r")
    assert resumed.measurements == whole.measurements
    assert resumed.outcomes_sha256 == whole.outcomes_sha256
    assert len((tmp_path / "conv").read_text().splitlines()) == 24 + 24
    assert not (tmp_path / "r" / "unfinished").exists()


def test_through_the_command_line(coloured: Path, nets: str, tmp_path: Path) -> None:
    command = [sys.executable, "run_bench.py", "run", "--model", f"{nets}:tiny", "--task", TASK, "--workers", "0"]
    command += ["--data", str(coloured), "--results", str(tmp_path / "r"), "--json", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (record,) = json.loads(done.stdout)
    assert record["measurements"][0]["metric"]["name"] == "top1"
    assert record["measurements"][0]["value"] >= 75


def test_a_carrier_is_trained_with_any_mixer(mini: Path, tmp_path: Path) -> None:
    task = "imagenet:scratch,steps=2,batch=4,seeds=1,size=64"
    records = run(["vit_t16+window", "pyramid_t+pooling"], task, data=mini, results=tmp_path, workers=0)
    assert [record.error for record in records] == [None, None]


# What it refuses


@pytest.mark.parametrize("weights", ["own", "pretrained"])
def test_weights_are_refused_before_anything_runs(coloured: Path, nets: str, tmp_path: Path, weights: str) -> None:
    with pytest.raises(SetupError, match=f"no use for --weights {weights}.*fine_tune"):
        go(f"{nets}:tiny", coloured, tmp_path / "r", weights=weights)
    with pytest.raises(SetupError, match=r"--weights w\.pth"):
        build_task(TASK, coloured).check(Setup(weights=Weights(source="file", file="w.pth")))
    assert not (tmp_path / "r").exists()


def test_another_image_size_is_refused(coloured: Path, nets: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"32 x 32 pixels, not \(64, 64\): give the size in the task id"):
        go(f"{nets}:tiny", coloured, tmp_path / "r", image_size=64)
    assert go(f"{nets}:tiny", coloured, tmp_path / "r", image_size=32).error is None


@pytest.mark.parametrize("option", ["steps=0", "seeds=0", "batch=-1", "lr=0"])
def test_values_that_cannot_be_used(coloured: Path, option: str) -> None:
    with pytest.raises(SetupError, match="expected"):
        build_task(f"imagenet:scratch,{option}", coloured)


def test_the_task_id_holds_the_budget() -> None:
    assert canonical("imagenet:scratch,steps=40,fresh=true,tune=false") == "imagenet:scratch,fresh=true,steps=40"
    assert canonical(canonical("imagenet:scratch,fresh=true,tune=1")) == "imagenet:scratch,fresh=true,tune=true"


def test_a_named_budget_gives_what_is_not_given() -> None:
    mini = Scratch(budget="mini", size=112, seeds=5)
    assert (mini.size, mini.seeds) == (112, 5)
    assert (mini.recipe.steps, mini.recipe.batch, mini.recipe.lr, mini.recipe.warmup) == (120, 16, 2e-3, 12)
    assert Scratch().recipe.steps == 300
    assert Scratch(budget="mini", steps=7).recipe.steps == 7


# What a record proves


def test_a_record_tells_what_its_trainings_were_fed(coloured: Path, spies: str, tmp_path: Path) -> None:
    conv, mlp, later = (
        go(f"{spies}:{name}", coloured, tmp_path / "r", seed=seed)
        for name, seed in (("conv", 0), ("mlp", 0), ("mlp", 1))
    )
    assert conv.details["equal"] == mlp.details["equal"]
    orders = [[training["order"] for training in record.details["trainings"]] for record in (conv, mlp, later)]
    assert orders[0] == orders[1]
    assert orders[0][1] == orders[2][0]  # seed 1, wherever it stands
    assert len({*orders[0], *orders[2]}) == 3
    boards, _ = make_boards([conv, mlp, later])
    assert [len(board.rows) for board in boards] in ([1, 2], [2, 1])
    assert dict(boards[0].conditions)["seeds"] == "2"


def test_the_interval_over_images_stands_beside_that_over_seeds(coloured: Path, spies: str, tmp_path: Path) -> None:
    record = go(f"{spies}:conv", coloured, tmp_path / "r")
    trainings, top1 = record.details["trainings"], record.measurements[0]
    assert tuple(training["top1"] for training in trainings) == top1.samples
    assert record.data is not None
    for training in trainings:
        right = round(training["top1"] * record.data.size / 100)
        low, high = proportion_interval(right, record.data.size)
        assert training["interval_over_images"] == pytest.approx([100 * low, 100 * high])


# The rate that is chosen


def test_the_rate_is_chosen_on_held_out_training_images(coloured: Path, spies: str, tmp_path: Path) -> None:
    task = "imagenet:scratch,steps=24,batch=8,size=32,seeds=2,tune=true,lr=1e-3"
    record = go(f"{spies}:conv", coloured, tmp_path / "r", task)
    assert record.error is None
    tuning = record.details["tuning"]
    assert tuning["held_out"] == 7
    assert list(tuning["rates"]) == ["0.000333", "0.001", "0.003"]
    best = max(tuning["rates"].values(), key=lambda found: (found["accuracy"], -found["loss"]))
    assert tuning["rates"][f"{tuning['chosen']:.3g}"] == best
    assert record.details["recipe"]["lr"] == tuning["chosen"] == 0.003  # 24 steps are few
    assert len((tmp_path / "conv").read_text().splitlines()) == 5 * 24
    assert not (tmp_path / "r" / "unfinished").exists()


def test_a_rate_that_diverges_is_not_chosen(coloured: Path, spies: str, tmp_path: Path) -> None:
    task = "imagenet:scratch,steps=8,batch=8,size=32,seeds=1,tune=true,lr=0.05"
    record = go(f"{spies}:fragile", coloured, tmp_path / "r", task)
    assert record.error is None
    rates = record.details["tuning"]["rates"]
    assert "The training loss is nan at step" in rates["0.15"]["error"]
    assert record.details["tuning"]["chosen"] < 0.15
    all_fail = go(f"{spies}:fragile", coloured, tmp_path / "r", task.replace("0.05", "50"))
    assert "at learning rate 48" in (all_fail.error or "")


# Mean and interval


def evaluation(*values: float | None) -> Evaluation:
    return Evaluation(
        tuple(
            Measurement(Metric(f"m{place}", "%", True), value, reason="" if value is not None else "none")
            for place, value in enumerate(values)
        )
    )


def test_the_interval_is_student_s() -> None:
    values = [71.0, 74.5, 69.25, 73.0]
    found = {m.metric.name: m for m in summarize([evaluation(value, 1.0) for value in values])}
    assert found["m0"].value == np.mean(values)
    assert found["m0"].samples == tuple(values)
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert found["m0"].interval == pytest.approx((low, high))
    assert found["m1"].interval == (1.0, 1.0)


def test_one_seed_has_no_interval_and_an_empty_cell_stays_empty() -> None:
    found = {m.metric.name: m for m in summarize([evaluation(5.0, None)])}
    assert (list(found), found["m0"].interval) == (["m0", "m1"], None)
    assert (found["m1"].value, found["m1"].reason) == (None, "none")


# Images without end


def test_drawn_images_are_those_of_no_split(mini: Path) -> None:
    source = Endless.of(mini / "imagenet", 0)
    found = [source(position) for position in range(12)]
    assert found == [source(position) for position in range(12)]
    assert len({content for content, *_ in found}) == 12
    other = Endless.of(mini / "imagenet", 1)
    assert not {other(position)[0] for position in range(12)} & {content for content, *_ in found}
    labels = [label for _, label, _ in found]
    assert len(set(labels)) > 3
    assert max(labels) < len(CLASSES)
    pictures = [draw(labels[0], split, index) for split in (0, 1) for index in range(2)]
    assert all(picture.tobytes() != draw(labels[0], 2, 0).tobytes() for picture in pictures)


def test_each_class_is_drawn_as_often() -> None:
    numbers = [np.random.default_rng([0, 2, position]).integers(len(CLASSES)) for position in range(6000)]
    assert scipy.stats.chisquare(np.bincount(numbers)).pvalue > 0.001


def test_training_without_end(mini: Path, spies: str, tmp_path: Path) -> None:
    task = "imagenet:scratch,steps=3,batch=4,size=32,seeds=1,fresh=true"
    record = go(f"{spies}:conv", mini, tmp_path / "r", task)
    assert record.error is None
    assert record.details["images"] == "drawn without end"
    assert len(set((tmp_path / "conv").read_text().splitlines())) == 3
    native = go(f"{spies}:conv", mini, tmp_path / "r", "imagenet")
    assert record.data == native.data  # the training split is not part of it


def test_files_are_not_drawn_without_end(coloured: Path, nets: str, tmp_path: Path) -> None:
    record = go(f"{nets}:tiny", coloured, tmp_path / "r", "imagenet:scratch,fresh=true,size=32")
    assert record.error == "imagenet cannot draw new images: leave out fresh=true."


def test_pictures_of_another_generator_are_not_mixed(mini: Path, tmp_path: Path) -> None:
    card = json.loads((mini / "imagenet" / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**card, "generator": GENERATOR + 1}))
    with pytest.raises(DataError, match="another version of the generator"):
        Endless.of(tmp_path, 0)


# Data sets whose labels crops would break


def test_a_data_set_says_which_augmentation_its_labels_bear(
    coloured: Path, spies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageNet, "augmentation", "none")
    record = go(f"{spies}:conv", coloured, tmp_path / "r", TASK.replace("seeds=2", "seeds=1"))
    assert record.details["recipe"]["augmentation"]["geometry"] == "none"
    task = build_task(TASK, coloured)
    assert isinstance(task, ImageNet)
    setup = Setup(preprocessing=record.setup.preprocessing, batch_size=64)
    plain = next(iter(task.split_batches("train", setup)))
    by_name = dict(zip(plain.items, plain.images, strict=True))
    from tasks.data.augmentation import Augmentation, train_transform

    cut = train_transform(Augmentation(geometry="none"), setup.preprocessing)
    source = Shuffled(task.split("train"), 0)
    for batch in TrainingBatches(source, cut, setup, seed=0, batch=8, steps=4):
        for name, image in zip(batch.items, batch.images, strict=True):
            assert torch.equal(image, by_name[name])


def test_what_a_task_asks_of_its_images_goes_first(coloured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageNet, "preprocessing", {"crop_mode": "squash"})
    asked = build_task(TASK, coloured).preprocessing
    assert asked["crop_mode"] == "squash"
    assert asked["image_size"] == (32, 32)
    assert build_task("imagenet", coloured).preprocessing == {"crop_mode": "squash"}


def test_records_load_again(coloured: Path, nets: str, tmp_path: Path) -> None:
    record = go(f"{nets}:tiny", coloured, tmp_path / "r")
    assert Store(tmp_path / "r").load() == [record]
    assert replace(record, seconds=0.0).values() == record.values()
