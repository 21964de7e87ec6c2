"""The seam between starting tasks and holding them to their memory.

Owns what every way of enforcement must offer, and the choice among them. The rule kept: what the
chosen way cannot do is said in words, never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.cgroup1 import Cgroup1
from agent.cgroup2 import Cgroup2
from agent.group import EnforcementError, Group, LimitRefused, NodeMemory, OomFacts
from agent.scope import Scope
from agent.watchdog import Watchdog

__all__ = [
    "Detection",
    "Enforcement",
    "EnforcementError",
    "Group",
    "LimitRefused",
    "NodeMemory",
    "OomFacts",
    "detect",
]


class Enforcement(Protocol):
    """One way to hold groups of processes to their memory limits.

    Calls are made from one thread, except `sweep` and `poll`, which block for long and may run
    in another one. Sizes are bytes of memory a task cannot give back: page cache never counts.
    """

    @property
    def name(self) -> str:
        """The word for it in configuration, logs and the agent's hello."""

    @property
    def poll_interval_ns(self) -> int | None:
        """How often `poll` must be called, or None when the kernel enforces by itself."""

    def describe(self) -> dict[str, bool | str]:
        """Return what it can and cannot do, for the hello and for people.

        Words that are true become capabilities of the node (docs/operators.md has a sentence for
        each); texts are for people.
        """

    def set_capacity(self, capacity_bytes: int | None) -> int | None:
        """Hold all groups together to the capacity, None for none; return the limit in force.

        May be called while tasks run and never kills. Where they hold more than the capacity the
        limit is set as low as can be, which is returned and logged: call again later.
        Raises EnforcementError.
        """

    def node_memory(self) -> NodeMemory:
        """Return what all groups together hold now, to the last look where `poll` looks.

        Costs 30 us and 3 us for each group, 20 us for one that moves. Near the end of the capacity
        it must be called some times a second: it may have to act there (see `agent.cgroup2_node`).
        """

    def stall_fd(self) -> int | None:
        """Return a descriptor that becomes readable when the node's groups begin to stall.

        None where the kernel tells nothing: then only `node_memory` can be looked at. It stays
        readable until `clear_stall`, and stays the same until `close`. A wake-up is a hint:
        `node_memory().stalled` tells whether it is so.
        """

    def clear_stall(self) -> None:
        """Make `stall_fd` ready to tell of the next stall."""

    def psi_full_percent(self) -> float | None:
        """Return the share of the last 10 s in which all tasks waited for memory, 0 to 100.

        Of the node's groups where the kernel has it for groups, else of the machine; else None.
        """

    def prepare(self) -> Group:
        """Make an empty group for a launcher to wait in. Raises EnforcementError."""

    def set_limit(self, group: Group, limit_bytes: int | None) -> None:
        """Hold the group to the limit, None for no limit.

        Raises LimitRefused when the group uses more and cannot give it back.
        """

    def set_oom_group(self, group: Group, on: bool) -> None:
        """Say whether a kill for the group's limit takes all of it, or only its biggest process.

        Off in a new group. Raises EnforcementError.
        """

    def finish_oom_groups(self) -> tuple[str, ...]:
        """Kill what a kill left over in groups with `set_oom_group`; return their names.

        To be called with each sample; costs nothing where the kernel or `poll` does it.
        """

    def share_cpus(self, group: Group, cpus: float) -> None:
        """Weigh the group against others by the cores it asked for, where that can be.

        Raises EnforcementError.
        """

    def started(self, group: Group, pid: int) -> None:
        """Learn the main process: its exec is about to be reported to the runner's caller."""

    def usage(self, group: Group) -> int:
        """Return memory used by the whole group now."""

    def usages(self, groups: Sequence[Group]) -> list[int]:
        """Return the same of many groups, in their order; not dearer than asking one by one."""

    def peak(self, group: Group) -> int:
        """Return the most memory the group is known to have used, at most its limit."""

    def oom_kills(self, group: Group) -> int:
        """Return how many of its processes were killed for memory: its own limit or another's."""

    def oom_facts(self, group: Group) -> OomFacts:
        """Return the kills in the group and whose end of memory they were for."""

    def signal(self, group: Group, number: int) -> int:
        """Signal every process of the group; return how many there were."""

    def freeze(self, group: Group, paused: bool) -> None:
        """Pause every process of the group, or let them go on."""

    def kill(self, group: Group) -> int:
        """Send SIGKILL to every process of the group; return how many there were.

        Zero means that the group is empty; anything else asks for another call a little later.
        """

    def remove(self, group: Group) -> None:
        """Forget the empty group. Raises EnforcementError when it is not empty."""

    def poll(self) -> None:
        """Look at all groups once and act on those over their limit."""

    def sweep(self) -> tuple[str, ...]:
        """Kill and remove what an ended life of this node left; return its names.

        Raises EnforcementError when something cannot be ended within its bound.
        """

    def close(self) -> None:
        """Remove what all groups share; every group must be removed before."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The best way available, and for each better one why it is not."""

    enforcement: Enforcement
    refused: Mapping[str, str]


def detect(node_name: str, parent: Path | None = None) -> Detection:
    """Choose the best enforcement this process can use, by trying it.

    `parent` is the memory cgroup to make groups below, instead of this process's own; then
    leftovers are looked for below it only.
    """
    refused: dict[str, str] = {}
    ways: tuple[type[Cgroup2] | type[Cgroup1], ...] = (Cgroup2, Cgroup1, Scope)
    for way in ways:
        try:
            return Detection(way.probe(node_name, parent), refused)
        except EnforcementError as error:
            refused[way.name] = str(error)
    return Detection(Watchdog(node_name), refused)
