"""Real photographs and real weights give the known numbers, and image for image what timm's own pipeline gives."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import nn

from harness.record import Setup, Weights
from harness.runner import Job, identify, run_request
from harness.task import build_task
from tasks.imagenet import class_ids

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="the small real data, shared/data, is not beside this checkout"),
]

# A user's own file of five lines: the network, and how it wants its images.
SQUEEZENET = """from torchvision.models import squeezenet1_1
def squeezenet():
    net = squeezenet1_1(weights=None)
    net.preprocessing = dict(input_size=(3, 224, 224), crop_pct=0.875, interpolation="bilinear")
    return net
"""
NETS: dict[str, dict[str, Any]] = {
    "vit": {"weights": "vit_tiny_patch16_224.fp16.safetensors", "top1": 402, "top5": 474},
    "squeezenet": {"weights": "squeezenet1_1.fp16.safetensors", "top1": 298, "top5": 408},
}
Ranks = dict[str, tuple[int, ...]]


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network with its weights and timm's configuration of its input, without any of the harness."""
    weights = load_file(DATA / "weights" / NETS[name]["weights"])
    net: nn.Module
    if name == "vit":
        net = timm.create_model("vit_tiny_patch16_224")
        config = resolve_data_config({}, model=net)
    else:
        from torchvision.models import squeezenet1_1

        net = squeezenet1_1(weights=None)
        asked = {"crop_pct": 0.875, "interpolation": "bilinear"}  # ImageNet's mean and std are timm's default
        config = resolve_data_config(asked, pretrained_cfg={}, use_test_size=True)
    net.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    return net.eval(), config


def timms(name: str, limit: int) -> Ranks:
    """Return target and top-5 by image, from timm's own loading, transforms and loop."""
    net, config = build(name)
    class_map = {wnid: position for position, wnid in enumerate(class_ids(Path()))}
    dataset = create_dataset("", root=str(DATA / "imagenet"), split="val", class_map=class_map)
    names = dataset.filenames()
    chosen = [position * len(dataset) // limit for position in range(limit)]
    loader = create_loader(
        torch.utils.data.Subset(dataset, chosen), config["input_size"], batch_size=32, use_prefetcher=False,
        interpolation=config["interpolation"], mean=config["mean"], std=config["std"], num_workers=0,
        crop_pct=config["crop_pct"], crop_mode=config["crop_mode"], device=torch.device("cpu"),
    )  # fmt: skip
    dataset.transform = loader.dataset.transform  # create_loader sets it on the subset only
    targets: list[int] = []
    ranks: list[list[int]] = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # timm leaves files to the garbage collector.
        for images, labels in loader:
            targets += labels.tolist()
            ranks += net(images).topk(5, dim=1).indices.tolist()
    rows = zip(chosen, targets, ranks, strict=True)
    return {names[index]: (target, *best) for index, target, best in rows}


def ours(name: str, limit: int, folder: Path) -> tuple[dict[str, float | None], Ranks]:
    """Return the measurements, and target and top-5 by image."""
    file = folder / "mine.py"
    file.write_text(SQUEEZENET)
    weights = DATA / "weights" / NETS[name]["weights"]
    job = Job(
        model="timm:vit_tiny_patch16_224" if name == "vit" else f"{file}:squeezenet", task="imagenet", data=DATA,
        setup=Setup(weights=Weights(source="file", file=weights.name), limit=limit), weights_file=weights,
    )  # fmt: skip
    record, outcomes = run_request(identify(job, build_task(job.task, job.data)))
    assert record.error is None
    assert outcomes is not None
    rows = {str(row[0]): tuple(int(value) for value in row[1:]) for row in outcomes.rows}
    return {measurement.metric.name: measurement.value for measurement in record.measurements}, rows


@pytest.mark.parametrize("name", NETS)
def test_forty_photographs_equal_timm(name: str, tmp_path: Path) -> None:
    _, rows = ours(name, 40, tmp_path)
    assert len(rows) == 40
    assert rows == timms(name, 40)


@pytest.mark.parametrize("name", ["squeezenet", pytest.param("vit", marks=pytest.mark.slow)])
def test_all_photographs_give_the_known_numbers(name: str, tmp_path: Path) -> None:
    values, rows = ours(name, 500, tmp_path)
    assert values == {"top1": NETS[name]["top1"] / 5, "top5": NETS[name]["top5"] / 5}
    assert sum(row[0] == row[1] for row in rows.values()) == NETS[name]["top1"]
    assert rows == timms(name, 500)
