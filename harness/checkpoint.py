"""The state of an unfinished training, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import glob
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from harness.progress import say
from harness.store import replacing


@dataclass(frozen=True)
class Checkpoint:
    """A file of tensors and plain values that lives until the record of its training is saved.

    Args:
        path: of the file; it need not exist.
        state: stands for all that the training depends on; a checkpoint of another state is not used.
    """

    path: Path
    state: str

    def part(self, name: str) -> Checkpoint:
        """Return the checkpoint of one of several trainings of one record."""
        return replace(self, path=self.path.with_name(f"{self.path.stem}.{name}.pt"))

    def read(self) -> dict[str, Any] | None:
        """Return what was written last; None where there is nothing, or nothing that can be used."""
        import torch

        if not self.path.is_file():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
            say(f"The checkpoint {self.path.name} cannot be read ({type(error).__name__}); the training begins anew.")
            return None
        usable = isinstance(found, dict) and found.get("state") == self.state
        return found["content"] if usable else None

    def write(self, content: dict[str, Any]) -> None:
        """Replace what was written last; where the disk does not take it, say so and keep the old one."""
        import torch

        try:
            with replacing(self.path) as file:
                torch.save({"state": self.state, "content": content}, file)
        except (OSError, RuntimeError) as error:
            say(f"No checkpoint was written ({error}); the training goes on.")

    def remove(self) -> None:
        """Remove the file with those of all parts, and what a killed process left of them."""
        stem = glob.escape(self.path.stem)
        for path in [*self.path.parent.glob(f"{stem}.*pt"), *self.path.parent.glob(f".{stem}.*pt.*")]:
            path.unlink(missing_ok=True)
