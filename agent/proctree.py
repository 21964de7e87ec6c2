"""Reads processes from /proc: who is whose child, and how much memory they use.

Owns the parsing of /proc/<pid>. The rule kept: a process is identified by pid and start time
together, because a pid alone may mean another process a moment later.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PROC = "/proc"


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One line of the process table; `start_ticks` are clock ticks since boot."""

    pid: int
    state: str
    parent_pid: int
    process_group: int
    session: int
    start_ticks: int
    rss_bytes: int

    @property
    def alive(self) -> bool:
        """Tell whether it still runs; a zombie uses nothing and cannot be killed."""
        return self.state not in "ZX"

    @property
    def identity(self) -> tuple[int, int]:
        """Return (pid, start_ticks), which no other process of this boot shares."""
        return self.pid, self.start_ticks


def read_process(pid: int) -> ProcessEntry | None:
    """Return the process, or None when there is none; about 15 us."""
    try:
        text = Path(f"{PROC}/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may hold spaces and parentheses itself: cut at the last one.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessEntry(
        pid=pid,
        state=fields[0],
        parent_pid=int(fields[1]),
        process_group=int(fields[2]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        rss_bytes=int(fields[21]) * PAGE_BYTES,
    )


def read_processes() -> dict[int, ProcessEntry]:
    """Return every process that can be seen, by pid; about 15 us for each."""
    pids = (int(name) for name in os.listdir(PROC) if name.isdigit())
    return {entry.pid: entry for pid in pids if (entry := read_process(pid)) is not None}


def read_variable(pid: int, name: str) -> str | None:
    """Return a variable of the environment a process was started with, if it may be read."""
    try:
        block = Path(f"{PROC}/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    prefix = os.fsencode(name) + b"="
    for variable in block.split(b"\0"):
        if variable.startswith(prefix):
            return os.fsdecode(variable[len(prefix) :])
    return None


def proportional_bytes(pid: int) -> int | None:
    """Return the process's share of what it maps (PSS), or None when it may not be read.

    One that has ended uses nothing: 0. Its resident size of a moment ago would count the pages
    again that it shared with those who live on.

    Shared pages count by the number of their users, so a tree's sum is right where the sum of
    resident sizes counts them again for each process. Costs about 8 ms for a large process.
    """
    try:
        text = Path(f"{PROC}/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except PermissionError:
        return None
    except ProcessLookupError:
        return 0  # it has given its memory back, though it may still be listed
    except FileNotFoundError:
        return 0 if read_process(pid) is None else None  # a kernel may lack this file
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def close_over_children(
    roots: set[int], processes: dict[int, ProcessEntry]
) -> dict[int, ProcessEntry]:
    """Return the living processes that are a root or descend from one."""
    children: dict[int, list[int]] = {}
    for entry in processes.values():
        children.setdefault(entry.parent_pid, []).append(entry.pid)
    members: dict[int, ProcessEntry] = {}
    waiting = [pid for pid in roots if pid in processes]
    while waiting:
        pid = waiting.pop()
        if pid not in members:
            members[pid] = processes[pid]
            waiting.extend(children.get(pid, ()))
    return {pid: entry for pid, entry in members.items() if entry.alive}


def send_signal(pids: Iterable[int], number: int) -> int:
    """Signal each process that still exists; return how many were reached."""
    reached = 0
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        reached += 1
    if number == signal.SIGTERM:
        # A stopped process acts on SIGTERM only once it continues.
        send_signal(pids, signal.SIGCONT)
    return reached


@dataclass(frozen=True, slots=True)
class Life:
    """One life of an agent process; written into names so that leftovers can be told apart."""

    pid: int
    start_ticks: int

    @classmethod
    def mine(cls) -> Life:
        """Return the life of this process."""
        entry = read_process(os.getpid())
        assert entry is not None, "this process is in its own /proc"
        return cls(*entry.identity)

    @property
    def is_over(self) -> bool:
        """Tell whether that process has ended."""
        entry = read_process(self.pid)
        return entry is None or not entry.alive or entry.start_ticks != self.start_ticks

    def __str__(self) -> str:
        return f"{self.pid}-{self.start_ticks}"

    @classmethod
    def parse(cls, text: str) -> Life | None:
        """Return the life that `str` wrote, or None for anything else."""
        pid, _, start_ticks = text.partition("-")
        if pid.isdecimal() and start_ticks.isdecimal():
            return cls(int(pid), int(start_ticks))
        return None
