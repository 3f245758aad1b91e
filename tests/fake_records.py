"""Records made up for tests of what is done with records."""

from __future__ import annotations

from typing import Any

from harness.metric import Measurement, Metric
from harness.record import DataStamp, Environment, Preprocessing, Record, Setup, Weights, digest

TOP1, LATENCY = Metric("top1", "%", True), Metric("latency_b1", "ms", False)
PARAMETERS, GMACS = Metric("parameters", "M", False), Metric("gmacs", "G", False)
SETUP = Setup(weights=Weights(source="pretrained"), preprocessing=Preprocessing(image_size=(224, 224)))
ENVIRONMENT = Environment(
    device="a processor", cpu="a processor", cores=2, threads=2, memory_gib=24.0, system="Linux x86_64",
    python="3.11.7", versions={"torch": "2.15.0"}, commit="", dirty=False,
)  # fmt: skip
DATA = DataStamp(name="imagenet", split="val", size=100, classes=10, fingerprint="0123456789abcdef")


def accuracy(model: str, value: float | None = 70.0, **fields: Any) -> Record:
    """Return a record of accuracy."""
    measurement = Measurement(TOP1, value, reason="" if value is not None else "not to be had")
    return _record(model, **{"measurements": (measurement,), **fields})


def cost(model: str, milliseconds: float, samples: tuple[float, ...] = (), **fields: Any) -> Record:
    """Return a record of cost: latency, parameters and MACs."""
    measurements = (
        Measurement(LATENCY, milliseconds, samples),
        Measurement(PARAMETERS, 5.0),
        Measurement(GMACS, 1.25),
    )
    chosen = {"task": "cost", "machine_bound": True, "untrained": "rank", "data": None, "measurements": measurements}
    return _record(model, **{**chosen, **fields})


def _record(model: str, **fields: Any) -> Record:
    defaults: dict[str, Any] = {
        "task": "imagenet", "task_version": 1, "source_sha256": "", "untrained": "never", "machine_bound": False,
        "setup": SETUP, "data": DATA, "environment": ENVIRONMENT, "provenance": "measured", "command": "",
        "started_at": "", "seconds": 1.0,
    }  # fmt: skip
    merged = {**defaults, **fields}
    return Record(model=model, key=digest(model, merged["setup"], merged["environment"]), **merged)
