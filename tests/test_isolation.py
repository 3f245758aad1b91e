"""Isolation: what a process cannot do, and what stops one that does too much."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.confine import SHARED_MEMORY
from harness.isolation import Ended, Limits, Way, _environment, best_way, lacks, run, why_not

CLOSED: tuple[Way, ...] = ("bubblewrap", "namespaces")
WAYS: tuple[Way, ...] = (*CLOSED, "limits alone")
SECRET = "BENCH_TEST_TOKEN"


def run_code(code: str, tmp_path: Path, way: Way, limits: Limits | None = None) -> tuple[Ended, str]:
    if way != "limits alone" and (reason := why_not(way)):
        pytest.skip(f"{way}: {reason}")
    folder, log = tmp_path / "work", tmp_path / "log.txt"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", code]
    ended = run(command, folder=folder, readable=(), limits=limits or Limits(seconds=30), log=log, way=way)
    return ended, log.read_text()


@pytest.mark.parametrize("way", WAYS)
def test_a_good_process_writes_its_folder_and_ends(way: Way, tmp_path: Path) -> None:
    code = "import os, pathlib; pathlib.Path('made').write_text('x'); print(os.environ['HOME']); raise SystemExit(7)"
    ended, log = run_code(code, tmp_path, way)
    assert ended == Ended(7)
    assert (tmp_path / "work" / "made").read_text() == "x"
    assert log.strip() == str(tmp_path / "work" / "home")


@pytest.mark.parametrize("way", WAYS)
def test_no_token_is_in_the_environment(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "secret")
    _, log = run_code("import os; print(sorted(os.environ))", tmp_path, way)
    assert "TMPDIR" in log
    assert SECRET not in log


@pytest.mark.parametrize("way", CLOSED)
def test_files_outside_are_neither_seen_nor_written(way: Way, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    code = f"""
import os
for path, mode in (({str(secret)!r}, "r"), ({str(tmp_path / "canary")!r}, "w"), (os.__file__ + "x", "w"), ("/x", "w")):
    try:
        print(open(path, mode))
    except OSError as error:
        print(error.errno)
"""
    ended, log = run_code(code, tmp_path, way)
    assert ended == Ended(0)
    # No such file; a folder that is not there or read-only.
    assert [int(line) in (2, 30) for line in log.split()] == [True] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "secret.txt", "work"]


@pytest.mark.parametrize("way", CLOSED)
def test_there_is_no_network(way: Way, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        code = f"import socket\ntry:\n    socket.create_connection({address!r}, 3)\n"
        code += "except OSError as error:\n    print(error)"
        _, log = run_code(code, tmp_path, way)
        assert "refused" in log or "unreachable" in log
        _, log = run_code(code + "\nelse:\n    print('through')", tmp_path, "limits alone")
        assert log == "through\n"
    assert "network" in " ".join(lacks("limits alone"))
    assert lacks(way) == ()


@pytest.mark.parametrize("way", CLOSED)
def test_no_capability_is_kept_and_none_can_be_had_back(way: Way, tmp_path: Path) -> None:
    code = """
import ctypes
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")])
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0x10000000 | 0x20000))
print(libc.mount(b"none", b"/usr", None, ctypes.c_ulong(32 | 4096), None))
try:
    open("/usr/canary", "w")
except OSError as error:
    print(error.errno)
"""
    _, log = run_code(code, tmp_path, way)
    assert log.splitlines() == [str(["0" * 16] * 5), "-1", "-1", "30"]


@pytest.mark.parametrize("way", CLOSED)
def test_nothing_of_the_machine_can_be_set_and_no_device_be_added(way: Way, tmp_path: Path) -> None:
    # Root owns the settings, and needs no capability; the first of these names a program that the kernel runs.
    paths = (
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/self/oom_score_adj", "/dev/x", "/sys/x",
    )  # fmt: skip
    code = f"""
import os
for path in {paths}:
    try:
        print(os.open(path, os.O_WRONLY | os.O_CREAT))
    except OSError as error:
        print(error.errno in (13, 30))
"""
    _, log = run_code(code, tmp_path, way)
    assert log.split() == ["True"] * len(paths)


@pytest.mark.parametrize("way", CLOSED)
def test_shared_memory_has_a_size(way: Way, tmp_path: Path) -> None:
    code = "import os; found = os.statvfs('/dev/shm'); print(found.f_blocks * found.f_frsize)"
    _, log = run_code(code, tmp_path, way)
    assert int(log) == SHARED_MEMORY


def test_what_an_earlier_run_left_at_home_is_not_imported(tmp_path: Path) -> None:
    # Unlike that of a virtual environment, the Python below imports what a user's home holds.
    words = [sys._base_executable, "-c", "import site; print(site.ENABLE_USER_SITE)"]  # type: ignore[attr-defined]
    done = subprocess.run(words, env=_environment(tmp_path), capture_output=True, text=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("way", CLOSED)
def test_other_processes_are_out_of_sight(way: Way, tmp_path: Path) -> None:
    _, log = run_code("import os; print(len([name for name in os.listdir('/proc') if name.isdigit()]))", tmp_path, way)
    assert int(log) <= 3


def test_an_endless_loop_is_stopped(tmp_path: Path) -> None:
    ended, _ = run_code("while True: pass", tmp_path, best_way(), Limits(seconds=1))
    assert ended.stopped == "it ran for more than 1 s"


def test_a_memory_hog_is_stopped(tmp_path: Path) -> None:
    code = "import time\nkept = []\nfor _ in range(60):\n    kept.append(bytearray(10**7)); time.sleep(0.05)"
    ended, _ = run_code(code, tmp_path, best_way(), Limits(seconds=30, memory_gib=0.2))
    assert ended.stopped.startswith("it used 0.")
    assert ended.stopped.endswith("GiB of memory; the limit is 0.2 GiB")


@pytest.mark.parametrize("way", WAYS)
def test_a_fork_bomb_is_stopped_with_all_its_processes(way: Way, tmp_path: Path) -> None:
    # Each child leaves its group and its parent, as one would that wants to stay; there are at most 60.
    code = """
import os, time
for _ in range(60):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        open("pids", "a").write("x")
        time.sleep(60)
        os._exit(0)
    time.sleep(0.02)
time.sleep(60)
"""
    ended, _ = run_code(code, tmp_path, way, Limits(seconds=30, processes=12))
    assert ended.stopped.endswith("processes at once; the limit is 12")
    assert (tmp_path / "work" / "pids").stat().st_size >= 5
    time.sleep(0.2)
    home = str(tmp_path / "work" / "home")
    assert home not in [(one.info["environ"] or {}).get("HOME") for one in psutil.process_iter(["environ"])]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_behind(way: Way, tmp_path: Path) -> None:
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)"
    assert run_code(code, tmp_path, way)[0] == Ended(0)
    time.sleep(0.1)
    home = str(tmp_path / "work" / "home")
    assert home not in [(one.info["environ"] or {}).get("HOME") for one in psutil.process_iter(["environ"])]


def test_a_file_and_a_folder_have_a_largest_size(tmp_path: Path) -> None:
    _, log = run_code("open('big', 'wb').write(bytes(3 * 2**20))", tmp_path, best_way(), Limits(disk_gib=2 / 1024))
    assert "File too large" in log
    (tmp_path / "work" / "big").unlink()
    code = "import time\nfor n in range(8):\n    open(str(n), 'wb').write(bytes(2**20))\ntime.sleep(20)"
    ended, _ = run_code(code, tmp_path, best_way(), Limits(seconds=30, disk_gib=2 / 1024))
    assert ended.stopped == "it wrote more than 0.00195312 GiB"


HIDDEN = {
    "without a name": "import os\nfor n in range(4):\n    f = open('f', 'wb'); os.unlink('f'); "
    "f.write(bytes(2**20)); f.flush(); os.dup(f.fileno())",
    "in memory": "import os\nfor n in range(4):\n    os.write(os.memfd_create('f'), bytes(2**20))",
    "empty": "import os\nos.mkdir('f')\nfor n in range(1000):\n    open(f'f/{n}', 'w').close()",
    "out of reach": "import os\nfor n in range(100):\n    os.mkdir('f'); os.chdir('f')",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_files_are_counted_where_no_folder_shows_them(name: str, tmp_path: Path) -> None:
    code = f"{HIDDEN[name]}\nimport time; time.sleep(20)"
    ended, _ = run_code(code, tmp_path, best_way(), Limits(seconds=30, disk_gib=2 / 1024))
    assert ended.stopped.startswith("it wrote more than 0.00195312 GiB")


def test_an_interruption_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.isolation as isolation

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    def alive() -> set[int]:
        children = psutil.Process(os.getpid()).children()
        return {one.pid for one in children if one.status() != psutil.STATUS_ZOMBIE}

    before = alive()
    monkeypatch.setattr(isolation, "_too_much", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_code("import time; time.sleep(60)", tmp_path, "limits alone")
    assert alive() <= before
