"""What groups of the kernel hold and cannot give back, read cheaply and without delay.

Owns the arithmetic of a group's numbers, v1 and v2 alike. The rule kept: held is anonymous plus
shared memory. Page cache is not held: the kernel drops it before it kills or lets anyone stall.

Two traps of the kernel decide how it is read. A statistic costs 20 us and the exact counter of
what is charged 2 us, so the statistic is read again only when the counter has moved, or when there
is page cache that could have turned into something else meanwhile; it lags a little (64 pages for
each processor), so it is read a last time a while after. And the statistic of a group
*above* others lags up to 2 s behind without bound (45 MiB of 50 seen), so that what a node holds is
the sum over its groups, never the statistic of the node's group.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.cgroupfs import GroupFile

MOVED_BYTES = 65_536
CACHE_BYTES_MIN = 1 << 20
# What the kernel keeps for tasks (page tables, stacks) took 1.4 % of small Python programs. What
# lies beyond the share are caches of file names, which the kernel gives back.
KERNEL_SHARE_MAX = 1 / 16
LAG_NS = 3_000_000_000  # longer than the statistic of a node's group may lag behind


@dataclass(frozen=True, slots=True)
class Names:
    """What a version of cgroups calls its files and numbers."""

    usage: str
    anonymous: str
    shared: str
    cached: str  # shared memory counts here too


V1 = Names("memory.usage_in_bytes", "total_rss", "total_shmem", "total_cache")
V2 = Names("memory.current", "anon", "shmem", "file")


class HeldMemory:
    """The memory of one group and of those a task made below it."""

    def __init__(self, path: Path, names: Names) -> None:
        """Prepare to read the group's files, which are opened when they are first needed."""
        self._usage = GroupFile(path / names.usage)
        self._statistics = GroupFile(
            path / "memory.stat", names.anonymous, names.shared, names.cached
        )
        self._usage_bytes = -MOVED_BYTES
        self._moved_at_ns = self._read_at_ns = 0
        self._anonymous_bytes = 0
        self.shared_bytes = 0
        self.cache_bytes = 0
        self.peak_bytes = 0

    def read(self) -> int:
        """Return what is held now, and refresh the other numbers; 3 to 20 us. Raises OSError."""
        usage_bytes = self._usage.number()
        now_ns = time.monotonic_ns()
        moved = abs(usage_bytes - self._usage_bytes) >= MOVED_BYTES
        if moved:
            self._usage_bytes = usage_bytes
            self._moved_at_ns = now_ns
        # Once more when the statistic has surely caught up.
        caught_up = self._read_at_ns < self._moved_at_ns + LAG_NS <= now_ns
        if moved or caught_up or self.cache_bytes >= CACHE_BYTES_MIN:
            self._read_at_ns = now_ns
            self._anonymous_bytes, self.shared_bytes, cached_bytes = self._statistics.numbers()
            self.cache_bytes = max(0, cached_bytes - self.shared_bytes)
            self.peak_bytes = max(self.peak_bytes, self._anonymous_bytes + self.shared_bytes)
        return self._anonymous_bytes + self.shared_bytes

    def close(self) -> None:
        """Close the files."""
        self._usage.close()
        self._statistics.close()


class NodeHeld:
    """The memory of all groups of a node."""

    def __init__(self, base: Path, names: Names) -> None:
        """Prepare to read the node's group at `base`."""
        self._usage = GroupFile(base / names.usage)
        self._shared = GroupFile(base / "memory.stat", names.shared)
        self._left_at_ns = -LAG_NS
        self._left_bytes = (0, 0)

    def usage_bytes(self) -> int:
        """Return what is charged to the node's group, page cache and all; 2 us."""
        return self._usage.number()

    def read(self, groups: Iterable[HeldMemory]) -> int:
        """Return what the groups and what was left of ended ones hold; 3 us and more a group."""
        held_bytes = cache_bytes = shared_bytes = 0
        for group in groups:
            held_bytes += group.read()
            cache_bytes += group.cache_bytes
            shared_bytes += group.shared_bytes
        held_bytes += self._left(shared_bytes)
        kernel_bytes = max(0, self._usage.number() - held_bytes - cache_bytes)
        return held_bytes + min(kernel_bytes, int(held_bytes * KERNEL_SHARE_MAX))

    def _left(self, shared_bytes: int) -> int:
        """Return the shared memory that ended tasks left, files in /dev/shm for example.

        It stays charged to the node and cannot be reclaimed. Two looks must agree on it that are
        farther apart than the statistic lags.
        """
        now_ns = time.monotonic_ns()
        if now_ns - self._left_at_ns >= LAG_NS:
            (all_bytes,) = self._shared.numbers()
            self._left_at_ns = now_ns
            self._left_bytes = (self._left_bytes[1], max(0, all_bytes - shared_bytes))
        return min(self._left_bytes)

    def close(self) -> None:
        """Close the files."""
        self._usage.close()
        self._shared.close()
