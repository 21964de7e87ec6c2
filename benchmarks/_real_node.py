"""A node for the memory benchmarks: a group of cgroup v1 or v2 with a hard limit, and an observer.

Owns the group and what runs in it; everything is ended and removed at `close`. The observer trusts
no scheduler: what began and ended it reads from the tasks' own log, what they hold from /proc, and
what the kernel killed from its log. Needs root and a memory controller.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

V2 = Path("/sys/fs/cgroup")
HAS_V2 = (V2 / "cgroup.controllers").exists()
MOUNT = V2 if HAS_V2 else V2 / "memory"
LIMIT = "memory.max" if HAS_V2 else "memory.limit_in_bytes"
SWAP_LIMIT = "memory.swap.max" if HAS_V2 else "memory.memsw.limit_in_bytes"  # v1: with memory
HOG_SOURCE = Path(__file__).with_name("hog.c")
LOOK_SECONDS = 0.05
PAGE = os.sysconf("SC_PAGE_SIZE")
GIB = 1 << 30
KILLED = re.compile(rb"Memory cgroup out of memory: Killed process (\d+)")
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
# For a tool that knows the machine's memory only: it is shown the node's.
ENTER_VIEW = (
    'echo $$ > "$0/cgroup.procs" && export MEMINFO="$1" && shift && exec unshare -m sh -c'
    ' \'mount --bind "$MEMINFO" /proc/meminfo && exec "$0" "$@"\' "$@"'
)


@dataclass(slots=True)
class Run:
    """One attempt of a task as it was seen; seconds of the monotonic clock, bytes."""

    name: str
    pid: int
    began: float
    ended: float | None = None
    succeeded: bool = False
    kernel_killed: bool = False
    seen: float = 0.0
    resident: int = 0
    byte_seconds: float = 0.0


class MemoryNode:
    """A node of a fixed memory. Close it."""

    def __init__(self, name: str, memory_bytes: int, directory: Path) -> None:
        self.memory_bytes = memory_bytes
        self.group = MOUNT / f"mass-bench-{name}"
        self.log = directory / "hogs.log"
        self.hog = directory / "hog"
        self.runs: list[Run] = []
        self.used: list[tuple[float, int]] = []
        self._meminfo = directory / "meminfo"
        self._live: dict[int, Run] = {}
        self._killed: set[int] = set()
        self._read_to = 0
        self._stopping = threading.Event()
        compiler = os.environ.get("CC", "gcc")
        subprocess.run([compiler, "-O2", "-o", str(self.hog), str(HOG_SOURCE)], check=True)
        self.log.touch()
        self._clear()
        _make_group(self.group)
        (self.group / LIMIT).write_text(str(memory_bytes))
        with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting
            (self.group / SWAP_LIMIT).write_text("0" if HAS_V2 else str(memory_bytes))
        self._kernel_log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._kernel_log, 0, os.SEEK_END)
        self._write_meminfo(0)
        self._thread = threading.Thread(target=self._observe, daemon=True)
        self._thread.start()

    def __enter__(self) -> MemoryNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs in the node and remove it."""
        self._stopping.set()
        self._thread.join()
        os.close(self._kernel_log)
        self._clear()

    def inside(self, command: Sequence[str], *, view: bool = False) -> list[str]:
        """Return a command that runs this one inside; with `view` /proc/meminfo is the node's."""
        if view:
            return ["sh", "-c", ENTER_VIEW, str(self.group), str(self._meminfo), *command]
        return ["sh", "-c", ENTER, str(self.group), *command]

    def command(self, name: str, profile: Sequence[tuple[float, float]]) -> list[str]:
        """Return the command of a task: its profile is (seconds, MiB) by step."""
        return [str(self.hog), str(self.log), name, *(f"{s:.2f}:{m:.0f}" for s, m in profile)]

    def settle(self, seconds_max: float = 20.0) -> None:
        """Return when no attempt is alive, so that every end has been seen."""
        deadline = time.monotonic() + seconds_max
        while time.monotonic() < deadline:
            time.sleep(4 * LOOK_SECONDS)
            if not self._live:
                break
        for run in self.runs:
            run.kernel_killed = run.pid in self._killed and not run.succeeded

    def _observe(self) -> None:
        while not self._stopping.is_set():
            now = time.monotonic()
            self._read_log()
            self._weigh(now)
            self._read_kernel_log()
            used = self._used_bytes()
            self.used.append((now, used))
            self._write_meminfo(used)
            self._stopping.wait(max(0.0, LOOK_SECONDS - (time.monotonic() - now)))

    def _read_log(self) -> None:
        with self.log.open("rb") as file:
            file.seek(self._read_to)
            lines = file.read().split(b"\n")[:-1]
        for line in lines:
            self._read_to += len(line) + 1
            what, name, number, at = line.decode().split()
            pid, instant = int(number), float(at)
            if what == "begin":
                run = Run(name, pid, instant, seen=instant)
                self.runs.append(run)
                self._live[pid] = run
                continue
            ended = self._live.pop(pid, None)
            if ended is None:  # it was not seen alive in the last look
                ended = next(run for run in reversed(self.runs) if run.pid == pid)
            ended.ended, ended.succeeded = instant, True

    def _weigh(self, now: float) -> None:
        for pid, run in list(self._live.items()):
            try:
                resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
            except (OSError, IndexError):
                resident = 0
            if not resident:  # it has died without a word
                run.ended = run.seen
                del self._live[pid]
                continue
            run.byte_seconds += (now - run.seen) * (resident + run.resident) / 2
            run.seen, run.resident = now, resident

    def _read_kernel_log(self) -> None:
        while True:
            try:
                found = KILLED.search(os.read(self._kernel_log, 8192))
            except BlockingIOError:
                return
            except OSError:  # overwritten before it was read
                continue
            if found:
                self._killed.add(int(found[1]))

    def _used_bytes(self) -> int:
        try:
            lines = (self.group / "memory.stat").read_text().splitlines()
        except OSError:
            return 0
        values = dict(line.split() for line in lines)
        names = ("anon", "shmem") if HAS_V2 else ("total_rss", "total_shmem")
        return sum(int(values.get(name, 0)) for name in names)

    def _write_meminfo(self, used_bytes: int) -> None:
        free = (self.memory_bytes - used_bytes) >> 10
        rows = {"MemTotal": self.memory_bytes >> 10, "MemFree": free, "MemAvailable": free}
        rows |= dict.fromkeys(("Buffers", "Cached", "SwapCached", "SwapTotal", "SwapFree"), 0)
        text = "".join(f"{name + ':':16}{max(0, value):12d} kB\n" for name, value in rows.items())
        # In place: the file is mounted elsewhere.
        descriptor = os.open(self._meminfo, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(descriptor, text.encode(), 0)
        os.close(descriptor)

    def _clear(self) -> None:
        """End all members, deepest first, and remove the groups."""
        for directory, _, _ in os.walk(self.group, topdown=False):
            group = Path(directory)
            for _ in range(100):
                try:
                    pids = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
                    for pid in pids:
                        os.kill(pid, signal.SIGKILL)
                    if not pids:
                        group.rmdir()
                        break
                except OSError:
                    pass  # it has gone, or is still going
                time.sleep(LOOK_SECONDS)


def probe() -> str:
    """Return why no node can be made here; empty when one can."""
    if os.geteuid() != 0:
        return "making a node needs root"
    trial = MOUNT / f"mass-bench-probe-{os.getpid()}"
    try:
        _make_group(trial)
        trial.rmdir()
    except OSError as error:
        return f"no group of the memory controller can be made at {MOUNT}: {error}"
    return ""


def _make_group(group: Path) -> None:
    if HAS_V2:
        (MOUNT / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
