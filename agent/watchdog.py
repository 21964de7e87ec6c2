"""Holds tasks to their memory without any rights: by looking often and killing what is over.

Owns the process trees of its groups, found in /proc. The rule kept: a process once seen in a tree
stays in it until it ends, however it detaches itself.

A process belongs to a tree when it is in the session or process group of the main process,
descends from a member, or was started with the tree's mark in its environment. What this cannot
do: between two looks a task may use any amount of memory, and may take the machine's last page; a
process that starts, detaches with an emptied environment and loses its parent between two looks
is never found. `describe` says so.

How memory is counted. Resident sizes are cheap but count shared pages for each process, so they
only serve as an upper bound: beyond NEAR_LIMIT of the limit the proportional sizes are read, and
they alone decide.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.cgroupfs import psi_full_percent
from agent.group import EnforcementError, Group, NodeMemory, OomFacts
from agent.proctree import (
    Life,
    ProcessEntry,
    close_over_children,
    proportional_bytes,
    read_processes,
    read_variable,
    send_signal,
)

POLL_INTERVAL_NS = 500_000_000
POLL_INTERVAL_NEAR_NS = 100_000_000  # while a tree or the node is beyond NEAR_LIMIT
NEAR_LIMIT = 0.8
MARK = "MASS_TREE"  # value: node name : life of the agent : number of the group
SWEEP_SECONDS_MAX = 10.0


@dataclass(slots=True)
class Tree:
    """What is known of one group's processes."""

    mark: str
    main_pid: int | None = None
    limit_bytes: int | None = None
    members: frozenset[tuple[int, int]] = frozenset()
    used_bytes: int = 0
    peak_bytes: int = 0
    killed: set[tuple[int, int]] = field(default_factory=set)  # for being over its limit
    oom_group: bool = False


@dataclass(slots=True)
class MarkCache:
    """Remembers each process's mark, so that an environment is read once in its life."""

    marks: dict[tuple[int, int], str | None] = field(default_factory=dict)

    def refresh(self, processes: dict[int, ProcessEntry]) -> dict[int, str]:
        """Return the marks of the given processes by pid; those of ended ones are forgotten."""
        known = self.marks
        self.marks = {
            entry.identity: known[entry.identity]
            if entry.identity in known
            else read_variable(entry.pid, MARK)
            for entry in processes.values()
        }
        return {pid: mark for (pid, _), mark in self.marks.items() if mark is not None}


class Watchdog:
    """Enforcement by polling; see `agent.enforce.Enforcement` for the contract."""

    name = "watchdog"

    def __init__(self, node_name: str) -> None:
        """Make one without groups; it needs no rights beyond those of the tasks' user."""
        self._node_name = node_name
        self._life = Life.mine()
        self._trees: dict[str, Tree] = {}
        self._group_count = 0
        self._cache = MarkCache()
        self._capacity_bytes: int | None = None
        self._near = False
        # poll runs in a thread of its own: a look at a thousand processes takes 15 ms.
        self._lock = threading.Lock()

    @property
    def poll_interval_ns(self) -> int:
        """Return how long it may look away; shorter near a limit."""
        return POLL_INTERVAL_NEAR_NS if self._near else POLL_INTERVAL_NS

    def describe(self) -> dict[str, bool | str]:
        """Return what it can and cannot do."""
        return {
            "kernel_limit": False,
            "limit_covers_swap": False,
            "oom_counter": True,
            "kernel_peak": False,
            "atomic_kill": False,
            "freeze": False,
            "cpu_shares": False,
            "node_group": False,
            "stall_event": False,
            "psi": False,
            "oom_group": False,
            "caveat": f"looks every {POLL_INTERVAL_NS / 1e9:g} s, near a limit every "
            f"{POLL_INTERVAL_NEAR_NS / 1e9:g} s: a task may overshoot its limit in between",
        }

    def set_capacity(self, capacity_bytes: int | None) -> int | None:
        """Remember it for `node_memory`; nothing holds the trees together to it."""
        self._capacity_bytes = capacity_bytes
        return capacity_bytes

    def node_memory(self) -> NodeMemory:
        """Return what the last look saw of all trees; nothing stalls by itself."""
        with self._lock:
            used_bytes = sum(tree.used_bytes for tree in self._trees.values())
        return NodeMemory(used_bytes, self._capacity_bytes, stalled=False)

    def stall_fd(self) -> int | None:
        """Return None: without groups of the kernel nobody tells."""
        return None

    def clear_stall(self) -> None:
        """Nothing to do."""

    def psi_full_percent(self) -> float | None:
        """Return the machine's."""
        return psi_full_percent("/proc/pressure/memory")

    def prepare(self) -> Group:
        """Make an empty group: a mark that its processes will carry."""
        with self._lock:
            self._group_count += 1
            mark = f"{self._node_name}:{self._life}:{self._group_count}"
            name = f"tree-{self._group_count}"
            self._trees[name] = Tree(mark)
        return Group(name, variables=((MARK, mark),))

    def set_limit(self, group: Group, limit_bytes: int | None) -> None:
        """Hold the tree to the limit from the next look on; never refused."""
        with self._lock:
            self._trees[group.name].limit_bytes = limit_bytes

    def set_oom_group(self, group: Group, on: bool) -> None:
        """Say whether a tree over its limit loses its biggest process or all of them."""
        with self._lock:
            self._trees[group.name].oom_group = on

    def finish_oom_groups(self) -> tuple[str, ...]:
        """Nothing to do: `poll` takes the whole tree at once."""
        return ()

    def share_cpus(self, group: Group, cpus: float) -> None:
        """Nothing to do: without groups of the kernel processors cannot be shared by weight."""

    def started(self, group: Group, pid: int) -> None:
        """Learn the tree's root, which also leads its session and process group."""
        with self._lock:
            self._trees[group.name].main_pid = pid

    def usage(self, group: Group) -> int:
        """Return what the last look saw; no older than one poll interval."""
        return self._trees[group.name].used_bytes

    def usages(self, groups: Sequence[Group]) -> list[int]:
        """Return the same of many groups."""
        return [self.usage(group) for group in groups]

    def peak(self, group: Group) -> int:
        """Return the most that any look saw; beyond the limit where it was overshot."""
        return self._trees[group.name].peak_bytes

    def oom_kills(self, group: Group) -> int:
        """Return how many processes were killed because the tree was over its limit."""
        return len(self._trees[group.name].killed)

    def oom_facts(self, group: Group) -> OomFacts:
        """Return its own kills; what the kernel kills in a tree cannot be told from here."""
        kills = self.oom_kills(group)
        return OomFacts(kills, own_limit=kills > 0, node_full=False)

    def signal(self, group: Group, number: int) -> int:
        """Signal every process of the tree that a fresh look finds."""
        with self._lock:
            return send_signal(self._look(self._trees[group.name]), number)

    def freeze(self, group: Group, paused: bool) -> None:
        """Stop every process of the tree that a fresh look finds, or let them go on."""
        self.signal(group, signal.SIGSTOP if paused else signal.SIGCONT)

    def kill(self, group: Group) -> int:
        """Send SIGKILL to every process that a fresh look finds; return how many there were."""
        return self.signal(group, signal.SIGKILL)

    def remove(self, group: Group) -> None:
        """Forget the tree. Raises EnforcementError when a process of it still runs."""
        with self._lock:
            left = self._look(self._trees[group.name])
            if left:
                raise EnforcementError(f"group {group.name} still holds processes {sorted(left)}")
            del self._trees[group.name]

    def poll(self) -> None:
        """Look at every started tree once and kill those over their limit."""
        with self._lock:
            trees = [tree for tree in self._trees.values() if tree.main_pid is not None]
            if not trees:
                self._near = False
                return
            processes = read_processes()
            marks = self._cache.refresh(processes)
            for tree in trees:
                self._judge(tree, self._members(tree, processes, marks))
            self._near = self._is_near(trees)

    def sweep(self) -> tuple[str, ...]:
        """Kill every process that carries the mark of an ended life of this node."""
        deadline = time.monotonic() + SWEEP_SECONDS_MAX
        swept: set[str] = set()
        while leftovers := self._leftovers():
            swept.update(leftovers.values())
            if time.monotonic() > deadline:
                raise EnforcementError(
                    f"processes {sorted(leftovers)[:10]} of an earlier life still run "
                    f"{SWEEP_SECONDS_MAX:g} s after SIGKILL"
                )
            send_signal(leftovers, signal.SIGKILL)
            time.sleep(0.005)
        return tuple(sorted(swept))

    def close(self) -> None:
        """Nothing is shared."""

    def _judge(self, tree: Tree, members: dict[int, ProcessEntry]) -> None:
        used_bytes = sum(entry.rss_bytes for entry in members.values())
        if tree.limit_bytes is not None and used_bytes > NEAR_LIMIT * tree.limit_bytes:
            # A process that may not be read (another user's) counts with its resident size.
            used_bytes = sum(
                entry.rss_bytes if (share := proportional_bytes(entry.pid)) is None else share
                for entry in members.values()
            )
        tree.used_bytes = used_bytes
        tree.peak_bytes = max(tree.peak_bytes, used_bytes)
        if tree.limit_bytes is not None and used_bytes > tree.limit_bytes:
            # The biggest, as the kernel would: a script around it lives on to tell of it.
            biggest = max(members.values(), key=lambda entry: (entry.rss_bytes, entry.pid)).pid
            # By identity: on a busy machine the next look may still find one that was killed.
            for pid in list(members) if tree.oom_group else [biggest]:
                if send_signal((pid,), signal.SIGKILL):
                    tree.killed.add(members[pid].identity)

    def _is_near(self, trees: list[Tree]) -> bool:
        used_bytes = sum(tree.used_bytes for tree in trees)
        bounds = [(tree.used_bytes, tree.limit_bytes) for tree in trees]
        bounds.append((used_bytes, self._capacity_bytes))
        return any(limit is not None and used > NEAR_LIMIT * limit for used, limit in bounds)

    def _look(self, tree: Tree) -> dict[int, ProcessEntry]:
        processes = read_processes()
        return self._members(tree, processes, self._cache.refresh(processes))

    @staticmethod
    def _members(
        tree: Tree, processes: dict[int, ProcessEntry], marks: dict[int, str]
    ) -> dict[int, ProcessEntry]:
        main = tree.main_pid
        roots = {pid for pid, mark in marks.items() if mark == tree.mark}
        if main is not None:
            roots |= {
                entry.pid
                for entry in processes.values()
                if main in (entry.pid, entry.session, entry.process_group)
                or entry.identity in tree.members
            }
        members = close_over_children(roots, processes)
        tree.members = frozenset(entry.identity for entry in members.values())
        return members

    def _leftovers(self) -> dict[int, str]:
        """Return the mark of every living process that an ended life left."""
        processes = {pid: entry for pid, entry in read_processes().items() if entry.alive}
        leftovers: dict[int, str] = {}
        for pid in processes:
            mark = read_variable(pid, MARK)
            node_name, life = _parse_mark(mark) if mark else ("", None)
            if node_name == self._node_name and life is not None and life.is_over:
                leftovers[pid] = mark or ""
        leftovers.pop(os.getpid(), None)
        return leftovers


def _parse_mark(mark: str) -> tuple[str, Life | None]:
    """Return node name and life of a mark; the name may hold colons itself."""
    parts = mark.rsplit(":", 2)
    return (parts[0], Life.parse(parts[1])) if len(parts) == 3 else ("", None)
