"""The one group that all tasks of a node live in, with cgroup v2.

Owns the capacity of the node and what happens near its end. The rule kept: near the end of the
capacity tasks are slowed down until they stall, and the agent hears of it, so that the kernel
never has to kill at the capacity itself (`memory.max`).

How tasks stall. Beyond `memory.high` the kernel lets each task that takes memory sleep, for a
square of how far beyond: about 64 s x share^2 for each 256 KiB, and not at all below 1.25 %. So
`memory.high` lies a gap below the capacity, and once what cannot be reclaimed has reached it the
*brake* is put on: `memory.high` goes a sixteenth below what is used, where each 256 KiB take a
quarter of a second. `memory` puts it on and takes it off, so it has to be called when `stall_fd`
tells something and regularly after that. A task that sleeps wakes within two seconds; SIGKILL ends
it at once. Unlike v1, no system call fails meanwhile.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Iterable
from pathlib import Path

from agent.cgroupfs import write
from agent.group import EnforcementError, NodeMemory, gap_bytes
from agent.held import V2, HeldMemory, NodeHeld

LOG = logging.getLogger(__name__)

NO_LIMIT = "max"
BRAKE_SHARE = 1 / 16
# Page cache alone makes the kernel tell of `memory.high` a hundred times a second. Below this share
# of it nobody is near a stall, and nothing is listened to.
LISTEN_SHARE = 0.75
# The kernel's counts are a few pages per processor and group behind.
COUNT_SLACK_BYTES = 2 << 20


class Cgroup2Node:
    """The node's group; made over an existing directory whose memory is accounted."""

    def __init__(self, base: Path) -> None:
        """Open what tells of a stall. Raises OSError."""
        self._base = base
        self._capacity_bytes: int | None = None
        self._high_bytes: int | None = None
        self._braked = False
        self._held = NodeHeld(base, V2)
        # The file becomes "urgent", not readable, when its numbers change; an epoll around it
        # turns that into a descriptor that is readable, as event loops want it.
        self._events = os.open(base / "memory.events.local", os.O_RDONLY | os.O_CLOEXEC)
        self._stall = select.epoll()
        self._listening = False
        self.clear_stall()

    def set_capacity(self, capacity_bytes: int | None) -> int | None:
        """Set where tasks stall and where they must stop, or as near as use lets them come."""
        try:
            return self._set_capacity(capacity_bytes)
        except OSError as error:
            message = f"{self._base}: capacity {capacity_bytes} refused: {error.strerror}"
            raise EnforcementError(message) from error

    def _set_capacity(self, capacity_bytes: int | None) -> int | None:
        self._braked = False
        if capacity_bytes is None:
            write(self._base / "memory.max", NO_LIMIT)
            write(self._base / "memory.high", NO_LIMIT)
            self._capacity_bytes = self._high_bytes = None
            return None
        # First the one that never kills: it slows tasks down while the other is found.
        high_bytes = max(0, capacity_bytes - gap_bytes(capacity_bytes))
        write(self._base / "memory.high", str(high_bytes))
        # A limit below what is used would make the kernel kill; what it could reclaim is gone now.
        current_bytes = self._held.usage_bytes()
        if current_bytes > high_bytes:
            set_bytes = max(capacity_bytes, current_bytes + gap_bytes(capacity_bytes))
        else:
            set_bytes = capacity_bytes
        write(self._base / "memory.max", str(set_bytes))
        if set_bytes != capacity_bytes:
            LOG.warning(
                "tasks hold more than the capacity: limit_bytes=%d capacity_bytes=%d",
                set_bytes,
                capacity_bytes,
            )
        self._capacity_bytes = set_bytes
        self._high_bytes = high_bytes
        return set_bytes

    def memory(self, groups: Iterable[HeldMemory]) -> NodeMemory:
        """Return what the given groups, all of the node's, hold; put the brake on or take it off.

        `limit_bytes` is where tasks begin to stall.
        """
        used_bytes = self._held.read(groups)
        high_bytes = self._high_bytes
        self._listen(high_bytes is not None and used_bytes >= high_bytes * LISTEN_SHARE)
        if high_bytes is None:
            return NodeMemory(used_bytes, None, stalled=False)
        if not self._braked:
            # Page cache alone reaches this level too, which is no stall: it gives way.
            at_level = self._held.usage_bytes() + COUNT_SLACK_BYTES >= high_bytes
            if at_level and used_bytes + gap_bytes(high_bytes) // 4 >= high_bytes:
                self._set_brake(int(used_bytes * (1 - BRAKE_SHARE)), on=True)
        elif used_bytes + gap_bytes(high_bytes) // 2 < high_bytes:
            self._set_brake(high_bytes, on=False)
        return NodeMemory(used_bytes, high_bytes, self._braked)

    def _set_brake(self, high_bytes: int, *, on: bool) -> None:
        write(self._base / "memory.high", str(high_bytes))
        self._braked = on

    def _listen(self, on: bool) -> None:
        # What happened meanwhile is told at once when listening begins.
        if on and not self._listening:
            self._stall.register(self._events, select.EPOLLPRI)
        elif self._listening and not on:
            self._stall.unregister(self._events)
        self._listening = on

    def stall_fd(self) -> int:
        """Return the descriptor that is readable when tasks came to their end of memory."""
        return self._stall.fileno()

    def clear_stall(self) -> None:
        """Make it ready for the next change."""
        os.pread(self._events, 4096, 0)

    def close(self) -> None:
        """Close everything, also when it is closed already; the directory is the caller's."""
        self._held.close()
        if not self._stall.closed:
            self._stall.close()
            os.close(self._events)
