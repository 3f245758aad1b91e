"""A large store of made-up records: as long and as varied as real ones, written as the harness writes them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

from fake_records import DATA, ENVIRONMENT, SETUP
from msgspec.structs import replace

from harness.metric import Measurement, Metric
from harness.record import Environment, Preprocessing, Record, digest, sealed, to_json

FAMILIES = ("vit", "swin", "convnext", "resnet", "efficientnet", "regnet", "maxvit", "deit3", "caformer", "beit")
DATA_SETS = ("imagenet", "imagenet_v2", "imagenet_real", "cub", "cars", "inat")
PROTOCOLS = ("", ":knn", ":linear", ":fine_tune")
MINOR = tuple(f"share_{name}" for name in ("matmul", "attention", "convolution", "fft", "other", "interpolation"))


def many_records(models: int, accuracies: int, costs: int, seed: int = 0) -> Iterator[Record]:
    """Yield records of models: each on so many tasks of accuracy, and timed in so many ways."""
    numbers = random.Random(seed)
    for index in range(models):
        model = f"timm:{FAMILIES[index % len(FAMILIES)]}_{index}_patch16_224.in1k"
        size = (160, 224, 288, 384)[index % 4]
        skill = 50 + 40 * numbers.random()
        for number in range(accuracies):
            yield _accuracy(model, size, number, skill + numbers.gauss(0, 2), numbers)
        for number in range(costs):
            yield _cost(model, number, 1 + 50 * numbers.random(), numbers)


def write_records(root: Path, records: Iterator[Record]) -> int:
    """Write records below a results folder, without waiting for the disk after each, and return how many."""
    folder = root / "records"
    folder.mkdir(parents=True)
    count = 0
    for record in records:
        (folder / f"{record.name}.json").write_bytes(to_json(sealed(record)))
        count += 1
    return count


def _record(model: str, task: str, size: int, number: int, numbers: random.Random, **fields: object) -> Record:
    weights = replace(SETUP.weights, sha256=hashlib.sha256(model.encode()).hexdigest())
    preprocessing = Preprocessing(
        image_size=(size, size), crop_pct=0.9, crop_mode="center", interpolation="bicubic", antialias=True,
        decoder="pil", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), source="model",
        fingerprint=f"{size:064x}",
    )  # fmt: skip
    setup = replace(
        SETUP, weights=weights, preprocessing=preprocessing, precision=("fp32", "bf16")[number % 2],
        batch_size=8 * (1 + number // 2),
    )  # fmt: skip
    chosen: dict[str, object] = {
        "task_version": 1, "source_sha256": "", "setup": setup, "provenance": "measured", "environment": ENVIRONMENT,
        "command": f"run_bench.py run --model {model} --task {task} --weights pretrained --image-size {size},{size}",
        "started_at": f"2026-11-{1 + numbers.randrange(28):02d}T09:00:00+00:00", "seconds": 100 * numbers.random(),
        **fields,
    }  # fmt: skip
    return Record(model=model, task=task, key=digest(model, task, setup, number), **chosen)  # type: ignore[arg-type]


def _accuracy(model: str, size: int, number: int, skill: float, numbers: random.Random) -> Record:
    data = DATA_SETS[number % len(DATA_SETS)]
    top1, top5 = (round(min(50000.0, 500 * value)) / 500 for value in (skill, (100 + skill) / 2))
    measurements = tuple(
        Measurement(Metric(name, "%", True), value, interval=(value - 0.4, value + 0.4))
        for name, value in (("top1", top1), ("top5", top5))
    )
    details = {
        "ties": 0, "not_finite": 0, "k": 20, "temperature": 0.07, "features": f"{numbers.getrandbits(256):064x}",
        "classes": 1000, "layer": "norm", "pooling": "mean", "train": {"size": 1281167, "fingerprint": "0" * 16},
    }  # fmt: skip
    task = data + PROTOCOLS[number // len(DATA_SETS) % len(PROTOCOLS)]
    stamp = replace(DATA, name=data, size=50000, classes=1000)
    return _record(
        model, task, size, 0, numbers, untrained="never", machine_bound=False, measurements=measurements, data=stamp,
        details=details,
    )  # fmt: skip


def _cost(model: str, number: int, milliseconds: float, numbers: random.Random) -> Record:
    measurements = []
    for batch in (1, 8):
        samples = tuple(milliseconds * batch**0.9 * (1 + 0.1 * numbers.random()) for _ in range(50))
        value = sorted(samples)[25]
        measurements.append(
            Measurement(Metric(f"latency_b{batch}", "ms", False), value, samples, "", (value * 0.99, value * 1.01))
        )
        for part in (90, 95):
            minor = part == 90
            measurements.append(Measurement(Metric(f"latency_p{part}_b{batch}", "ms", False, 2, minor), value * 1.1))
        peak = Metric(f"memory_b{batch}", "MiB", False, 1)
        measurements.append(Measurement(peak, milliseconds * batch, (1.0, 2.0, 3.0)))
    counted = [Measurement(Metric(name, unit, False), milliseconds) for name, unit in
               (("parameters", "M"), ("gmacs", "G"), ("throughput", "1/s"))]  # fmt: skip
    shares = [Measurement(Metric(name, "%", False, minor=True), 100 * numbers.random()) for name in MINOR]
    missing = Measurement(Metric("energy_b1", "J", False, minor=True), None, reason="this processor tells no energy")
    return _record(
        model, "cost", 224, number, numbers, untrained="rank", machine_bound=True, data=None,
        measurements=(*measurements, *counted, *shares, missing), environment=machine(number // 2),
        details={"counter": "dispatcher", "warm_up": {"batch_1": 10, "batch_8": 5}, "rounds": [50, 50]},
    )  # fmt: skip


def machine(number: int) -> Environment:
    """Return one of several machines."""
    versions = {"torch": "2.15.0", "torchvision": "0.30.0", "timm": "1.0.31", "numpy": "2.3.0", "pillow": "12.0.0"}
    return replace(ENVIRONMENT, device=f"processor {number}", cpu=f"processor {number}", versions=versions)
