"""What holds the processes of one attempt together, whichever way memory is enforced.

Owns the values that enforcement hands out: the group a launcher waits in, and what is known of the
memory of one group and of all together. The rule kept: a group is one attempt's for its whole life
and is never used again.
"""

from __future__ import annotations

from dataclasses import dataclass

# At the very end of the capacity tasks suffer before any of them is ended: v2 puts them to sleep,
# v1 lets their page faults wait and refuses what else they ask of the kernel. So the guard works
# this far below it.
GAP_SHARE = 1 / 32
GAP_BYTES_MIN, GAP_BYTES_MAX = 8 << 20, 1 << 30


class EnforcementError(Exception):
    """The machine refused something about a group; the message names group, value and reason."""


class LimitRefused(EnforcementError):
    """The limit lies below what the group uses and cannot be freed; the old limit stays."""


@dataclass(frozen=True, slots=True)
class Group:
    """One prepared group.

    `join_paths` are the cgroup.procs files a launcher writes itself into, slow ones first;
    `variables` are added to the environment of what is started in it.
    """

    name: str
    join_paths: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """All groups of the node together.

    `used_bytes` cannot be reclaimed. `limit_bytes` is what they should stay below, a gap below the
    capacity in force; None without one. `stalled`: the end is reached, and tasks that ask for more
    wait until something is freed. `refused_at_ns`: when a reading last showed (by the monotonic
    clock) that the end had been reached, so that a system call may have failed for want of memory,
    of which nothing else tells; None: not so far.
    """

    used_bytes: int
    limit_bytes: int | None
    stalled: bool
    refused_at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class OomFacts:
    """How often and for whose sake processes of a group were killed for memory.

    `own_limit`: at least one of the kills was for the group's own limit. `node_full`: there were
    kills and none of them was: the node's capacity, a group further up or the machine was full and
    this group was the bystander. `kills` is to be compared with 0: the kernel may count a process
    twice.
    """

    kills: int
    own_limit: bool
    node_full: bool


def gap_bytes(capacity_bytes: int) -> int:
    """Return how far below the capacity the guard keeps tasks; at most half of it."""
    gap = min(max(int(capacity_bytes * GAP_SHARE), GAP_BYTES_MIN), GAP_BYTES_MAX)
    return min(gap, capacity_bytes // 2)
