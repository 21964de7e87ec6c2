"""Which waiting task goes to which node: feasible, score, choose; every refusal keeps its numbers.

Works on copies of what the nodes can promise, so that nothing is decided twice in one cycle; the
ledger has the last word when the assignments are committed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from controller.core.nodes import Bools, Floats, Ints
from controller.core.queue import PendingQueue, Shape


@dataclass(slots=True)
class Offers:
    """What the nodes offer in this cycle, by slot; placing a task takes from it."""

    open: Bools  # takes new tasks at all
    blocked: Bools  # a rule with placement: block holds there
    promise: Ints
    own: Ints
    machine: Ints
    capacity: Ints
    cpus: Floats
    cpus_free: Floats
    members: Callable[[int], frozenset[int]]  # the slots on the same machine
    machines_shared: bool

    def take(self, slot: int, shape: Shape) -> None:
        """Count a placed task against its node and its machine."""
        self.cpus_free[slot] -= shape.cpus
        self.own[slot] -= shape.memory_request_bytes
        neighbours = self.members(slot) if self.machines_shared else (slot,)
        for other in neighbours:
            self.machine[other] -= shape.memory_request_bytes
            self.promise[other] = max(0, min(self.own[other], self.machine[other]))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no node takes tasks of a shape in this cycle; bytes of the best node."""

    code: str
    nodes: int  # that were looked at
    best_slot: int | None = None  # the open node with the largest promise
    best_promise_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """One task for one node."""

    task_id: int
    slot: int
    shape: Shape


@dataclass(slots=True)
class Placements:
    """The outcome of one round."""

    placed: list[Placement] = field(default_factory=list)
    refused: dict[Shape, Refusal] = field(default_factory=dict)
    overtaken: set[int] = field(default_factory=set)  # refused, and a later task was placed


def feasible(offers: Offers, shape: Shape, kept: Bools) -> Bools:
    """Return on which slots a task of this shape may run now; `kept` slots are for others."""
    return (
        offers.open
        & ~offers.blocked
        & ~kept
        & (offers.promise >= shape.memory_request_bytes)
        & (offers.cpus_free >= shape.cpus)
    )


def score(offers: Offers, slot: int) -> int:
    """Return how well a node suits: the most memory left wins, so that surprises find room."""
    return int(offers.promise[slot])


class Chooser:
    """Hands out the best nodes for one shape; scores only fall within a cycle, so a stale entry
    at the top is looked at again and put back."""

    def __init__(self, offers: Offers, shape: Shape, kept: Bools) -> None:
        self._offers, self._shape, self._kept = offers, shape, kept
        self._heap: list[tuple[int, int]] | None = None
        self._first = True

    def choose(self) -> int | None:
        """Return the best slot, ties by the lower slot, or None when no node is feasible."""
        if self._first:  # most cycles place one task of a shape: no need to sort all nodes
            self._first = False
            mask = feasible(self._offers, self._shape, self._kept)
            if not mask.any():
                self._heap = []
                return None
            return int(np.argmax(np.where(mask, self._offers.promise, -1)))
        if self._heap is None:
            slots = np.flatnonzero(feasible(self._offers, self._shape, self._kept))
            self._heap = [(-score(self._offers, int(slot)), int(slot)) for slot in slots]
            heapq.heapify(self._heap)
        while self._heap:
            key, slot = self._heap[0]
            now = score(self._offers, slot)
            fits = (
                now >= self._shape.memory_request_bytes
                and self._offers.cpus_free[slot] >= self._shape.cpus
            )
            if not fits:
                heapq.heappop(self._heap)
            elif -key != now:
                heapq.heapreplace(self._heap, (-now, slot))
            else:
                return slot
        return None


def place(
    queue: PendingQueue,
    offers: Offers,
    kept_for: Mapping[int, int],
    room: int,
) -> Placements:
    """Place waiting tasks in order until none fits any more.

    kept_for maps a task id to the slot that is kept free for it: tasks later in the order do not
    get that slot. At most `room` tasks are placed.
    """
    result = Placements()
    ordered = queue.in_order()
    choosers: dict[Shape, Chooser] = {}
    kept = np.zeros(len(offers.open), dtype=np.bool_)
    kept_by_task = dict(kept_for)
    passed_over: list[int] = []  # refused since the last task was placed
    while (entry := ordered.next()) is not None:
        task_id, shape = entry
        if len(result.placed) >= room:
            result.refused[shape] = Refusal("RUNNING_LIMIT", int(offers.open.sum()))
            ordered.skip_shape()
            continue
        slot = _choose(offers, shape, kept, choosers)
        if slot is None:
            result.refused[shape] = explain_shape(offers, shape, kept)
            passed_over.append(task_id)
            own_slot = kept_by_task.pop(task_id, None)
            if own_slot is not None:
                kept[own_slot] = True
                choosers.clear()  # they were made without this slot being kept
            ordered.skip_shape()
            continue
        kept_by_task.pop(task_id, None)
        offers.take(slot, shape)
        result.placed.append(Placement(task_id, slot, shape))
        result.overtaken.update(passed_over)
        passed_over.clear()
    return result


def _choose(
    offers: Offers, shape: Shape, kept: Bools, choosers: dict[Shape, Chooser]
) -> int | None:
    chooser = choosers.get(shape)
    if chooser is None:
        chooser = choosers[shape] = Chooser(offers, shape, kept)
    return chooser.choose()


def explain_shape(offers: Offers, shape: Shape, kept: Bools) -> Refusal:
    """Return why no node takes this shape: the first of the checks that leaves no node."""
    nodes = int(np.count_nonzero(offers.capacity > 0))
    if not offers.open.any():
        return Refusal("NO_NODE_READY", nodes)
    best = int(np.argmax(np.where(offers.open, offers.promise, -1)))
    steps: tuple[tuple[str, Bools], ...] = (
        ("NO_NODE_LARGE_ENOUGH", offers.capacity >= shape.memory_request_bytes),
        ("NO_NODE_WITH_THAT_MANY_CPUS", offers.cpus >= shape.cpus),
        ("BLOCKED_BY_RULE", ~offers.blocked),
        ("NO_NODE_WITH_MEMORY", offers.promise >= shape.memory_request_bytes),
        ("NO_NODE_WITH_CPUS", offers.cpus_free >= shape.cpus),
        ("NODE_KEPT_FOR_ANOTHER", ~kept),
    )
    left = offers.open.copy()
    for code, mask in steps:
        left &= mask
        if not left.any():
            return Refusal(code, nodes, best, int(offers.promise[best]))
    return Refusal("NO_NODE_WITH_MEMORY", nodes, best, int(offers.promise[best]))


def node_to_keep(offers: Offers, shape: Shape, taken: Bools) -> int | None:
    """Return the node that will soonest fit a task that others keep overtaking.

    That is the one with the largest promise among those that could take it when empty.
    """
    able = (
        offers.open
        & ~taken
        & (offers.capacity >= shape.memory_request_bytes)
        & (offers.cpus >= shape.cpus)
    )
    if not able.any():
        return None
    return int(np.argmax(np.where(able, offers.promise, -1)))
