"""The nodes as columns: one row per slot, so that a decision over all of them is a few array
operations. A slot is the node's place in the series; it is used again after the node has gone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from controller.core.constraint import NodeFacts, parse_constraint
from controller.core.model import Node, NodeState, Scheduling

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MATCHING_KEPT_MAX = 1_000  # constraints; beyond it they are worked out anew


@dataclass(slots=True)
class NodeRecord:
    """A node and what is known of it since this controller runs."""

    node: Node
    slot: int
    state: NodeState
    last_seen_ns: int
    stream: int | None = None  # the open stream, if any
    sampled: bool = False  # a sample has arrived on this stream
    has_left: bool = False  # its agent said goodbye and has not come back
    leaving_until_ns: int = 0  # its agent ends its attempts: until then it gets no new ones
    acknowledged_sequence: int = 0
    task_ids: set[int] = field(default_factory=set)  # placed here
    gpus_taken: set[int] = field(default_factory=set)  # indexes that tasks here have
    reservation_ids: set[int] = field(default_factory=set)  # for what is no task
    undeclared: set[str] = field(default_factory=set)  # custom metrics that were told as ignored
    capacity_max_bytes: int = 0  # what may be reserved: its capacity, unless that was lowered
    capabilities: tuple[str, ...] = ()  # of its enforcement, from its last hello
    missing: tuple[tuple[int, int], ...] = ()  # (task id, attempt) its last hello did not name

    @property
    def is_heard(self) -> bool:
        """Say whether its agent is there, as far as is known; a node without one takes nothing."""
        silent = (NodeState.UNREACHABLE, NodeState.DOWN)
        return self.stream is not None and self.state not in silent


class NodeTable:
    """Numbers of every node by slot. All columns have nodes_max rows and never move."""

    def __init__(self, nodes_max: int) -> None:
        self.nodes_max = nodes_max
        self.count = 0  # slots in use are below this
        self.used = np.zeros(nodes_max, dtype=np.bool_)
        self._used_count = 0  # asked for with each sample
        self.open = np.zeros(nodes_max, dtype=np.bool_)  # connected, sampled and enabled
        self.reopens = np.zeros(nodes_max, dtype=np.bool_)  # closed, but may be open again soon
        self.machine = np.zeros(nodes_max, dtype=np.int64)  # row of the machine
        self.total_bytes = np.zeros(nodes_max, dtype=np.int64)
        self.cpus = np.zeros(nodes_max, dtype=np.float64)
        self.cpus_used = np.zeros(nodes_max, dtype=np.float64)
        self.gpus = np.zeros(nodes_max, dtype=np.int64)
        self.gpus_used = np.zeros(nodes_max, dtype=np.int64)
        self.reservations = np.zeros(nodes_max, dtype=np.int64)  # for what is no task
        self.long_tasks = np.zeros(nodes_max, dtype=np.int64)  # tasks here that are not brief
        self.held = np.zeros(nodes_max, dtype=np.int64)  # sent ahead, and not started yet
        self.holds_ahead = np.zeros(nodes_max, dtype=np.bool_)  # its agent does
        self.ahead_from_ns = np.zeros(nodes_max, dtype=np.int64)  # nothing is sent ahead before
        self.freed_bytes = np.zeros(nodes_max, dtype=np.int64)  # by ended tasks, since the sample
        self.intake_stopped = np.zeros(nodes_max, dtype=np.bool_)  # its guard wants nothing new
        self.last_seen_ns = np.zeros(nodes_max, dtype=np.int64)
        self.ids: list[str | None] = [None] * nodes_max
        self._changed: set[str] = set()  # nodes whose state may be another since take_changed
        self._facts: dict[int, NodeFacts] = {}
        self._matching: dict[str, Bools] = {}  # by constraint, for the nodes as they are now
        self._machine_rows: dict[str, int] = {}
        self._machine_ids: dict[int, str] = {}
        self._machine_members: dict[int, set[int]] = {}
        self._machine_free: list[int] = list(range(nodes_max - 1, -1, -1))

    @property
    def machines_shared(self) -> bool:
        """Say whether two nodes live on one machine."""
        return len(self._machine_rows) < self._used_count

    def put(self, record: NodeRecord) -> None:
        """Write the row of a node that has joined or changed."""
        slot, node = record.slot, record.node
        if self.used[slot]:
            self._leave_machine(slot)
        else:
            self._used_count += 1
        self.used[slot] = True
        self.count = max(self.count, slot + 1)
        self.ids[slot] = node.id
        self.total_bytes[slot] = node.memory_total_bytes
        self.cpus[slot] = node.cpus
        self.gpus[slot] = node.gpus
        facts = NodeFacts(node.id, node.labels, node.cpus, node.gpus, node.memory_total_bytes)
        if self._facts.get(slot) != facts:
            self._facts[slot] = facts
            self._matching.clear()
        self.last_seen_ns[slot] = record.last_seen_ns
        row = self._machine_rows.get(node.machine_id)
        if row is None:
            row = self._machine_rows[node.machine_id] = self._machine_free.pop()
            self._machine_ids[row] = node.machine_id
            self._machine_members[row] = set()
        self._machine_members[row].add(slot)
        self.machine[slot] = row
        self.refresh_open(record)

    def refresh_open(self, record: NodeRecord) -> None:
        """Write whether a node takes new tasks; to be called where its state changes."""
        self._changed.add(record.node.id)
        self.open[record.slot] = (
            record.stream is not None
            and record.sampled
            and not record.leaving_until_ns
            and record.state is NodeState.READY
            and record.node.scheduling is Scheduling.ENABLED
        )
        self.reopens[record.slot] = (
            not self.open[record.slot]
            and record.state is not NodeState.DOWN
            and record.node.scheduling is Scheduling.ENABLED
        )

    def take_changed(self) -> list[str]:
        """Return which nodes may have another state since the last call, by id."""
        if not self._changed:
            return []
        changed, self._changed = sorted(self._changed), set()
        return changed

    def clear(self, slot: int) -> None:
        """Forget the row of a node that has gone."""
        self._leave_machine(slot)
        self._used_count -= 1
        self.used[slot] = False
        self.open[slot] = False
        self.reopens[slot] = False
        self.ids[slot] = None
        self.cpus_used[slot] = 0.0
        self.gpus_used[slot] = 0
        self.intake_stopped[slot] = False
        self.freed_bytes[slot] = 0
        self.long_tasks[slot] = 0
        self.held[slot] = 0
        self.holds_ahead[slot] = False
        self.ahead_from_ns[slot] = 0
        del self._facts[slot]
        self._matching.clear()

    def matching(self, constraint: str) -> Bools:
        """Return on which slots a constraint holds; worked out once for the nodes as they are.

        Raises:
            InvalidRequest: it cannot be read. One of a task was read when it was submitted.
        """
        known = self._matching.get(constraint)
        if known is None or len(known) != self.count:
            holds = parse_constraint(constraint)
            known = np.zeros(self.count, dtype=np.bool_)
            for slot, facts in self._facts.items():
                known[slot] = holds(facts)
            if len(self._matching) >= MATCHING_KEPT_MAX:
                self._matching.clear()
            self._matching[constraint] = known
        return known

    def measured(self, slot: int) -> None:
        """Note a new sample: it shows what ended tasks have left."""
        if self.machines_shared:
            for other in self.neighbours(slot):
                self.freed_bytes[other] = 0
        else:
            self.freed_bytes[slot] = 0

    def ahead_cpus(self, now_ns: int, per_cpu: int) -> Floats:
        """Return by slot how many CPUs brief tasks may ask beyond those there are.

        Only where all tasks are brief: behind a long one they would wait for long.
        """
        count = self.count
        may = self.holds_ahead[:count] & (self.long_tasks[:count] == 0)
        may &= self.ahead_from_ns[:count] <= now_ns
        return np.where(may, self.cpus[:count] * per_cpu, 0.0)

    def silent_slots(self, since_ns: int) -> list[int]:
        """Return the slots of nodes last heard of at since_ns or before."""
        count = self.count
        silent = self.used[:count] & (self.last_seen_ns[:count] <= since_ns)
        return [int(slot) for slot in np.flatnonzero(silent)]

    def neighbours(self, slot: int) -> frozenset[int]:
        """Return the slots on the same machine, the given one included."""
        return frozenset(self._machine_members[int(self.machine[slot])])

    def _leave_machine(self, slot: int) -> None:
        row = int(self.machine[slot])
        members = self._machine_members[row]
        members.discard(slot)
        if not members:
            del self._machine_members[row]
            self._machine_free.append(row)
            del self._machine_rows[self._machine_ids.pop(row)]
