"""Holds tasks to their memory with cgroup v2.

Owns the directories `mass-<node>.<life of the agent>/slot-N` below a group that was delegated to
the agent, or below the one it is told. The rule kept: the agent itself stays outside, and nothing
but tasks is ever limited or killed here.

A group with members cannot have groups with limits below it, the root excepted. An agent that is
alone in its group - as a service with Delegate=yes is - therefore moves itself into a leaf beside
its tasks' groups. Where others are in the group it is not the agent's to rearrange.

How memory is counted: as with v1, used is anonymous plus shared memory. The kernel's own peak
holds page cache too, so `peak` is that mark less the cache still charged, and at least the largest
`usage` ever read; after a kill for the limit it is the mark itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from agent.cgroup2_node import NO_LIMIT, Cgroup2Node
from agent.cgroupfs import (
    kill_tree,
    leftovers,
    make_slot,
    name_prefix,
    processes,
    psi_full_percent,
    read,
    read_int,
    read_pairs,
    remove_empty,
    remove_tree,
    write,
)
from agent.cgroups import Cgroups, Slot
from agent.group import EnforcementError, Group, LimitRefused, OomFacts
from agent.held import V2, HeldMemory
from agent.hierarchy import UNIFIED, find_hierarchy
from agent.proctree import Life, close_over_children, read_processes, send_signal

LOG = logging.getLogger(__name__)

LEAF = "mass-itself"  # where the agent moves to
WEIGHT_PER_CPU = 100  # the kernel's default for a group
WEIGHT_MIN, WEIGHT_MAX = 1, 10_000  # the kernel's bounds


class Cgroup2(Cgroups[Cgroup2Node, Slot]):
    """Enforcement by the kernel; see `agent.enforce.Enforcement` for the contract."""

    name = "cgroup2"

    def __init__(self, node_name: str, base: Path, search: Path) -> None:
        """Take over `base` (made by `probe`); sweep looks below `search`. Raises OSError."""
        super().__init__(node_name, base, Cgroup2Node(base))
        self._search = search
        self._shares_cpus = "cpu" in read(base / "cgroup.subtree_control").split()
        self._files = frozenset(os.listdir(base))  # these differ by the kernel's version

    @classmethod
    def probe(cls, node_name: str, parent: Path | None = None) -> Self:
        """Return it when this process may really make and limit groups, by doing so.

        Raises:
            EnforcementError: with what failed, in words.
        """
        hierarchy = find_hierarchy(UNIFIED)
        home = parent or hierarchy.own
        if parent is None and home.name == LEAF:
            home = home.parent  # an earlier life in this process's place has moved here
        base = home / f"{name_prefix(node_name)}{Life.mine()}"
        try:
            controllers = read(home / "cgroup.controllers").split()
            if "memory" not in controllers:
                raise EnforcementError(
                    f"{home} has no memory controller, only: {' '.join(controllers) or 'none'}"
                )
            _make_room(home)
            _enable(home, controllers)
            base.mkdir(exist_ok=True)
            try:
                _enable(base, controllers)
                write(base / "memory.max", NO_LIMIT)
                return cls(node_name, base, parent or hierarchy.mount)
            except BaseException:
                base.rmdir()
                raise
        except OSError as error:
            raise EnforcementError(f"cannot make groups at {base}: {error.strerror}") from error

    def describe(self) -> dict[str, bool | str]:
        """Return what it can and cannot do."""
        return {
            "kernel_limit": True,
            "limit_covers_swap": "memory.swap.max" in self._files,
            "oom_counter": True,
            "kernel_peak": "memory.peak" in self._files,
            "atomic_kill": "cgroup.kill" in self._files,
            "freeze": "cgroup.freeze" in self._files,
            "cpu_shares": self._shares_cpus,
            "node_group": True,
            "stall_event": True,
            "psi": "memory.pressure" in self._files,
            "oom_group": "memory.oom.group" in self._files,
            "caveat": "the limit holds page cache too, which the kernel drops before it kills",
        }

    def psi_full_percent(self) -> float | None:
        """Return that of the node's group, or of the machine where groups have none."""
        path = self._base / "memory.pressure"
        found = psi_full_percent(path) if path.name in self._files else None
        return psi_full_percent("/proc/pressure/memory") if found is None else found

    def prepare(self) -> Group:
        """Make an empty group without swap. Raises EnforcementError."""
        self._slot_count, name = make_slot(self._base, self._slot_count)
        path = self._base / name
        if "memory.swap.max" in self._files:
            write(path / "memory.swap.max", "0")
        self._slots[name] = Slot(HeldMemory(path, V2))
        return Group(name, (str(path / "cgroup.procs"),))

    def set_limit(self, group: Group, limit_bytes: int | None) -> None:
        """Set the limit; one below what is used is refused, since the kernel would kill for it."""
        path = self._base / group.name
        text = NO_LIMIT if limit_bytes is None else str(limit_bytes)
        try:
            if limit_bytes is not None and read_int(path / "memory.current") > limit_bytes:
                self._press_below(group, limit_bytes)
            write(path / "memory.max", text)
        except OSError as error:
            raise EnforcementError(
                f"group {group.name}: limit {text} refused: {error.strerror}"
            ) from error
        self._slots[group.name].limit_bytes = limit_bytes

    def _press_below(self, group: Group, limit_bytes: int) -> None:
        """Have the kernel reclaim what is above the limit, without killing."""
        path = self._base / group.name
        try:
            write(path / "memory.high", str(limit_bytes))
            if read_int(path / "memory.current") > limit_bytes:
                raise LimitRefused(
                    f"group {group.name} uses {self.usage(group)} bytes, "
                    f"its limit cannot be lowered to {limit_bytes}"
                )
        finally:
            write(path / "memory.high", NO_LIMIT)

    def set_oom_group(self, group: Group, on: bool) -> None:
        """Let the kernel take the whole group, or only its biggest process."""
        try:
            write(self._base / group.name / "memory.oom.group", "1" if on else "0")
        except OSError as error:
            raise EnforcementError(
                f"group {group.name}: memory.oom.group refused: {error.strerror}"
            ) from error

    def finish_oom_groups(self) -> tuple[str, ...]:
        """Nothing to do: the kernel takes whole groups."""
        return ()

    def share_cpus(self, group: Group, cpus: float) -> None:
        """Let the group have that many parts of the processors when they do not suffice for all."""
        if not self._shares_cpus:
            return
        weight = min(max(round(cpus * WEIGHT_PER_CPU), WEIGHT_MIN), WEIGHT_MAX)
        try:
            write(self._base / group.name / "cpu.weight", str(weight))
        except OSError as error:
            raise EnforcementError(
                f"group {group.name}: cpu.weight {weight} refused: {error.strerror}"
            ) from error

    def peak(self, group: Group) -> int:
        """Return the best lower bound on the most memory used; the module says how."""
        slot = self._slots[group.name]
        slot.memory.read()
        sampled_bytes = slot.memory.peak_bytes
        try:
            mark_bytes = read_int(self._base / group.name / "memory.peak")
        except FileNotFoundError:
            return sampled_bytes  # a kernel before 5.19, or someone else removed the group
        if slot.limit_bytes is not None:
            mark_bytes = min(mark_bytes, slot.limit_bytes)
        if self.oom_facts(group).own_limit:
            return mark_bytes
        return min(mark_bytes, max(sampled_bytes, mark_bytes - slot.memory.cache_bytes))

    def oom_kills(self, group: Group) -> int:
        """Return the kernel's counter, child groups that the task made included."""
        return self._events(group).get("oom_kill", 0)

    def oom_facts(self, group: Group) -> OomFacts:
        """Return the kills, and whether a limit was the end of memory in this group or below.

        The kernel counts `oom` where the limit is, and `oom_kill` where the process was.
        """
        events = self._events(group)
        kills = events.get("oom_kill", 0)
        own_limit = kills > 0 and events.get("oom", 0) > 0
        return OomFacts(kills, own_limit=own_limit, node_full=kills > 0 and not own_limit)

    def _events(self, group: Group) -> dict[str, int]:
        try:
            return read_pairs(self._base / group.name / "memory.events")
        except FileNotFoundError:
            return {}  # someone else removed it, which the kernel allows only when it is empty

    def freeze(self, group: Group, paused: bool) -> None:
        """Pause the group, or let it go on: processes cannot tell."""
        with contextlib.suppress(FileNotFoundError):  # the group is empty and gone
            write(self._base / group.name / "cgroup.freeze", "1" if paused else "0")

    def kill(self, group: Group) -> int:
        """Kill what is in the group, all at once where the kernel can (5.14)."""
        path = self._base / group.name
        pids = processes(path)
        if pids and "cgroup.kill" in self._files:
            with contextlib.suppress(FileNotFoundError):
                write(path / "cgroup.kill", "1")
            return len(pids)
        return send_signal(pids, signal.SIGKILL)

    def remove(self, group: Group) -> None:
        """Remove the empty group. Raises EnforcementError."""
        remove_tree(self._base / group.name)
        slot = self._slots.pop(group.name, None)
        if slot is not None:
            slot.close()

    def sweep(self) -> tuple[str, ...]:
        """Kill and remove the groups of this node name whose agent has ended, wherever they are."""
        swept: dict[str, None] = {}
        for path in list(leftovers(self._search, self._node_name)):
            kill_tree(path)
            remove_tree(path)
            swept[path.name] = None
        return tuple(swept)

    def close(self) -> None:
        """Remove the agent's directory. Raises EnforcementError when groups are left.

        The leaf stays while the agent is in it, and goes with the group around it.
        """
        self._node.close()
        remove_empty(self._base)


def _make_room(home: Path) -> None:
    """Move this process out of the group when it is alone there.

    Raises:
        EnforcementError: others are in the group too.
    """
    if not (home / "cgroup.type").exists():
        return  # the root of all groups may have members and groups with limits
    members = [int(word) for word in read(home / "cgroup.procs").split()]
    if not members:
        return
    ours = close_over_children({os.getpid()}, read_processes())
    foreign = [pid for pid in members if pid not in ours]
    if foreign:
        raise EnforcementError(
            f"group {home} also holds {len(foreign)} processes that are not the agent's; it needs "
            "a group of its own, such as a service with Delegate=yes has"
        )
    leaf = home / LEAF
    leaf.mkdir(exist_ok=True)
    for pid in members:
        with contextlib.suppress(ProcessLookupError):
            write(leaf / "cgroup.procs", str(pid))


def _enable(group: Path, controllers: Sequence[str]) -> None:
    """Have memory, and processors where they can be had, accounted in the groups below."""
    write(group / "cgroup.subtree_control", "+memory")
    if "cpu" in controllers:
        try:
            write(group / "cgroup.subtree_control", "+cpu")
        except OSError as error:
            LOG.info("no groups of the cpu controller: %s", error)
