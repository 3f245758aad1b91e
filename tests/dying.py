"""The beginning of a script in which every step of a training leaves a checkpoint, and one of them ends a process."""

from __future__ import annotations

DIES = """
import os, signal, sys
sys.path.insert(0, {root!r})
import harness.training
from harness.checkpoint import Checkpoint
harness.training.CHECKPOINT_SECONDS = 0
write = Checkpoint.write
def write_and_end(self, content):
    write(self, content)
    if content["step"] == {step}:
        os.kill({target}, {number})
Checkpoint.write = write_and_end
"""
ITSELF = {"target": "os.getpid()", "number": "signal.SIGKILL"}
