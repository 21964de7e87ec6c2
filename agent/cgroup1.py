"""Holds tasks to their memory with the cgroup v1 memory controller.

Owns the directories `mass-<node>.<life of the agent>/slot-N` below the agent's own memory cgroup,
and their twins in the freezer hierarchy where there is one. The rule kept: the agent itself stays
outside, in the group it was started in, and nothing but tasks is ever limited or killed here.

How memory is counted. Used is anonymous memory plus shared memory (`total_rss + total_shmem`):
what a task cannot give back. Page cache counts for the kernel's limit, which drops it before it
kills, so it is not counted here. The kernel's own peak (`max_usage_in_bytes`) does hold cache: a
task that only reads a large file reaches its limit. Therefore `peak` is that mark less the cache
still charged at the time of asking, and at least the largest `usage` ever read; after a kill for
the limit it is the mark itself, since the kernel gives up all cache before it kills.
"""

from __future__ import annotations

import errno
import logging
import signal
from dataclasses import dataclass
from pathlib import Path

from agent.cgroup1_node import NO_LIMIT, Cgroup1Node, OomEvents
from agent.cgroupfs import (
    kill_tree,
    leftovers,
    make_slot,
    name_prefix,
    processes,
    psi_full_percent,
    read_int,
    read_pairs,
    remove_empty,
    remove_tree,
    thaw_tree,
    tree,
    write,
)
from agent.cgroups import Cgroups, Slot
from agent.group import EnforcementError, Group, LimitRefused, OomFacts
from agent.held import V1, HeldMemory
from agent.hierarchy import find_hierarchy
from agent.proctree import Life, send_signal

LOG = logging.getLogger(__name__)

SHARES_PER_CPU = 1_024  # the kernel's default for a group
SHARES_MIN, SHARES_MAX = 2, 262_144  # the kernel's bounds
# How far below a limit its high-water mark may lie although the limit was hit: the kernel takes
# small blocks of pages at once, and one that does not fit is not counted.
MARK_SLACK_BYTES = 65_536


@dataclass(slots=True)
class Cgroup1Slot(Slot):
    """What is known of one group beyond what the kernel keeps.

    `node_stalls` is what the node's group had been told when `oom_events` began to count.
    """

    oom_group: bool = False
    oom_events: OomEvents | None = None
    node_stalls: int | None = None

    def close(self) -> None:
        """Close the kernel's files."""
        self.memory.close()
        if self.oom_events is not None:
            self.oom_events.close()
            self.oom_events = None


class Cgroup1(Cgroups[Cgroup1Node, Cgroup1Slot]):
    """Enforcement by the kernel; see `agent.enforce.Enforcement` for the contract."""

    name = "cgroup1"

    def __init__(
        self,
        node_name: str,
        base: Path,
        freezer: Path | None,
        search: list[Path],
        cpu: Path | None = None,
    ):
        """Take over `base` (made by `probe`) and its twins; sweep looks below `search`."""
        super().__init__(node_name, base, Cgroup1Node(base))
        self._freezer = freezer
        self._cpu = cpu
        self._twins = [twin for twin in (freezer, cpu) if twin is not None]
        self._search = search

    @classmethod
    def probe(cls, node_name: str, parent: Path | None = None) -> Cgroup1:
        """Return it when this process may really make and limit groups, by doing so.

        Raises:
            EnforcementError: with what failed, in words.
        """
        memory = find_hierarchy("memory")
        base = (parent or memory.own) / f"{name_prefix(node_name)}{Life.mine()}"
        search = [parent or memory.mount]
        try:
            base.mkdir(exist_ok=True)
            try:
                if read_int(base / "memory.use_hierarchy") != 1:
                    raise EnforcementError(f"{base}: memory.use_hierarchy is off")
                write(base / "memory.limit_in_bytes", NO_LIMIT)
            except BaseException:
                base.rmdir()
                raise
        except OSError as error:
            raise EnforcementError(f"cannot make groups at {base}: {error.strerror}") from error
        # Wanted, but not needed: for atomic kills, and to share the processors by what was asked.
        freezer = cls._make_twin("freezer", base.name, search)
        cpu = cls._make_twin("cpu", base.name, search)
        return cls(node_name, base, freezer, search, cpu)

    @staticmethod
    def _make_twin(controller: str, name: str, search: list[Path]) -> Path | None:
        """Return the twin in another hierarchy, and have sweep look there; None without it."""
        try:
            hierarchy = find_hierarchy(controller)
            twin = hierarchy.own / name
            twin.mkdir(exist_ok=True)
        except (EnforcementError, OSError) as error:
            LOG.info("no groups of the %s controller: %s", controller, error)
            return None
        search.append(hierarchy.mount)
        return twin

    def describe(self) -> dict[str, bool | str]:
        """Return what it can and cannot do."""
        return {
            "kernel_limit": True,
            "limit_covers_swap": self._node.counts_swap,
            "oom_counter": True,
            "kernel_peak": True,
            "atomic_kill": self._freezer is not None,
            "freeze": self._freezer is not None,
            "cpu_shares": self._cpu is not None,
            "node_group": True,
            "stall_event": self._node.stalls_at_its_end,
            "psi": False,
            "oom_group": False,
            "caveat": "the limit holds page cache too, which the kernel drops before it kills; "
            "while the node stalls, starting a program fails instead of waiting",
        }

    def psi_full_percent(self) -> float | None:
        """Return the machine's: v1 has none for groups."""
        return psi_full_percent("/proc/pressure/memory")

    def prepare(self) -> Group:
        """Make an empty group; 0.3 ms. Raises EnforcementError."""
        self._slot_count, name = make_slot(self._base, self._slot_count)
        path = self._base / name
        paths = [path]
        for twin in self._twins:
            (twin / name).mkdir(exist_ok=True)
            paths.append(twin / name)
        slot = Cgroup1Slot(HeldMemory(path, V1))
        try:
            write(path / "memory.oom_control", "0")  # inherited: off, as in the node's group
            slot.node_stalls = self._node.stall_count()
            slot.oom_events = OomEvents(path)
        except OSError as error:
            LOG.info("group %s: no notices of the end of memory: %s", name, error.strerror)
        self._slots[name] = slot
        return Group(name, tuple(str(path / "cgroup.procs") for path in paths))

    def set_limit(self, group: Group, limit_bytes: int | None) -> None:
        """Set memory and memory + swap to the limit, so that a task cannot flee into swap.

        The kernel keeps memory <= memory + swap at every moment, hence the order.
        """
        path = self._base / group.name
        text = NO_LIMIT if limit_bytes is None else str(limit_bytes)
        files = ["memory.limit_in_bytes"]
        if self._node.counts_swap:
            files.append("memory.memsw.limit_in_bytes")
        slot = self._slots[group.name]
        old_bytes = slot.limit_bytes
        if limit_bytes is None or (old_bytes is not None and limit_bytes > old_bytes):
            files.reverse()
        try:
            for file in files:
                write(path / file, text)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise LimitRefused(
                    f"group {group.name} uses {self.usage(group)} bytes, "
                    f"its limit cannot be lowered to {text}"
                ) from error
            raise EnforcementError(
                f"group {group.name}: limit {text} refused: {error.strerror}"
            ) from error
        slot.limit_bytes = limit_bytes

    def share_cpus(self, group: Group, cpus: float) -> None:
        """Let the group have that many parts of the processors when they do not suffice for all.

        Idle processors are anyone's: a share is no limit.
        """
        if self._cpu is None:
            return
        shares = min(max(round(cpus * SHARES_PER_CPU), SHARES_MIN), SHARES_MAX)
        try:
            write(self._cpu / group.name / "cpu.shares", str(shares))
        except OSError as error:
            raise EnforcementError(
                f"group {group.name}: cpu.shares {shares} refused: {error.strerror}"
            ) from error

    def set_oom_group(self, group: Group, on: bool) -> None:
        """Remember it: v1 takes only the biggest process, `finish_oom_groups` the rest."""
        self._slots[group.name].oom_group = on

    def finish_oom_groups(self) -> tuple[str, ...]:
        """Kill the rest of groups with `set_oom_group` in which the kernel has killed."""
        finished = []
        for name, slot in self._slots.items():
            if slot.oom_group and self.oom_kills(Group(name)) and self.kill(Group(name)):
                finished.append(name)
        return tuple(finished)

    def peak(self, group: Group) -> int:
        """Return the best lower bound on the most memory used; the module says how."""
        path = self._base / group.name
        slot = self._slots[group.name]
        slot.memory.read()
        sampled_bytes = slot.memory.peak_bytes
        try:
            mark_bytes = read_int(path / "memory.max_usage_in_bytes")
            limit_bytes = read_int(path / "memory.limit_in_bytes")
        except FileNotFoundError:
            return sampled_bytes  # someone else removed the empty group
        mark_bytes = min(mark_bytes, limit_bytes)
        if self.oom_kills(group):
            return mark_bytes
        return min(mark_bytes, max(sampled_bytes, mark_bytes - slot.memory.cache_bytes))

    def oom_kills(self, group: Group) -> int:
        """Return the kernel's counter, child groups that the task made included."""
        return sum(
            read_pairs(path / "memory.oom_control").get("oom_kill", 0)
            for path in tree(self._base / group.name)
        )

    def oom_facts(self, group: Group) -> OomFacts:
        """Return the kills, and whether the kernel told this group of an end that was its own.

        It tells a group of the ends of all groups above it too: what the node's group was told
        meanwhile is taken away. While the node stalls it tells nothing of a second end below;
        then, and for groups made by the task itself, the high-water marks decide.
        """
        kills = self.oom_kills(group)
        if not kills:
            return OomFacts(0, own_limit=False, node_full=False)
        slot = self._slots[group.name]
        node_stalls = self._node.stall_count()
        marks_only = True
        own_limit = False
        if slot.oom_events is not None and None not in (node_stalls, slot.node_stalls):
            told_above = (node_stalls or 0) - (slot.node_stalls or 0)
            own_limit = slot.oom_events.count() > told_above
            marks_only = told_above > 0
        own, *inner = reversed(list(tree(self._base / group.name)))
        looked_at = [own, *inner] if marks_only else inner
        own_limit = own_limit or any(_limit_was_hit(path) for path in looked_at)
        return OomFacts(kills, own_limit=own_limit, node_full=not own_limit)

    def freeze(self, group: Group, paused: bool) -> None:
        """Pause the group, by the freezer where there is one: processes cannot tell."""
        if self._freezer is None:
            self.signal(group, signal.SIGSTOP if paused else signal.SIGCONT)
            return
        state = self._freezer / group.name / "freezer.state"
        try:
            write(state, "FROZEN" if paused else "THAWED")
        except FileNotFoundError:
            return  # the group is empty and gone

    def kill(self, group: Group) -> int:
        """Kill what is in the group: frozen where possible, so that nothing forks away."""
        path = self._base / group.name
        pids = processes(path)
        if not pids:
            return 0
        if self._freezer is None:
            return send_signal(pids, signal.SIGKILL)
        state = self._freezer / group.name / "freezer.state"
        try:
            write(state, "FROZEN")
            return send_signal(processes(path), signal.SIGKILL)
        finally:
            write(state, "THAWED")

    def remove(self, group: Group) -> None:
        """Remove the empty group from all hierarchies. Raises EnforcementError."""
        for parent in (*self._twins, self._base):
            remove_tree(parent / group.name)
        slot = self._slots.pop(group.name, None)
        if slot is not None:
            slot.close()

    def sweep(self) -> tuple[str, ...]:
        """Kill and remove the groups of this node name whose agent has ended.

        They are looked for in the whole hierarchy, since an agent may come back in another
        group (another session, another container) than the one that died.
        """
        paths = [path for root in self._search for path in leftovers(root, self._node_name)]
        for path in paths:
            thaw_tree(path)  # a process that another hierarchy holds frozen outlives SIGKILL
        swept: dict[str, None] = {}
        for path in paths:
            kill_tree(path)
            remove_tree(path)
            swept[path.name] = None
        return tuple(swept)

    def close(self) -> None:
        """Remove the agent's directories. Raises EnforcementError when groups are left."""
        self._node.close()
        for parent in (*self._twins, self._base):
            remove_empty(parent)


def _limit_was_hit(path: Path) -> bool:
    try:
        limit_bytes = read_int(path / "memory.limit_in_bytes")
        return read_int(path / "memory.max_usage_in_bytes") + MARK_SLACK_BYTES >= limit_bytes
    except FileNotFoundError:
        return False
