"""mmsegmentation's configurations by name and hash, and models that segment by themselves; without mmsegmentation."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import harness
from harness.errors import MissingPackage, ModelError, SetupError, UnknownName
from harness.mmseg_config import config_sha256
from harness.models import build_model, public_id, source_sha256
from harness.record import Preprocessing, Setup
from harness.submission.read import read
from harness.task import build_task

SEGMENTERS = """
import numpy as np
import torch
from torch import nn

class Right(nn.Module):
    "Sees everything as class 2, in pixels of its own."
    segmentation = {"test": {"mode": "whole"}}

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def segment(self, pictures):
        assert not torch.is_grad_enabled()
        return [np.full(picture.size[::-1], 2) for picture in pictures]

class Narrow(Right):
    def segment(self, pictures):
        return [torch.zeros(19, 4, 4) for _ in pictures]
"""


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """Return a configuration with bases in both of mmengine's styles."""
    folder = tmp_path / "a+b" / "mine"
    (folder / "inner").mkdir(parents=True)
    (folder.parent / "base.py").write_text("x = 1")
    (folder / "inner" / "model.py").write_text("_base_ = '../../base.py'")
    (folder / "new.py").write_text("y = 2")
    path = folder / "net.py"
    path.write_text(
        "_base_ = ['../base.py', './inner/model.py']\nwith read_base():\n    from .new import *\nraise SystemExit\n"
    )
    return path


def test_the_hash_covers_the_bases_and_runs_nothing(configs: Path) -> None:
    seen = {config_sha256(str(configs))}
    for name in ("net.py", "new.py", "inner/model.py", "../base.py"):
        file = configs.parent / name
        file.write_text(file.read_text() + "\nz = 3\n")
        seen.add(config_sha256(str(configs)))
    assert len(seen) == 5
    assert source_sha256(f"mmseg:{configs}") in seen


def test_the_hash_is_the_same_in_another_folder(configs: Path, tmp_path: Path) -> None:
    before = config_sha256(str(configs))
    (tmp_path / "a+b").rename(tmp_path / "moved")
    assert config_sha256(str(tmp_path / "moved" / "mine" / "net.py")) == before


def test_a_base_that_is_missing_is_named(configs: Path) -> None:
    (configs.parent / "inner" / "model.py").unlink()
    with pytest.raises(UnknownName, match=r"'net.py' is based on './inner/model.py', which is not there"):
        config_sha256(str(configs))


def test_a_configuration_that_is_no_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("model = (")
    with pytest.raises(ModelError, match=r"'net.py' cannot be read \(SyntaxError"):
        config_sha256(str(tmp_path / "net.py"))


def test_records_show_no_folder(configs: Path) -> None:
    assert public_id(f"mmseg:{configs}") == "mmseg:net.py"
    assert public_id("mmseg:net.py") == "mmseg:net.py"


def test_an_unknown_configuration_is_named_with_what_was_expected() -> None:
    with pytest.raises(UnknownName, match=r"no mmsegmentation configuration 'nowhere/net.py'.*path/to/config.py"):
        build_model("mmseg:nowhere/net.py")


@pytest.mark.skipif(importlib.util.find_spec("mmseg") is not None, reason="mmsegmentation is installed")
def test_without_mmsegmentation_the_message_says_what_to_install(configs: Path) -> None:
    with pytest.raises(MissingPackage, match="mmsegmentation with a compiled mmcv"):
        build_model(f"mmseg:{configs}")


def test_submissions_cannot_bring_a_configuration(tmp_path: Path) -> None:
    """It is code, and a model id is not asked for --trust-code."""
    (tmp_path / "net.py").write_text("raise SystemExit")
    torch.save({"a": torch.zeros(1)}, tmp_path / "net.pth")
    (tmp_path / "submission.toml").write_text(
        '[submission]\nname = "x"\nkind = "checkpoint"\nauthors = ["a"]\ntasks = ["ade20k"]\n'
        '[model]\nentry = "mmseg:net.py"\nweights = "net.pth"\n'
    )
    submission, faults = read(tmp_path)
    assert submission is None
    assert any("'mmseg:net.py' is no entry" in fault.message for fault in faults)


# Models that segment by themselves


@pytest.fixture
def segmenters(tmp_path: Path) -> str:
    path = tmp_path / "segmenters.py"
    path.write_text(SEGMENTERS)
    return str(path)


def evaluated(model: str, root: Path, results: Path, **options: Any) -> Any:
    (record,) = harness.run(
        [model], ["ade20k"], data=root, results=results, weights="own", device="cpu", executor="inline", **options
    )
    return record


def test_a_model_that_segments_needs_no_head(segmenters: str, scenes: Path, tmp_path: Path) -> None:
    record = evaluated(f"{segmenters}:Right", scenes, tmp_path / "results")
    task: Any = build_task("ade20k", scenes)
    truth = np.concatenate([task.annotated.read(name).ravel() for name in task.annotated.names])
    assert record.error is None
    assert record.values()["aacc"] == pytest.approx((truth == 3).sum() / (truth != 0).sum(), abs=1e-15)
    assert record.details["test"] == {"mode": "whole"}
    assert record.details["protocol"] == "the model's own segmentation"


def test_one_of_other_classes_is_refused(segmenters: str, scenes: Path, tmp_path: Path) -> None:
    record = evaluated(f"{segmenters}:Narrow", scenes, tmp_path / "results")
    assert "logits of 19 classes; expected ADE20K's 150" in record.error


def test_a_preprocessing_that_it_would_not_follow_is_refused(scenes: Path) -> None:
    model: Any = torch.nn.Identity()
    model.segment = lambda pictures: pictures
    setup = Setup(preprocessing=Preprocessing(overridden=("image_size", "mean")))
    with pytest.raises(SetupError, match="does its own preprocessing, which --image-size, --mean cannot change"):
        build_task("ade20k", scenes).evaluate(model, setup)
