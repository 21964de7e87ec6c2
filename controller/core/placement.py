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

# Beyond so many different cpus each further shape is looked at, which costs time and no more.
REFUSED_CPUS_MAX = 64


@dataclass(slots=True)
class Offers:
    """What the nodes offer in this cycle, by slot; placing a task takes from it."""

    open: Bools  # takes new tasks at all
    blocked: Bools  # a rule with placement: block holds there
    promise: Ints
    own: Ints
    machine: Ints
    capacity: Ints
    when_empty: Ints  # what it could promise without any task of MASS on its machine
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


class Refusals:
    """Which waiting shapes were refused in a round. Why is worked out when somebody asks, from
    what the nodes offered at its end: thousands of shapes may wait, and few are asked about."""

    def __init__(self, offers: Offers | None = None, kept: Bools | None = None) -> None:
        self._offers, self._kept = offers, kept
        self._known: dict[Shape, Refusal | None] = {}

    def add(self, shape: Shape, refusal: Refusal | None = None) -> None:
        """Note that no task of this shape can be placed any more; None leaves why open."""
        self._known[shape] = refusal

    def get(self, shape: Shape) -> Refusal | None:
        """Return why tasks of this shape were refused; None if they were not."""
        if shape not in self._known:
            return None
        refusal = self._known[shape]
        if refusal is None:
            assert self._offers is not None
            assert self._kept is not None
            refusal = explain_shape(self._offers, shape, self._kept)
            self._known[shape] = refusal
        return refusal


@dataclass(frozen=True, slots=True)
class Placement:
    """One task for one node."""

    task_id: int
    slot: int
    shape: Shape


@dataclass(slots=True)
class Placements:
    """The outcome of one round."""

    refused: Refusals
    placed: list[Placement] = field(default_factory=list)
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


class _Round:
    """One walk through the queue."""

    def __init__(self, queue: PendingQueue, offers: Offers, kept_for: Mapping[int, int]) -> None:
        self.offers = offers
        self.kept = np.zeros(len(offers.open), dtype=np.bool_)
        self.choosers: dict[Shape, Chooser] = {}
        self.result = Placements(Refusals(offers, self.kept))
        # Tasks of one shape are interchangeable: a node kept for one of them serves the first.
        self.kept_for: dict[Shape, list[int]] = {}
        for task_id, slot in kept_for.items():
            self.kept_for.setdefault(queue.shape(task_id), []).append(slot)
        self._refused_bytes: dict[float, int] = {}  # by cpus, the smallest request refused

    def choose(self, shape: Shape) -> int | None:
        """Return the best slot for a task of this shape, or None."""
        if self._hopeless(shape):
            return None
        chooser = self.choosers.get(shape)
        if chooser is None:
            chooser = self.choosers[shape] = Chooser(self.offers, shape, self.kept)
        slot = chooser.choose()
        if slot is None and len(self._refused_bytes) < REFUSED_CPUS_MAX:
            self._refused_bytes[shape.cpus] = shape.memory_request_bytes
        return slot

    def _hopeless(self, shape: Shape) -> bool:
        """Say whether a shape that asks no more was refused: offers only fall within a round."""
        return any(
            cpus <= shape.cpus and size_bytes <= shape.memory_request_bytes
            for cpus, size_bytes in self._refused_bytes.items()
        )

    def refuse(self, shape: Shape, refusal: Refusal | None = None) -> None:
        """Note a refusal; from now on the nodes kept for this shape are closed to others."""
        self.result.refused.add(shape, refusal)
        slots = self.kept_for.pop(shape, None)
        if slots:
            self.kept[slots] = True
            self.choosers.clear()  # they were made without these slots being kept


def place(
    queue: PendingQueue, offers: Offers, kept_for: Mapping[int, int], room: int
) -> Placements:
    """Place waiting tasks in order until none fits any more.

    kept_for maps a waiting task's id to the slot that is kept free for it: shapes that come later
    in the order do not get that slot. At most `room` tasks are placed.
    """
    walk = _Round(queue, offers, kept_for)
    ordered = queue.in_order()
    result = walk.result
    passed_over: list[int] = []  # refused since the last task was placed
    while (entry := ordered.next()) is not None:
        task_id, shape = entry
        if len(result.placed) >= room:
            walk.refuse(shape, Refusal("RUNNING_LIMIT", int(np.count_nonzero(offers.open))))
            ordered.skip_shape()
            continue
        slot = walk.choose(shape)
        if slot is None:
            walk.refuse(shape)
            passed_over.append(task_id)
            ordered.skip_shape()
            continue
        offers.take(slot, shape)
        result.placed.append(Placement(task_id, slot, shape))
        result.overtaken.update(passed_over)
        passed_over.clear()
    return result


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


def able_when_empty(offers: Offers, shape: Shape) -> Bools:
    """Return which slots could take this shape once all tasks there have ended."""
    return (
        offers.open
        & ~offers.blocked
        & (offers.when_empty >= shape.memory_request_bytes)
        & (offers.cpus >= shape.cpus)
    )


def node_to_keep(offers: Offers, shape: Shape, taken: Bools) -> int | None:
    """Return the node that will soonest fit a task that others keep overtaking.

    That is the one with the largest promise among those that could take it when empty.
    """
    able = able_when_empty(offers, shape) & ~taken
    if not able.any():
        return None
    return int(np.argmax(np.where(able, offers.promise, -1)))
