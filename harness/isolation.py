"""Running a command with limits and, where the system can, without network and with one writable folder.

Memory, processes, time and the folder's size are watched from outside. The kernel's own limit of address space
(`RLIMIT_AS`) cannot be used: torch and CUDA reserve far more than they use.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from harness.confine import SHARED_MEMORY, Confinement
from harness.registry import ROOT

if TYPE_CHECKING:
    import psutil

GIB = 2**30
POLL = 0.1
# The folder's size takes longer to find than the rest.
POLL_FOLDER = 1.0
# Caches nest a few folders; what nests more is hard to look through and to remove.
DEEPEST = 64
# What an entry takes even where it is empty.
BLOCK = 4096
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys")
SETTINGS = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf", "passwd", "group", "alternatives",
    "OpenCL",
)  # fmt: skip
KEPT = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")

Way = Literal["bubblewrap", "namespaces", "limits alone"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a command may use.

    Args:
        seconds: on the wall clock.
        memory_gib: resident, of all its processes together.
        disk_gib: of one file, and of all that it writes.
        processes: at once.
    """

    seconds: float = 4 * 3600
    memory_gib: float = 16
    disk_gib: float = 8
    processes: int = 64


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: its exit code; negative for the signal that ended it.
        stopped: the limit for which it was stopped; empty where it ended by itself.
    """

    code: int
    stopped: str = ""


def run(
    command: Sequence[str], *, folder: Path, readable: Sequence[Path], limits: Limits, log: Path, way: Way | None = None
) -> Ended:
    """Run a command in isolation; what it prints goes to a file.

    Args:
        command: a program's path and its arguments.
        folder: the one that it can write; it starts there, and finds `home` and `tmp` in it.
        readable: what it can read beside the system, Python and this project.
        way: how; by default the strictest that this system has.
    """
    way = way or best_way()
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    spec = _spec(command, folder.resolve(), readable, limits, way)
    words = [sys.executable, "-P", "-m", "harness.confine", msgspec.json.encode(spec).decode()]
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=_environment(folder),
            start_new_session=True,
        )  # fmt: skip
        try:
            return _watch(process, folder, log, limits)
        finally:
            _end(process)


@cache
def best_way() -> Way:
    """Return the strictest isolation that works here: each is tried on a command that does nothing."""
    ways: tuple[Way, ...] = ("bubblewrap", "namespaces")
    return next((way for way in ways if not why_not(way)), "limits alone")


def why_not(way: Way) -> str:
    """Return why a way of isolation cannot be had here; empty where it can."""
    import tempfile

    if way == "bubblewrap" and not shutil.which("bwrap"):
        return "bwrap is not installed"
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name) / "work", Path(name) / "log"
        folder.mkdir()
        ended = run(["/bin/true"], folder=folder, readable=(), limits=Limits(seconds=20), log=log, way=way)
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return "" if ended == Ended(0) else (last or [ended.stopped or f"exit code {ended.code}"])[0]


def lacks(way: Way) -> tuple[str, ...]:
    """Return what a way of isolation does not give."""
    if way != "limits alone":
        return ()
    return ("no network namespace: the network can be reached", "no mount namespace: files can be read and written")


def _spec(command: Sequence[str], folder: Path, readable: Sequence[Path], limits: Limits, way: Way) -> Confinement:
    seen = tuple(sorted({str(path) for path in _readable(readable)}))
    if way == "bubblewrap":
        command = [*_bubblewrap(seen, folder), *command]
    return Confinement(
        command=tuple(command),
        namespaces=way == "namespaces",
        readable=seen,
        writable=str(folder),
        largest_file=int(limits.disk_gib * GIB),
    )


def _readable(more: Sequence[Path]) -> Iterator[Path]:
    """What a command must be able to read: the system's programs and libraries, Python, this project, and more."""
    yield from (path for path in map(Path, SYSTEM) if path.exists())
    yield from (Path("/etc") / name for name in SETTINGS if (Path("/etc") / name).exists())
    yield from (path for path in Path("/dev").glob("nvidia*"))
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path]
    for path in [*map(Path, filter(None, python)), ROOT, *more]:
        if path.exists() and path.resolve() != Path("/"):
            yield path.resolve()
            yield path.absolute()
    for path in more:
        if path.is_dir():
            for pattern in ("*", "*/*"):
                # Data sets are often links, as are their splits.
                yield from (entry.resolve() for entry in path.glob(pattern) if entry.is_symlink() and entry.exists())


def _bubblewrap(readable: Sequence[str], folder: Path) -> list[str]:
    """The words that put a command into bubblewrap."""
    words = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
    ]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", str(SHARED_MEMORY), "--tmpfs", "/dev/shm"]  # noqa: S108
    words += ["--chdir", str(folder)]
    for path in readable:
        if path.startswith("/dev/"):
            words += ["--dev-bind", path, path]
        elif os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        else:
            words += ["--ro-bind", path, path]
    words += ["--bind", str(folder), str(folder)]
    # In /proc/sys, root needs no capability to write the settings of the whole machine.
    for path in ("/proc", "/dev", "/"):
        words += ["--remount-ro", path]
    return [*words, "--"]


def _environment(folder: Path) -> dict[str, str]:
    """The variables that a command needs: no token, no address, and a home of its own."""
    path = [str(ROOT), *(part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isdir(part))]
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        "HOME": str(folder.resolve() / "home"),
        "TMPDIR": str(folder.resolve() / "tmp"),
        "PYTHONPATH": os.pathsep.join(path),
        # What an earlier run left in its home must not be imported before this one is confined.
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _watch(process: subprocess.Popen[bytes], folder: Path, log: Path, limits: Limits) -> Ended:
    """Wait for a command to end, and stop it where it goes beyond a limit."""
    started = looked = time.monotonic()
    while True:
        try:
            return Ended(process.wait(timeout=POLL))
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        reason = _too_much(process.pid, limits)
        if now - started > limits.seconds:
            reason = f"it ran for more than {limits.seconds:g} s"
        if not reason and now - looked > POLL_FOLDER:
            looked = now
            size = _size(folder) + _nameless(process.pid) + log.stat().st_size
            if size > limits.disk_gib * GIB:
                more = "" if math.isfinite(size) else ", or folders that cannot be looked through"
                reason = f"it wrote more than {limits.disk_gib:g} GiB{more}"
        if reason:
            _end(process)
            return Ended(-signal.SIGKILL, reason)


def _too_much(pid: int, limits: Limits) -> str:
    """Why a tree of processes has to be stopped now; empty where it need not."""
    import psutil

    memory, count, tree = 0, 0, _tree(pid)
    for process in tree:
        try:
            memory += process.memory_info().rss
            count += 1
        except psutil.NoSuchProcess:
            continue
    # Forked processes share pages, which the quick sum counts several times.
    if memory > limits.memory_gib * GIB and (memory := sum(map(_proportional, tree))) > limits.memory_gib * GIB:
        return f"it used {memory / GIB:.1f} GiB of memory; the limit is {limits.memory_gib:g} GiB"
    return f"it had {count} processes at once; the limit is {limits.processes}" if count > limits.processes else ""


def _proportional(process: psutil.Process) -> int:
    """Bytes of a process, each page shared among those that have it; all of them where the system does not tell."""
    import psutil

    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


def _tree(pid: int) -> list[psutil.Process]:
    """A process and all that came of it; none where it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command with all its processes: the first one is held, and stays to the last, since it inherits others."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGSTOP)
    while others := _alive(process.pid):
        for one in others:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        time.sleep(0.01)
    process.kill()
    process.wait()


def _alive(pid: int) -> list[int]:
    """What came of a process and has not ended; it may have ended without anybody having asked."""
    import psutil

    found = []
    for one in _tree(pid)[1:]:
        try:
            found += [one.pid] if one.status() != psutil.STATUS_ZOMBIE else []
        except psutil.NoSuchProcess:
            continue
    return found


def _size(folder: Path) -> float:
    """Bytes of all entries below a folder, each a block at least; links are not followed.

    Infinite where that cannot be told: folders in folders without end, or some that may not be looked into.
    """
    total, pending = 0, [(str(folder), 0)]
    while pending:
        place, depth = pending.pop()
        try:
            entries = list(os.scandir(place)) if depth <= DEEPEST else None
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            entries = None
        if entries is None:
            return math.inf
        for entry in entries:
            with suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                total += max(about.st_size, BLOCK)
                pending += [(entry.path, depth + 1)] if stat.S_ISDIR(about.st_mode) else []
    return total


def _nameless(pid: int) -> int:
    """Bytes of the files that a tree of processes holds open and that no folder shows, some of them in memory."""
    sizes = {}
    for process in _tree(pid):
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{process.pid}/fd"):
                with suppress(OSError):
                    about = os.stat(entry.path)
                    if stat.S_ISREG(about.st_mode) and not about.st_nlink:
                        sizes[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(sizes.values())
