"""Running a command with limits and, where the system can, without network and with one writable folder.

Memory, processes, time and the folder's size are watched from outside. The kernel's own limit of address space
(`RLIMIT_AS`) cannot be used: torch and CUDA reserve far more than they use.
"""

from __future__ import annotations

import os
import shutil
import signal
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

from harness.confine import Confinement
from harness.registry import ROOT

if TYPE_CHECKING:
    import psutil

GIB = 2**30
POLL = 0.1
# The folder's size takes longer to find than the rest.
POLL_FOLDER = 1.0
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
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
    ]
    words += ["--proc", "/proc", "--dev", "/dev", "--chdir", str(folder)]
    for path in readable:
        if path.startswith("/dev/"):
            words += ["--dev-bind", path, path]
        elif os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        else:
            words += ["--ro-bind", path, path]
    return [*words, "--bind", str(folder), str(folder), "--remount-ro", "/", "--"]


def _environment(folder: Path) -> dict[str, str]:
    """The variables that a command needs: no token, no address, and a home of its own."""
    path = [str(ROOT), *(part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isdir(part))]
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        "HOME": str(folder.resolve() / "home"),
        "TMPDIR": str(folder.resolve() / "tmp"),
        "PYTHONPATH": os.pathsep.join(path),
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
            if _size(folder) + log.stat().st_size > limits.disk_gib * GIB:
                reason = f"it wrote more than {limits.disk_gib:g} GiB"
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


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; links are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total
