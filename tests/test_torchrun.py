"""The command line under `torchrun`, with two ranks on the CPU: real processes, real data, real interruptions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying import DIES
from PIL import Image

from harness.record import Record
from harness.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TASK = "imagenet:fine_tune,epochs=8,batch=8,lr=0.02,randaugment=0,erasing=0"
WRAPPER = (
    DIES
    + """
from harness.cli import main
main()
"""
)


def go(
    ranks: bool, model: str, task: str, data: Path, results: Path, script: str = "run_bench.py", **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [*(TORCHRUN if ranks else [sys.executable]), script, "run", "--model", model, "--task", task]
    command += ["--data", str(data), "--results", str(results), "--workers", "0", "--device", "cpu", "--threads", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, **options)


def record_of(results: Path) -> Record:
    (record,) = Store(results).load()
    assert record.error is None
    return record


def essence(results: Path) -> list[Any]:
    """What must be equal of two runs with as many ranks."""
    record = record_of(results)
    details = {name: value for name, value in record.details.items() if name != "seconds_per_step"}
    return [record.measurements, record.outcomes_sha256, json.dumps(details, default=str)]


def assert_alike(two: Path, one: Path) -> None:
    """The figures of two ranks are those of one process, but for the order in which sums were made."""
    of_two, of_one = record_of(two), record_of(one)
    assert of_two.key == of_one.key
    assert (of_two.details["ranks"], of_one.details["ranks"]) == (2, 1)
    assert of_two.details["training_loss"] == pytest.approx(of_one.details["training_loss"], abs=1e-4)
    values = of_one.values()
    assert {name: value for name, value in of_two.values().items() if value is not None} == pytest.approx(
        {name: value for name, value in values.items() if value is not None}, abs=1e-4
    )
    assert any(value is not None for value in values.values())


def test_fine_tuning_equals_one_process_and_itself(coloured: Path, nets: str, tmp_path: Path) -> None:
    two = go(True, f"{nets}:tiny", TASK, coloured, tmp_path / "2")
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("[1/1]") == 2  # a line before and a line after, of one rank
    go(False, f"{nets}:tiny", TASK, coloured, tmp_path / "1")
    assert_alike(tmp_path / "2", tmp_path / "1")
    go(True, f"{nets}:tiny", TASK, coloured, tmp_path / "again")
    assert essence(tmp_path / "again") == essence(tmp_path / "2")
    assert "are skipped" in go(True, f"{nets}:tiny", TASK, coloured, tmp_path / "2").stderr


def test_training_from_scratch_with_a_chosen_rate(coloured: Path, nets: str, tmp_path: Path) -> None:
    task = "imagenet:scratch,steps=8,batch=8,size=32,seeds=2,tune=true"
    for ranks, name in ((True, "2"), (False, "1")):
        done = go(ranks, f"{nets}:tiny", task, coloured, tmp_path / name)
        assert done.returncode == 0, done.stderr
    two, one = record_of(tmp_path / "2"), record_of(tmp_path / "1")
    assert two.details["tuning"]["chosen"] == one.details["tuning"]["chosen"]
    assert two.values() == pytest.approx(one.values(), abs=1e-4)
    assert [found["ranks"] for found in two.details["trainings"]] == [2, 2]


@pytest.mark.parametrize("task", ["coco:retinanet", "coco:mask_rcnn", "ade20k:upernet"])
def test_heads_train_together(task: str, scenes: Path, tmp_path: Path) -> None:
    # Two images a rank: UPerNet normalises a pooled pixel, which one image alone cannot be.
    task += ",preset=mini,steps=4,batch=4"
    done = go(True, "timm:test_convnext", task, scenes, tmp_path / "2")
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path / "2")
    assert record.details["ranks"] == 2
    assert np.isfinite(record.details["training_loss"]).all()


def of_one_size(scenes: Path, root: Path, side: int = 192) -> None:
    """Make all training images of COCO equally large by black margins, so that no detector pads them."""
    shutil.copytree(scenes / "coco", root / "coco")
    for path in (root / "coco" / "train2017").iterdir():
        whole = Image.new("RGB", (side, side))
        whole.paste(Image.open(path))
        whole.save(path)
    file = root / "coco" / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"] = [{**image, "height": side, "width": side} for image in content["images"]]
    content["annotations"] = [one for one in content["annotations"] if isinstance(one["segmentation"], list)]
    file.write_text(json.dumps(content))


def test_a_head_in_which_images_do_not_meet_equals_one_process(scenes: Path, tmp_path: Path) -> None:
    """RetinaNet draws nothing and averages over images; the other heads do not, or normalise over a batch."""
    of_one_size(scenes, tmp_path)
    task = "coco:retinanet,preset=mini,steps=4,batch=2,lr=1e-4"
    for ranks, name in ((True, "2"), (False, "1")):
        done = go(ranks, "timm:test_convnext", task, tmp_path, tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "2", tmp_path / "1")


@pytest.mark.parametrize(("number", "target"), [(signal.SIGKILL, "os.getpid()"), (signal.SIGINT, "os.getppid()")])
def test_an_interrupted_training_resumes_to_the_same_bits(
    coloured: Path, nets: str, tmp_path: Path, number: signal.Signals, target: str
) -> None:
    script = tmp_path / "wrapper.py"
    script.write_text(WRAPPER.format(root=str(ROOT), step=9, target=target, number=int(number)))
    results = tmp_path / "r"
    ended = go(True, f"{nets}:normed", TASK, coloured, results, str(script))
    assert ended.returncode != 0
    assert len(list(results.glob("unfinished/*.pt"))) == 1
    assert not list(results.glob("records/*"))
    assert ended.stderr.count("Interrupted. What was measured is saved") == (number == signal.SIGINT)
    assert go(True, f"{nets}:normed", TASK, coloured, results).returncode == 0
    go(True, f"{nets}:normed", TASK, coloured, tmp_path / "whole")
    assert essence(results) == essence(tmp_path / "whole")
    assert not (results / "unfinished").exists()


def test_a_rank_that_fails_alone_ends_all(coloured: Path, nets: str, tmp_path: Path) -> None:
    broken = sorted((coloured / "imagenet" / "train").rglob("*.JPEG"))[3]
    broken.write_bytes(os.urandom(400))
    started = time.monotonic()
    done = go(True, f"{nets}:tiny", TASK, coloured, tmp_path / "r")
    assert done.returncode != 0
    assert f"{broken.name} is not a readable image" in done.stderr
    assert 'File "' not in done.stderr.partition(broken.name)[0]  # the error comes before what torchrun says of it
    assert time.monotonic() - started < 500


def test_an_error_of_all_ranks_is_a_record(coloured: Path, nets: str, tmp_path: Path) -> None:
    done = go(True, f"{nets}:tiny", TASK.replace("0.02", "1e38"), coloured, tmp_path / "r")
    assert done.returncode != 0
    (record,) = Store(tmp_path / "r").load()
    assert (record.error or "").startswith("The training loss is ")
    assert done.stderr.count("The training loss is ") == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("cost", "Error: cost has no training that ranks could share: run it without torchrun."),
        (TASK.replace("batch=8", "batch=7"), "Error: batch is 7, which 2 ranks cannot share equally: "),
    ],
)
def test_what_ranks_cannot_do_is_one_line(task: str, message: str, coloured: Path, nets: str, tmp_path: Path) -> None:
    done = go(True, f"{nets}:tiny", task, coloured, tmp_path / "r")
    assert done.returncode != 0
    assert done.stderr.count(message) == 1
    assert not (tmp_path / "r").exists()
