"""What this machine has for the harness, what is missing, and how to install it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator

from harness.environment import cores, cpu_name, versions
from harness.errors import BenchError
from harness.registry import TASKS
from harness.task import build_task

# Package, its import name, and what it is for.
OPTIONAL = (
    ("datasets", "datasets", "ImageNet from Hugging Face or parquet files"),
    ("faster-coco-eval", "faster_coco_eval", "a third opinion on average precision"),
    ("nvidia-ml-py", "pynvml", "clock, heat, company and energy of a GPU"),
    ("scikit-learn", "sklearn", "the reference tests"),
)


def report() -> Iterator[str]:
    """Yield the findings, a line each."""
    yield from _hardware()
    for package, found in versions().items():
        yield f"{package:14} {found}" if found != "missing" else f"{package:14} missing: pip install {package}"
    for package, module, purpose in OPTIONAL:
        here = importlib.util.find_spec(module) is not None
        yield f"{package:14} {'installed' if here else f'missing: pip install {package}'} (optional, for {purpose})"
    for name in TASKS:
        try:
            stamp = build_task(name).data()
            yield f"task {name:9} ready" + (f", {stamp.size:,} images of {stamp.name}" if stamp else "")
        except BenchError as error:
            yield f"task {name:9} not ready: {error}"


def _hardware() -> Iterator[str]:
    """Processor, memory, disk and GPUs."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    yield f"{'processor':14} {cpu_name()}, {cores()} cores, torch uses {torch.get_num_threads()} threads"
    yield f"{'memory':14} {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    yield f"{'disk':14} {shutil.disk_usage('.').free / 2**30:.1f} GiB free here"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"{f'cuda:{index}':14} {properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    if not torch.cuda.is_available():
        built = (
            f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch was built without CUDA"
        )
        yield f"{'gpu':14} none that torch can use ({built}); everything runs on the CPU"
