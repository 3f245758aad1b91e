"""The other side of `isolation`: a process that gives up what it does not need, then becomes the command it is to run.

Run as `python -P -m harness.confine SPEC`, where SPEC is JSON of `Confinement`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

# From linux/sched.h, mount.h, prctl.h and capability.h.
NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    0x20000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 2, 0x8000, 1
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
CAPABILITIES, CAPABILITY_VERSION = 64, 0x20080522
SYS_MOUNT_SETATTR = 442
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
DEVICES = ("null", "zero", "full", "random", "urandom")
SHARED_MEMORY = 256 * 2**20
MOST_THREADS = 4096


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What a command may use.

    Args:
        command: what runs in the end.
        namespaces: whether this process makes them, with no network and a file system of its own.
        readable: files and folders that are seen, where there are namespaces; all read-only.
        writable: the one folder that can be written there.
        largest_file: in bytes.
    """

    command: tuple[str, ...]
    namespaces: bool
    readable: tuple[str, ...]
    writable: str
    largest_file: int


def confine(spec: Confinement) -> None:
    """Give up everything that the command does not need, and become it; does not return.

    Raises:
        OSError: the system does not allow a part of it.
    """
    _end_with_parent()
    limit(spec.largest_file)
    if spec.namespaces:
        _enter(spec)
        resource.setrlimit(resource.RLIMIT_NPROC, (MOST_THREADS, MOST_THREADS))
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
    else:
        _supervise()
    os.chdir(spec.writable)
    os.execv(spec.command[0], spec.command)  # noqa: S606


def _end_with_parent() -> None:
    """End with the harness, however that ends: nobody would watch any more."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit(largest_file: int) -> None:
    """Set what every way of isolation has: no core dumps, no huge files, the first to go when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    files = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    # Whatever a child leaves behind becomes a child of this process, so that it is found and ended.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    Path("/proc/self/oom_score_adj").write_text("1000")


def _supervise() -> None:
    """Go on in a child; the process outside waits, and ends whatever the child leaves behind."""
    child = os.fork()
    if not child:
        _end_with_parent()
        return
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    while left := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for one in left:
            os.kill(int(one), signal.SIGKILL)
            os.waitpid(int(one), 0)
    sys.exit(code % 256)


def _enter(spec: Confinement) -> None:
    """Go on in namespaces of users, mounts, processes, network and IPC; the process outside waits, and ends with it."""
    user, group = os.getuid(), os.getgid()
    _check(_libc().unshare(NEW_USER | NEW_MOUNTS | NEW_PIDS | NEW_NETWORK | NEW_IPC | NEW_UTS), "unshare")
    _end_with_parent()  # the kernel forgets it with other capabilities
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
    _end_with_parent()
    _build_root(spec)
    # In a namespace of its own, code would have capabilities again, and could mount what nobody counts.
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    _read_only("/", unless=spec.writable)
    _mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"size={SHARED_MEMORY}")  # noqa: S108
    _drop_capabilities()


def _build_root(spec: Confinement) -> None:
    """Make a root that holds only what is readable, the writable folder, and harmless devices; and go there."""
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    root = Path(spec.writable) / "root"
    root.mkdir(exist_ok=True)
    _mount("tmpfs", str(root), "tmpfs", MS_NOSUID | MS_NODEV, "size=16m")
    for device in DEVICES:
        _show(f"/dev/{device}", root)
    for path in sorted(spec.readable):
        _show(path, root)
    for folder in ("proc", "dev/shm"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    # Only while the old one is still in sight may a new one be mounted.
    _mount("proc", str(root / "proc"), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    writable = Path(f"{root}{spec.writable}")
    writable.mkdir(parents=True, exist_ok=True)
    _mount(spec.writable, str(writable), "", MS_BIND)
    os.chdir(root)
    _check(_libc().syscall(SYS_PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def _show(path: str, root: Path) -> None:
    """Let a file, folder or link appear at the same place below a new root."""
    source, target = Path(path), Path(f"{root}{path}")
    if target.is_symlink() or not (source.exists() or source.is_symlink()):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
        return
    if source.is_dir():
        target.mkdir(exist_ok=True)
    elif not target.exists():
        target.touch()
    _mount(path, str(target), "", MS_BIND | MS_REC)


def _read_only(path: str, unless: str) -> None:
    """Make every mount below a path read-only, but one."""

    class Attributes(ctypes.Structure):
        """`struct mount_attr`."""

        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user")]

    for place, flags, attributes in (
        (path, AT_RECURSIVE, Attributes(set=MOUNT_ATTR_RDONLY)),
        (unless, 0, Attributes(clear=MOUNT_ATTR_RDONLY)),
    ):
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        result = _libc().syscall(SYS_MOUNT_SETATTR, -100, place.encode(), flags, ctypes.byref(attributes), size)
        _check(result, "mount_setattr")


def _drop_capabilities() -> None:
    """Keep no capability, and none to be had back by executing anything."""
    for capability in range(CAPABILITIES):
        _libc().prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for those that the kernel does not know
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    _check(_libc().capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    _check(_libc().mount(*arguments), f"mount {target}")


def _prctl(option: int, value: int) -> None:
    _check(_libc().prctl(option, value, 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    try:
        confine(msgspec.json.decode(sys.argv[1], type=Confinement))
    except OSError as failure:
        sys.exit(f"This process cannot be confined ({failure}).")
