"""The commented `submission.toml` of each kind, and the smallest model."""

from __future__ import annotations

from pathlib import Path

from harness.errors import SetupError
from harness.store import write_atomically
from harness.submission.manifest import FILE, Kind

ABOUT = """\
# What is submitted. `run_bench.py submit check` names every fault of this file with its line.
[submission]
name = "my-model"              # as boards show it: letters, digits, '.', '_' and '-'
kind = "{kind}"
{tasks}\
authors = ["Your Name"]
paper = ""                     # "arXiv:2103.14030", "doi:10...." or an address; empty for none
license = "Apache-2.0"         # of the code or the weights, as SPDX writes it
notes = ""                     # anything a reader should know
"""
TASKS = 'tasks = ["imagenet:knn", "cost"]   # see: run_bench.py list tasks\n'
PREDICTED = 'tasks = ["imagenet"]           # the one task that the predictions are of\n'
PARTS = {
    "model": """
[model]
entry = "nets.py:my_net"       # a file of this folder, and what returns the module
weights = "random"             # "random" (seeded), or "own" (as the file itself builds them)
image_size = 0                 # side in pixels; 0 for the model's own
batch_size = 32
precision = "fp32"             # fp32, tf32, bf16 or fp16
""",
    "checkpoint": """
[model]
entry = "timm:resnet18"        # a registered or timm model, or a file of this folder such as "nets.py:my_net"
weights = "weights.safetensors"  # a file of this folder: safetensors, or torch.save(model.state_dict(), ...)
image_size = 0                 # side in pixels; 0 for the model's own
batch_size = 32
precision = "fp32"             # fp32, tf32, bf16 or fp16
""",
    "predictions": """
[predictions]
file = "predictions.csv"       # a table of classes, COCO results (.json), or a folder of label PNGs
""",
    "claim": """
[[claim]]                      # one published number; repeat for more
task = "imagenet"
metric = "top1"                # as boards name it
value = 81.2
unit = "%"
higher_is_better = true
source = "arXiv:2103.14030, Table 1"
""",
}
NETS = """\
from torch import nn


def my_net(num_classes=1000):
    stem = nn.Sequential(nn.Conv2d(3, 32, 16, 16), nn.ReLU())
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))
"""


def files(kind: Kind) -> dict[str, str]:
    """Return the files of a new submission by name."""
    tasks = {"model": TASKS, "checkpoint": TASKS, "predictions": PREDICTED, "claim": ""}[kind]
    found = {FILE: ABOUT.format(kind=kind, tasks=tasks) + PARTS[kind]}
    return found | ({"nets.py": NETS} if kind == "model" else {})


def write(folder: Path, kind: Kind) -> list[Path]:
    """Write a new submission, and return its files.

    Raises:
        SetupError: a file of it is there already, or the folder cannot be written.
    """
    new = {folder / name: text for name, text in files(kind).items()}
    for path in new:
        if path.exists() or path.is_symlink():
            raise SetupError(f"{str(path)!r} is there already, and is not overwritten. Give another folder.")
    try:
        for path, text in new.items():
            write_atomically(path, text.encode())
    except OSError as error:
        raise SetupError(f"{str(folder)!r} cannot be written ({error.strerror}). Give another folder.") from error
    return list(new)
