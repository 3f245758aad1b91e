"""The user's cache: rows that took long to make, found again by a key of all that they depend on.

Each entry is a folder with the rows, memory-mapped, and a checksum of each. A row is there or not: what a killed
process had written stays, and what was damaged counts as absent. Processes agree by file locks, which end with their
holders.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.progress import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VARIABLE = "BENCH_CACHE"
LIMIT_VARIABLE = "BENCH_CACHE_LIMIT"
LIMIT_GIB = 20.0
# What a cache leaves free on its disk.
SPARE_BYTES = 2**30
# Raised whenever the same key would hold other rows.
VERSION = 1
UNFINISHED = ".new-"
WAIT_SECONDS = 0.05
# So many waits without a word.
PATIENCE = 40


def cache_folder(given: str | Path | None = None) -> Path:
    """Return the folder of what can be made again: the given one, `BENCH_CACHE`, else by the XDG specification."""
    if given or os.environ.get(VARIABLE):
        return Path(given or os.environ[VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "backbone-bench"


@dataclass(frozen=True)
class Entry:
    """What a cache holds under one key.

    Args:
        about: what it is, for people: kind, data, model, ...
        bytes: that it takes when it is full.
        used: when it was last used, in seconds since the epoch.
    """

    key: str
    about: Mapping[str, str]
    bytes: int
    used: float

    def concerns(self, data: str | None, model: str | None) -> bool:
        """Whether it is of a data set and of a model; None for any."""
        named = self.about.get("data", "").partition(" ")[0]
        return (data is None or data == named) and (model is None or model == self.about.get("model"))


@dataclass(frozen=True)
class Cache:
    """A folder of entries, shared by processes.

    Args:
        folder: made when first written to.
        limit_gib: of all entries together; for a new one the least recently used go, but none that is in use.
        model: the public id of the model that runs.
        source_sha256: of the user's file that built it.
    """

    folder: Path
    limit_gib: float = LIMIT_GIB
    model: str = ""
    source_sha256: str = ""
    _held: list[Lease] = field(default_factory=list, repr=False, compare=False)

    def find(self, key: str) -> Rows | None:
        """Return the rows of a key, if they are there and whole enough to be read."""
        place = self._place(key)
        if not place.is_dir():
            return None
        try:
            rows = Rows(place)
            rows.check()
            os.utime(place / "about.json")
        except (OSError, ValueError) as error:
            say(f"The cached {key} is damaged ({error}) and is made again.")
            shutil.rmtree(place, ignore_errors=True)
            return None
        return rows

    def create(self, key: str, about: Mapping[str, str], shape: Sequence[int], dtype: str) -> Rows | None:
        """Return rows of a new key, all of them absent; those of another process where that was first.

        Args:
            shape: of all rows together: (N, ...).

        Returns:
            None where the limit or the disk has no room for them.
        """
        import numpy as np

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.folder.mkdir(parents=True, exist_ok=True)
        with Lease(self.folder / "cache.lock") as lease:
            lease.take()
            if not self._make_room(size, key):
                return None
            made = self.folder / f"{UNFINISHED}{key}"
            made.mkdir()
            _allocate(made / "rows.npy", shape, dtype)
            _allocate(made / "sums.npy", shape[:1], "uint32")
            (made / "about.json").write_text(json.dumps(dict(about)))
            if self._place(key).exists():
                shutil.rmtree(made)
            else:
                os.rename(made, self._place(key))
        return self.find(key)

    def hold(self, key: str) -> Lease:
        """Keep an entry from being removed until this is closed; waits while another process fills it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lease = Lease(self.folder / f"{key}.lock")
        lease.share()
        self._held.append(lease)
        return lease

    def close(self) -> None:
        """Let go of all that is held; what was read stays readable."""
        while self._held:
            self._held.pop().release()

    def entries(self) -> list[Entry]:
        """Return what there is, the least recently used first."""
        found = []
        for place in self.folder.glob("*/about.json"):
            try:
                about = json.loads(place.read_text())
                size = sum(part.stat().st_size for part in place.parent.iterdir())
                found.append(Entry(place.parent.name, about, size, place.stat().st_mtime))
            except (OSError, ValueError):  # Another process has just removed it, or it is damaged.
                found.append(Entry(place.parent.name, {}, 0, 0.0))
        return sorted(found, key=lambda entry: entry.used)

    def remove(self, key: str) -> bool:
        """Remove an entry, and return whether that could be: one that is in use stays."""
        with Lease(self.folder / f"{key}.lock") as lease:
            free = lease.take(wait=False)
            if free:
                shutil.rmtree(self._place(key), ignore_errors=True)
                lease.path.unlink(missing_ok=True)
        return free

    def _place(self, key: str) -> Path:
        return self.folder / key

    def _make_room(self, size: int, key: str) -> bool:
        """Remove what was used least recently until there is room; nothing where even that would not do."""
        limit = int(self.limit_gib * 2**30)
        if size > limit:
            return False
        entries = [entry for entry in self.entries() if entry.key != key]
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            if total + size <= limit:
                break
            total -= entry.bytes if self.remove(entry.key) else 0
        for left in self.folder.glob(f"{UNFINISHED}*"):  # Of a process that was killed: this one holds the lock.
            shutil.rmtree(left, ignore_errors=True)
        return total + size <= limit and shutil.disk_usage(self.folder).free > size + SPARE_BYTES


class Lease:
    """A lock file: shared by those who use something, or taken by one alone; a process that ends lets go of it.

    Args:
        path: of the file; made where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def share(self) -> None:
        """Hold it among others; waits while one has it alone."""
        self._lock(alone=False, wait=True)

    def take(self, wait: bool = True) -> bool:
        """Have it alone, and return whether that could be; without waiting it may not."""
        return self._lock(alone=True, wait=wait)

    def release(self) -> None:
        """Let it go."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self, alone: bool, wait: bool) -> bool:
        import fcntl

        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        for attempt in itertools.count():
            if self._file < 0:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    return False
                if attempt == PATIENCE:
                    say("Another process is at the same part of the cache; waiting for it.")
                time.sleep(WAIT_SECONDS)
                continue
            # Whoever removed the entry took the file along: another one has its name now.
            if self.path.exists() and os.path.samestat(os.fstat(self._file), self.path.stat()):
                return True
            self.release()
        raise AssertionError("itertools.count ended")


class Rows:
    """Rows of one shape and type in a file, each of them there or not.

    Args:
        folder: of the entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    @cached_property
    def values(self) -> NDArray[Any]:
        """All rows, memory-mapped; what is written to them here stays in this process."""
        return _mapped(self.folder / "rows.npy")

    @cached_property
    def _sums(self) -> NDArray[np.uint32]:
        return _mapped(self.folder / "sums.npy", shared=True)

    @cached_property
    def _files(self) -> tuple[int, int]:
        return os.open(self.folder / "rows.npy", os.O_RDWR), os.open(self.folder / "sums.npy", os.O_RDWR)

    def __del__(self) -> None:
        for file in self.__dict__.pop("_files", ()):
            os.close(file)

    def check(self) -> None:
        """Raise ValueError or OSError where the files are not those of one array and its checksums."""
        if self._sums.shape != self.values.shape[:1] or not (self.folder / "about.json").is_file():
            raise ValueError("its parts do not belong together")

    def put(self, index: int, row: NDArray[Any], tag: int = 0) -> None:
        """Write a row.

        Args:
            tag: stands for what the row was made of; it is got again only with that.

        Raises:
            OSError: the disk is full.
        """
        import numpy as np

        content = np.ascontiguousarray(row, self.values.dtype).tobytes()
        assert len(content) == self.values[index].nbytes, "a row of another shape"
        sums = np.uint32(_sum(content, index, tag)).tobytes()
        # The checksum after the row: whoever sees it sees the row.
        for file, array, part in zip(self._files, (self.values, self._sums), (content, sums), strict=True):
            if os.pwrite(file, part, array.offset + index * len(part)) < len(part):  # type: ignore[attr-defined]
                raise OSError("the disk is full")

    def get(self, index: int, tag: int = 0) -> NDArray[Any] | None:
        """Return a copy of a row; None where it is absent, damaged, or made of something else."""
        import numpy as np

        row = np.array(self.values[index])
        return row if self._sums[index] == _sum(row, index, tag) else None

    def absent(self) -> NDArray[np.bool_]:
        """Return which rows are not there (N,): not written, or damaged."""
        import numpy as np

        rows, sums = np.asarray(self.values), self._sums.tolist()
        whole = [found == _sum(rows[index], index, 0) for index, found in enumerate(sums)]
        return ~np.array(whole, bool)

    def damaged(self) -> int:
        """How many rows were written and are not what was written."""
        return int((self.absent() & (self._sums > 0)).sum())


def key_of(**parts: Any) -> str:
    """Return sixteen hex digits that stand for plain values and dataclasses."""
    import msgspec

    return hashlib.sha256(msgspec.json.encode({"version": VERSION, **parts}, order="deterministic")).hexdigest()[:16]


def _sum(content: Any, index: int, tag: int) -> int:
    """The checksum of a row at its place and of what it was made; never 0, which stands for no row."""
    return zlib.crc32(content, index ^ tag) or 1


def _mapped(path: Path, shared: bool = False) -> NDArray[Any]:
    """An array file in memory, refused where it is shorter than it says.

    Args:
        shared: sees what other processes write, and cannot be written to.
    """
    import numpy as np

    found: NDArray[Any] = np.load(path, mmap_mode="r" if shared else "c")
    return found


def _allocate(path: Path, shape: Sequence[int], dtype: str) -> None:
    """Make the file of an array of zeros, which takes no room on the disk until it is written."""
    import numpy as np

    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=tuple(shape)).flush()
