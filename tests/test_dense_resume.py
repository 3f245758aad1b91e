"""A training of a head that was killed goes on to the same record, bit for bit, in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dying import DIES, ITSELF

from harness import run
from harness.checkpoint import Checkpoint
from harness.record import Record, digest

ROOT = Path(__file__).resolve().parents[1]
MODEL = "timm:test_resnet"  # its batch normalisation keeps statistics
KILLED = (
    DIES
    + """
from harness import run
run({model!r}, {task!r}, data={data!r}, results={results!r}, executor="inline", workers=0, threads=1, batch_size=2)
"""
)


def go(task: str, data: Path, results: Path) -> Record:
    (record,) = run(MODEL, task, data=data, results=results, executor="inline", workers=0, threads=1, batch_size=2)
    assert record.error is None
    return record


def essence(record: Record) -> str:
    """What must be equal of two records: all but times and places."""
    details = {name: value for name, value in record.details.items() if name != "seconds_per_step"}
    return digest(record.measurements, record.outcomes_sha256, json.dumps(details, default=str))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("task", ["coco:mask_rcnn", "coco:retinanet", "ade20k:upernet", "ade20k:linear,frozen=false"])
def test_a_killed_training_of_a_head_ends_in_the_same_record(
    task: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, _, more = task.partition(",")
    task = ",".join(filter(None, [head, "preset=mini,steps=4,batch=2", more]))
    whole, results = go(task, scenes, tmp_path / "whole"), tmp_path / "r"
    script = KILLED.format(
        root=str(ROOT), step=2, model=MODEL, task=task, data=str(scenes), results=str(results), **ITSELF
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -9
    assert len(list(results.glob("unfinished/*.pt"))) == 1
    assert not list(results.glob("records/*"))
    read, steps = Checkpoint.read, []

    def noted(self: Checkpoint) -> object:
        found = read(self)
        steps.append(found["step"] if found else 0)
        return found

    monkeypatch.setattr(Checkpoint, "read", noted)
    assert essence(go(task, scenes, results)) == essence(whole)
    assert steps == [2]  # it did go on, and did not begin anew
    assert not (results / "unfinished").exists()
