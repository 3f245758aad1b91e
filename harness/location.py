"""Where results lie: a folder, or any place that fsspec reaches, such as `s3://bucket/results` or `memory://results`."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Protocol, TypeVar

from harness.cache import cache_folder
from harness.errors import MissingPackage, RecordError, SetupError, reason

T = TypeVar("T")
# Requests that are under way at once, where the place lies across a network.
AT_ONCE = 32
BATCH = 512
CHUNK = 2**16
# What pip calls a module that has another name.
PACKAGES = {"smbclient": "smbprotocol"}


class Location(Protocol):
    """A place of named files; a name is relative, with `/` between its parts.

    Args:
        here: a folder on this machine: the place itself, or one that keeps what is unfinished or not sent yet.
        key: equal for two ways to write one place.
    """

    here: Path
    key: str

    def exists(self) -> bool:
        """Whether there is such a place."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files of a folder, without the folder; none where it does not exist."""

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where it is absent."""

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the content of files, in order."""

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files one after the other; of each, others see the old one or the whole new one."""

    def deliver(self) -> None:
        """Write what could not be written earlier."""


def locate(results: str | Path) -> Location:
    """Return the location that a path or an address names.

    Raises:
        BenchError: an address that nothing reads, or whose package is not installed.
    """
    text = str(results)
    if isinstance(results, Path) or "://" not in text:
        return Folder(Path(results))
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    try:
        system, path = url_to_fs(text)
    except ImportError as error:
        module = getattr(error.__cause__, "name", None) or "fsspec"
        raise MissingPackage(PACKAGES.get(module, module), f"The address {masked(text)!r}") from error
    except Exception as error:  # What each system raises for an address that it cannot read is its own.
        raise SetupError(
            f"The address {masked(text)!r} cannot be used ({reason(error)}). Give a folder, or an address that fsspec "
            "knows, such as s3://bucket/results, gs://, sftp://host/results, file:///results or memory://results."
        ) from error
    # A folder is written by renaming, which is more than fsspec does for one.
    return Folder(Path(path)) if type(system) is LocalFileSystem else Remote(text, system, path)


def masked(address: str) -> str:
    """Return an address without the password that it may hold."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", address)


class Folder:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.here = root
        self.key = str(root.resolve())

    def __str__(self) -> str:
        return str(self.here)

    def exists(self) -> bool:
        """Whether it is there."""
        return self.here.is_dir()

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.here / name).is_file()

    def names(self, folder: str) -> list[str]:
        """Return the names of the files of a folder; hidden ones are none."""
        try:
            return sorted(name for name in os.listdir(self.here / folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._unreadable(folder, error) from error

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where it is absent."""
        try:
            return _content(f"{self.here}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(name, error) from error

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the content of files, in order."""
        root = f"{self.here}/"
        for name in names:
            try:
                content = _content(root + name)
            except OSError:
                content = _there(self.read(name), name, self)
            yield content

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, each by renaming a whole one."""
        try:
            for name, content in files.items():
                write_atomically(self.here / name, content)
        except OSError as error:
            raise RecordError(
                f"The results cannot be written to {str(self)!r} ({error.strerror}). Give another --results."
            ) from error

    def deliver(self) -> None:
        """Do nothing: what could not be written is nowhere."""

    def _unreadable(self, name: str, error: OSError) -> RecordError:
        return RecordError(f"{name!r} of {str(self)!r} cannot be read ({error.strerror}). Check your permission.")


class Remote:
    """A place that fsspec reaches. What is written is kept here until it has arrived.

    Args:
        system: of fsspec.
        root: the place's path in it.
    """

    def __init__(self, address: str, system: Any, root: str) -> None:
        self._address, self._system, self._root = masked(address), system, root.rstrip("/")
        self.key = str(system.unstrip_protocol(self._root))
        self.here = cache_folder() / "results" / hashlib.sha256(self.key.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return self._address

    def exists(self) -> bool:
        """Whether anything is there."""
        return self._is_there(self._root)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._is_there(self._path(name))

    def names(self, folder: str) -> list[str]:
        """Return the names of the files of a folder, as the place has them now."""
        path = self._path(folder)
        self._system.invalidate_cache(path)
        try:
            found = self._ask(folder, self._system.ls, path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for one in found if not (name := one.rstrip("/").rpartition("/")[2]).startswith("."))

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where it is absent."""
        try:
            content: bytes = self._ask(name, self._system.cat_file, self._path(name))
        except FileNotFoundError:
            return None
        return content

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the content of files, in order; several are asked for at once where the system can."""
        with ThreadPoolExecutor(AT_ONCE if self._system.async_impl else 1) as pool:
            for start in range(0, len(names), BATCH):
                batch = names[start : start + BATCH]
                for name, content in zip(batch, pool.map(self.read, batch), strict=True):
                    yield _there(content, name, self)

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write whole objects; what does not arrive stays here, and `deliver` sends it."""
        kept = Folder(self.here)
        kept.write(files)
        for name in files:
            self._send(name)

    def deliver(self) -> None:
        """Send what stayed here; outcomes before the records that they belong to."""
        for folder in ("outcomes", "records"):
            for name in Folder(self.here).names(folder):
                self._send(f"{folder}/{name}")

    def _send(self, name: str) -> None:
        """Send a file that is kept here, and let go of it when it has arrived."""
        content = Folder(self.here).read(name)
        if content is None:
            return  # Another process has sent it.
        try:
            self._put(self._path(name), content)
        except Exception as error:  # Each system has errors of its own.
            raise RecordError(
                f"{name!r} cannot be written to {str(self)!r} ({reason(error)}). It is kept in {str(self.here)!r}; the "
                "next run with these --results sends it first."
            ) from error
        (self.here / name).unlink(missing_ok=True)

    def _put(self, path: str, content: bytes) -> None:
        """Write a file whole: object stores know nothing else, and elsewhere it is renamed."""
        if self._system.async_impl:
            self._system.pipe_file(path, content)
            return
        folder, _, name = path.rpartition("/")
        # Never for an object store, where this could make a bucket.
        self._system.makedirs(folder, exist_ok=True)
        # Of two who write one file at once, each has a part of his own.
        part = f"{folder}/.{name}.{token_hex(4)}.part"
        self._system.pipe_file(part, content)
        self._system.mv(part, path)

    def _is_there(self, path: str) -> bool:
        try:
            self._ask(path, self._system.info, path)
        except FileNotFoundError:
            return False
        return True

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, name: str, question: Callable[..., T], *words: Any, **options: Any) -> T:
        """Ask the system, and name what failed; that a file is absent is an answer."""
        try:
            return question(*words, **options)
        except FileNotFoundError:
            raise
        except Exception as error:  # Each system has errors of its own.
            raise RecordError(
                f"{name!r} cannot be read from {str(self)!r} ({reason(error)}). Check the address, the "
                "network and your permission."
            ) from error


def _content(path: str) -> bytes:
    """The bytes of a file; in half the time that a file object takes, which counts where there are many small ones."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        parts = []
        while part := os.read(handle, CHUNK):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def _there(content: bytes | None, name: str, place: object) -> bytes:
    if content is None:
        raise RecordError(f"{name!r} is no longer in {str(place)!r}. Run the command again.")
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that others see the old one or the whole new one."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file whose content takes the place of `path` when all of it is written; after an error none of it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; results are for sharing.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
