"""The one group that all tasks of a node live in, with cgroup v1.

Owns the capacity of the node and what happens at its end. The rule kept: at the end of the
capacity nobody is killed by the kernel. Its killer is switched off for this group, so that a task
which touches one page more *stalls* until something is freed or the capacity is raised; the
agent hears of it by an eventfd and must free memory at once. The groups of single tasks inherit
the switch and must turn it back, so that each one's own limit still kills it.

What the switch cannot do: only page faults of the program itself wait. A system call that needs
memory then - fork, exec, reading into a fresh buffer, even a write - fails with ENOMEM instead, of
which no eventfd tells. So no task should be started during a stall, a stall must be short, and the
highest use is looked at to know when that may have happened.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from agent.cgroupfs import GroupFile, write
from agent.group import GAP_SHARE, EnforcementError, NodeMemory, gap_bytes
from agent.held import V1, HeldMemory, NodeHeld

LOG = logging.getLogger(__name__)

NO_LIMIT = "-1"
LOWERINGS_MAX = 12  # each leaves twice as much room above use as the one before
LOWERING_STEP_BYTES = 1 << 20
# The kernel charges processors some pages ahead, so the highest use may lie a little below the end.
HIGHEST_SLACK_BYTES = 1 << 20
# Page cache reaches the end as well and gives way: what is held must have been nearer to it than
# twice the gap that the guard keeps, which is what use can rise by between two looks.
HELD_NEAR_SHARE = 2 * GAP_SHARE


class OomEvents:
    """Counts how often the kernel told a group that its memory, or one's further up, has ended."""

    def __init__(self, path: Path) -> None:
        """Ask the kernel to tell. Raises OSError where it cannot."""
        self._descriptor = _open_oom_event(path)
        self._count = 0

    def count(self) -> int:
        """Return how often since this object was made."""
        self._count += _take_events(self._descriptor)
        return self._count

    def close(self) -> None:
        """Ask no more."""
        os.close(self._descriptor)


def _open_oom_event(path: Path) -> int:
    """Return an eventfd that counts ends of memory of the group and of those above it."""
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        control = os.open(path / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            write(path / "cgroup.event_control", f"{event} {control}")
        finally:
            os.close(control)
    except OSError:
        os.close(event)
        raise
    return event


def _take_events(descriptor: int) -> int:
    try:
        return os.eventfd_read(descriptor)
    except BlockingIOError:
        return 0


class Cgroup1Node:
    """The node's group; made over an existing directory."""

    def __init__(self, base: Path) -> None:
        """Open the group's files and switch the kernel's killer off. Raises OSError."""
        self._base = base
        self.counts_swap = (base / "memory.memsw.limit_in_bytes").exists()
        self._capacity_bytes: int | None = None
        self._held = NodeHeld(base, V1)
        self._control = GroupFile(base / "memory.oom_control", "under_oom")
        self._highest = GroupFile(base / "memory.max_usage_in_bytes")
        self._used_before_bytes = 0  # at the last reading
        self._refused_at_ns: int | None = None
        self._stall_fd: int | None = None
        self._counter: OomEvents | None = None
        try:
            write(base / "memory.oom_control", "1")
            self._stall_fd = _open_oom_event(base)
            self._counter = OomEvents(base)
        except OSError as error:
            LOG.warning("the kernel kills at the end of the capacity: %s", error.strerror)

    @property
    def stalls_at_its_end(self) -> bool:
        """Tell whether tasks stall instead of dying when the capacity is used up."""
        return self._stall_fd is not None

    def set_capacity(self, capacity_bytes: int | None) -> int | None:
        """Set memory and memory + swap to the capacity, or as near as use lets them come."""
        try:
            return self._set_capacity(capacity_bytes)
        except OSError as error:
            message = f"{self._base}: capacity {capacity_bytes} refused: {error.strerror}"
            raise EnforcementError(message) from error

    def _set_capacity(self, capacity_bytes: int | None) -> int | None:
        if capacity_bytes is None:
            self._raise_or_lower(NO_LIMIT, rising=True)
            self._capacity_bytes = None
            return None
        old_bytes = self._capacity_bytes
        rising = old_bytes is not None and capacity_bytes >= old_bytes
        if rising:
            self._raise_or_lower(str(capacity_bytes), rising=True)
            self._capacity_bytes = capacity_bytes
            return capacity_bytes
        set_bytes = capacity_bytes
        for attempt in range(LOWERINGS_MAX):
            try:
                self._raise_or_lower(str(set_bytes), rising=False)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            else:
                break
            set_bytes = self._held.usage_bytes() + (LOWERING_STEP_BYTES << attempt)
            if old_bytes is not None and set_bytes >= old_bytes:
                set_bytes = old_bytes
                break  # it grows as fast as it is looked at: what is in force stays
        else:
            return self._capacity_bytes
        if set_bytes != capacity_bytes:
            LOG.warning(
                "tasks hold more than the capacity: limit_bytes=%d capacity_bytes=%d",
                set_bytes,
                capacity_bytes,
            )
        self._capacity_bytes = set_bytes
        return set_bytes

    def _raise_or_lower(self, text: str, *, rising: bool) -> None:
        # The kernel keeps memory <= memory + swap at every moment, hence the order.
        files = ["memory.limit_in_bytes"]
        if self.counts_swap:
            files.append("memory.memsw.limit_in_bytes")
        for file in reversed(files) if rising else files:
            write(self._base / file, text)

    def memory(self, groups: Iterable[HeldMemory]) -> NodeMemory:
        """Return what the given groups, all of the node's, hold together."""
        (under_oom,) = self._control.numbers()
        stalled = self.stalls_at_its_end and under_oom != 0
        capacity_bytes = self._capacity_bytes
        limit_bytes = None if capacity_bytes is None else capacity_bytes - gap_bytes(capacity_bytes)
        used_bytes = self._held.read(groups)
        if stalled or self._reached_its_end(used_bytes):
            self._refused_at_ns = time.monotonic_ns()
        return NodeMemory(used_bytes, limit_bytes, stalled, self._refused_at_ns)

    def _reached_its_end(self, used_bytes: int) -> bool:
        """Say whether the capacity was reached since the last call, by what cannot be reclaimed."""
        before_bytes, self._used_before_bytes = self._used_before_bytes, used_bytes
        capacity_bytes = self._capacity_bytes
        if capacity_bytes is None:
            return False
        if self._highest.number() < capacity_bytes - HIGHEST_SLACK_BYTES:
            return False
        write(self._base / "memory.max_usage_in_bytes", "0")  # from now on what is reached anew
        return max(before_bytes, used_bytes) >= capacity_bytes * (1 - HELD_NEAR_SHARE)

    def stall_fd(self) -> int | None:
        """Return the eventfd that the kernel signals when a stall begins."""
        return self._stall_fd

    def clear_stall(self) -> None:
        """Take what was signalled so far."""
        if self._stall_fd is not None:
            _take_events(self._stall_fd)

    def stall_count(self) -> int | None:
        """Return how many ends of memory were told to this group and all below it so far."""
        return None if self._counter is None else self._counter.count()

    def close(self) -> None:
        """Close everything; the directory is the caller's."""
        self._control.close()
        self._highest.close()
        self._held.close()
        if self._stall_fd is not None:
            os.close(self._stall_fd)
            self._stall_fd = None
        if self._counter is not None:
            self._counter.close()
            self._counter = None
