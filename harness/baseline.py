"""Records to compare with: of a folder or an address, or of the results that a git revision holds."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.errors import RecordError
from harness.location import Folder
from harness.store import Store


@contextmanager
def opened(baseline: str, candidate: Store) -> Iterator[Store]:
    """Yield the store of a baseline.

    Args:
        baseline: a results folder or an address, else a git revision, whose `results` folder is meant.
        candidate: in a folder of the repository that a revision is of.

    Raises:
        RecordError: it is neither, or holds no records.
    """
    if "://" in baseline or Path(baseline).is_dir():
        yield Store(baseline)
        return
    if not isinstance(candidate.location, Folder):
        raise RecordError(
            f"The baseline {baseline!r} is no folder, and no git revision holds the results of {str(candidate)!r}. "
            "Give a results folder or an address."
        )
    with TemporaryDirectory() as folder:
        _unpack(baseline, candidate.root, Path(folder))
        yield Store(Path(folder))


def _unpack(revision: str, results: Path, folder: Path) -> None:
    """Write the records and outcomes that a revision holds below a folder."""
    inside = results.resolve()
    while not inside.is_dir():
        inside = inside.parent
    top = _git(["rev-parse", "--show-toplevel"], inside, revision).decode().strip()
    place = results.resolve().relative_to(Path(top).resolve()).as_posix()
    # The root of a repository has no name in it.
    tree = f"{revision}:{place if place != '.' else ''}"
    content = _git(["archive", "--format=tar", tree], Path(top), revision)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")


def _git(words: list[str], folder: Path, revision: str) -> bytes:
    if revision.startswith("-"):
        raise RecordError(f"The baseline {revision!r} is neither a folder nor a git revision.")
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
        raise RecordError(
            f"The baseline {revision!r} is neither a folder nor a git revision with results"
            f"{f' ({said[-1]})' if said else ''}. Give a results folder, or fetch the revision."
        ) from error
    return done.stdout
