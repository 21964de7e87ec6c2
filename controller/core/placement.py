"""Which waiting task goes to which node: feasible, score, choose; every refusal keeps its numbers.

Works on copies of what the nodes can promise, so that nothing is decided twice in one cycle; the
ledger has the last word when the assignments are committed.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from controller.core.needs import Need
from controller.core.nodes import Bools, Floats, Ints
from controller.core.queue import Line, PendingQueue, Shape

# Beyond so many different cpus each further shape is looked at, which costs time and no more.
REFUSED_CPUS_MAX = 64


def _all_match(constraint: str) -> Bools:
    raise AssertionError(f"nothing is known about nodes to hold against '{constraint}'")


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
    # CPUs that brief tasks may ask beyond the free ones: the agent holds them for a moment.
    ahead: Floats = field(default_factory=lambda: np.zeros(0))
    # Closed now, but may be open again soon.
    reopens: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    stopped: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))  # by their guards
    gpus: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    gpus_free: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    matching: Callable[[str], Bools] = _all_match  # where a constraint holds
    # By kept slot: how long a task may run there before whom it is kept for could start.
    spare_ns: Mapping[int, int] = field(default_factory=dict)

    def take(self, slot: int, shape: Shape) -> None:
        """Count a placed task against its node and its machine."""
        self.cpus_free[slot] -= shape.cpus
        if shape.gpus:
            self.gpus_free[slot] -= shape.gpus
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
    best_slot: int | None = None  # the one with the largest promise that passed all checks before
    best_promise_bytes: int = 0


@dataclass(slots=True)
class Quotas:
    """How many tasks users and arrays have placed and may place; a round counts on in it."""

    user_tasks: dict[str, int] = field(default_factory=dict)
    array_tasks: dict[int, int] = field(default_factory=dict)
    user_tasks_max: int = 0  # 0: no bound
    shares: Mapping[str, int] | None = None  # bytes by user; None: users are not told apart
    category_tasks: dict[str, int] = field(default_factory=dict)
    is_guess: Callable[[Need], bool] = lambda need: False  # nothing is known of its category
    pilots_max: int = 1  # of such a category
    # How many of each category are placed of which nothing is heard; asked where it matters.
    silent: Callable[[], Mapping[str, int]] = dict
    is_brief: Callable[[int], bool] = lambda task_id: False  # it ends soon, as far as is known
    held: int = 0  # sent ahead, and not started yet
    _silent: Mapping[str, int] | None = None  # the answer, for the whole round

    def refusal(self, line: Line) -> str:
        """Return the code of the bound that keeps this line from placing one more, or ""."""
        if (
            line.need is not None
            and self.category_tasks.get(line.need.category, 0) >= self.pilots_max
            and self.is_guess(line.need)
            and self._pilots(line.need.category) >= self.pilots_max
        ):
            return "PILOT"
        if line.array_id and self.array_tasks.get(line.array_id, 0) >= line.array_running_max:
            return "ARRAY_LIMIT"
        if self.user_tasks_max and self.user_tasks.get(line.user, 0) >= self.user_tasks_max:
            return "USER_LIMIT"
        return ""

    def _pilots(self, category: str) -> int:
        """Return how many placed tasks of a category may still tell about it."""
        if self._silent is None:
            self._silent = self.silent()
        return self.category_tasks[category] - self._silent.get(category, 0)

    def may_go_ahead(self, line: Line, room: int) -> bool:
        """Say whether one of this line may be sent ahead.

        Held ones count as placed: they must not keep those back that could start elsewhere. So
        there are no more of them than `room`, which is left to all, and a user whose placed tasks
        are half of what he may have gets none.
        """
        half = self.user_tasks_max / 2 or math.inf
        return self.held < room and self.user_tasks.get(line.user, 0) < half

    def take(self, line: Line, ahead: bool = False) -> None:
        """Count a placed task."""
        self.held += ahead
        self.user_tasks[line.user] = self.user_tasks.get(line.user, 0) + 1
        if line.need is not None:
            category = line.need.category
            self.category_tasks[category] = self.category_tasks.get(category, 0) + 1
        if line.array_id:
            self.array_tasks[line.array_id] = self.array_tasks.get(line.array_id, 0) + 1


class Refusals:
    """Which waiting shapes were refused in a round. Why is worked out when somebody asks, from
    what the nodes offered at its end: thousands of shapes may wait, and few are asked about."""

    def __init__(self, offers: Offers | None = None, kept: Bools | None = None) -> None:
        self._offers, self._kept = offers, kept
        self._known: dict[Shape, Refusal | None] = {}
        self._lines: dict[Line, Refusal] = {}

    def add(self, shape: Shape, refusal: Refusal | None = None) -> None:
        """Note that no task of this shape can be placed any more; None leaves why open."""
        self._known[shape] = refusal

    def add_line(self, line: Line, refusal: Refusal) -> None:
        """Note that a bound of its user or array keeps a line back."""
        self._lines[line] = refusal

    def of_line(self, line: Line) -> Refusal | None:
        """Return why tasks of this line were refused; None if they were not."""
        return self._lines.get(line) or self.get(line.shape)

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
    need: Need | None = None  # that the shape's memory follows from
    ahead: bool = False  # of free CPUs: the agent holds it until there are


@dataclass(slots=True)
class Placements:
    """The outcome of one round."""

    refused: Refusals
    placed: list[Placement] = field(default_factory=list)
    overtaken: set[int] = field(default_factory=set)  # refused, and a later task was placed


def feasible(offers: Offers, shape: Shape, kept: Bools) -> Bools:
    """Return on which slots a task of this shape may run now; `kept` slots are for others."""
    mask: Bools = (
        offers.open
        & ~offers.blocked
        & ~kept
        & (offers.promise >= shape.memory_request_bytes)
        & (offers.cpus_free >= shape.cpus)
    )
    if len(offers.stopped):
        mask &= ~offers.stopped
    if shape.node_min_bytes:
        mask &= offers.capacity >= shape.node_min_bytes
    if shape.gpus:
        mask &= offers.gpus_free >= shape.gpus
    if shape.constraint:
        mask &= offers.matching(shape.constraint)
    return mask


def score(offers: Offers, slot: int) -> int:
    """Return how well a node suits: the most memory left wins, so that surprises find room."""
    return int(offers.promise[slot])


def _fullest(offers: Offers, mask: Bools) -> int | None:
    """Return the node with the least memory left among those in the mask: `--pack`."""
    if not mask.any():
        return None
    most = int(offers.promise.max()) + 1
    return int(np.argmin(np.where(mask, offers.promise, most)))


class Chooser:
    """Hands out the best nodes for shapes that differ in memory only; scores only fall within a
    cycle, so a stale entry at the top is looked at again and put back."""

    def __init__(self, offers: Offers, kept: Bools) -> None:
        self._offers, self._kept = offers, kept
        self._heap: list[tuple[int, int]] | None = None
        self._first = True

    def choose(self, shape: Shape) -> int | None:
        """Return the best slot, ties by the lower slot, or None when no node is feasible."""
        if shape.pack:  # taking makes a node better: there is no order to keep
            return _fullest(self._offers, feasible(self._offers, shape, self._kept))
        if self._first:  # most cycles place one task of a kind: no need to sort all nodes
            self._first = False
            mask = feasible(self._offers, shape, self._kept)
            if not mask.any():
                return None
            return int(np.argmax(np.where(mask, self._offers.promise, -1)))
        if self._heap is None:
            # Whatever they have left: the next shape may ask less.
            slots = np.flatnonzero(
                feasible(self._offers, replace(shape, memory_request_bytes=0), self._kept)
            )
            self._heap = [(-score(self._offers, int(slot)), int(slot)) for slot in slots]
            heapq.heapify(self._heap)
        heap, offers = self._heap, self._offers
        while heap:
            key, slot = heap[0]
            if offers.cpus_free[slot] < shape.cpus or (
                shape.gpus and offers.gpus_free[slot] < shape.gpus
            ):
                heapq.heappop(heap)
                continue
            now = score(offers, slot)
            if -key == now:
                return slot if now >= shape.memory_request_bytes else None
            heapq.heapreplace(heap, (-now, slot))
        return None


class _Round:
    """One walk through the queue."""

    def __init__(
        self,
        queue: PendingQueue,
        offers: Offers,
        kept_for: Mapping[int, int],
    ) -> None:
        self.offers = offers
        self.kept = np.zeros(len(offers.open), dtype=np.bool_)
        self.spare_ns = np.zeros(len(offers.open), dtype=np.int64)
        for slot, time_ns in offers.spare_ns.items():
            self.spare_ns[slot] = time_ns
        self._backfills = any(time_ns > 0 for time_ns in offers.spare_ns.values())
        # By cpus, gpus, constraint, how many sizes of nodes are too small, and, where a short task
        # may go to a kept node, its time limit.
        self.choosers: dict[tuple[float, int, str, int, int], Chooser] = {}
        self._capacities: list[int] = np.unique(offers.capacity[offers.open]).tolist()
        self.result = Placements(Refusals(offers, self.kept))
        # Tasks of one shape are interchangeable: a node kept for one of them serves the first.
        self.kept_for: dict[Shape, list[int]] = {}
        for task_id, slot in kept_for.items():
            self.kept_for.setdefault(queue.shape(task_id), []).append(slot)
        self._refused_bytes: dict[float, int] = {}  # by cpus, the smallest request refused
        self.sends_ahead = bool(offers.ahead.any())

    def choose(self, shape: Shape) -> int | None:
        """Return the best slot for a task of this shape, or None."""
        short = self._backfills and shape.time_limit_ns > 0
        if not short and self._hopeless(shape):
            return None
        too_small = bisect_left(self._capacities, shape.node_min_bytes)
        time_ns = shape.time_limit_ns if short else 0
        kind = (shape.cpus, shape.gpus, shape.constraint, too_small, time_ns)
        chooser = self.choosers.get(kind)
        if chooser is None:
            kept = self.kept
            if short:
                kept = kept & (self.spare_ns < shape.time_limit_ns)
            chooser = self.choosers[kind] = Chooser(self.offers, kept)
        slot = chooser.choose(shape)
        plain = not shape.gpus and not shape.constraint and not too_small
        if slot is None and plain and len(self._refused_bytes) < REFUSED_CPUS_MAX:
            self._refused_bytes[shape.cpus] = shape.memory_request_bytes
        return slot

    def choose_ahead(self, shape: Shape) -> int | None:
        """Return the node where a brief task waits least for CPUs, or None."""
        if not self.sends_ahead:
            return None
        offers = self.offers
        mask = feasible(offers, replace(shape, cpus=-math.inf), self.kept)
        mask &= offers.cpus >= shape.cpus
        mask &= offers.cpus_free + offers.ahead >= shape.cpus
        if not mask.any():
            self.sends_ahead = bool((offers.cpus_free + offers.ahead > 0).any())
            return None
        return int(np.argmax(np.where(mask, offers.cpus_free, -np.inf)))

    def _hopeless(self, shape: Shape) -> bool:
        """Say whether a shape that asks no more was refused: offers only fall within a round."""
        return any(
            cpus <= shape.cpus and size_bytes <= shape.memory_request_bytes
            for cpus, size_bytes in self._refused_bytes.items()
        )

    def refuse(self, shape: Shape, refusal: Refusal | None = None) -> None:
        """Note a refusal; from now on the nodes kept for this shape are closed to others, and
        nothing that comes later is sent ahead: it would hold up one that waits for CPUs."""
        if self.sends_ahead and able_when_empty(self.offers, shape).any():
            self.sends_ahead = False
        self.result.refused.add(shape, refusal)
        slots = self.kept_for.pop(shape, None)
        if slots:
            self.kept[slots] = True
            self.choosers.clear()  # they were made without these slots being kept


def place(
    queue: PendingQueue,
    offers: Offers,
    kept_for: Mapping[int, int],
    room: int,
    quotas: Quotas | None = None,
) -> Placements:
    """Place waiting tasks in order until none fits any more.

    kept_for maps a waiting task's id to the slot that is kept free for it: shapes that come later
    in the order do not get that slot, unless their time limit is within what the offers spare of
    it. At most `room` tasks are placed.
    """
    quotas = Quotas() if quotas is None else quotas
    walk = _Round(queue, offers, kept_for)
    ordered = queue.in_order(quotas.shares)
    result = walk.result
    passed_over: list[tuple[int, int]] = []  # refused for want of a node
    last_placed = (-(1 << 62), 0)  # of all that were placed, the last by priority and id
    while (entry := ordered.next()) is not None:
        task_id, line = entry
        shape = line.shape
        if len(result.placed) >= room:
            walk.refuse(shape, Refusal("RUNNING_LIMIT", int(np.count_nonzero(offers.open))))
            ordered.skip_line()
            continue
        if code := quotas.refusal(line):
            result.refused.add_line(line, Refusal(code, int(np.count_nonzero(offers.open))))
            ordered.skip_line()
            continue
        slot, ahead = walk.choose(shape), False
        left = room - len(result.placed)
        if slot is None and quotas.may_go_ahead(line, left) and quotas.is_brief(task_id):
            slot, ahead = walk.choose_ahead(shape), True
        if slot is None:
            walk.refuse(shape)
            passed_over.append(ordered.rank)
            ordered.skip_line()
            continue
        if walk.sends_ahead and not ahead and not quotas.is_brief(task_id):
            offers.ahead[slot] = 0.0  # nothing brief waits behind it
        offers.take(slot, shape)
        quotas.take(line, ahead)
        ordered.charge(line)
        result.placed.append(Placement(task_id, slot, shape, line.need, ahead))
        last_placed = max(last_placed, ordered.rank)
    # Whoever went first for its smaller share has overtaken as well, once it has the higher id.
    result.overtaken.update(rank[1] for rank in passed_over if rank < last_placed)
    return result


def explain_shape(offers: Offers, shape: Shape, kept: Bools) -> Refusal:
    """Return why no node takes this shape: the first of the checks that leaves no node."""
    nodes = int(np.count_nonzero(offers.capacity > 0))
    if not offers.open.any():
        return Refusal("NO_NODE_READY", nodes)
    anywhere = np.ones(len(offers.open), dtype=np.bool_)
    steps: tuple[tuple[str, Bools], ...] = (
        (
            "NO_NODE_MATCHES",
            offers.matching(shape.constraint) if shape.constraint else anywhere,
        ),
        ("NO_NODE_WITH_THAT_MANY_GPUS", offers.gpus >= shape.gpus if shape.gpus else anywhere),
        ("NO_NODE_LARGE_ENOUGH", offers.capacity >= shape.capacity_bytes),
        ("NO_NODE_WITH_THAT_MANY_CPUS", offers.cpus >= shape.cpus),
        ("BLOCKED_BY_RULE", ~offers.blocked),
        ("INTAKE_STOPPED", ~offers.stopped if len(offers.stopped) else anywhere),
        ("NO_NODE_WITH_MEMORY", offers.promise >= shape.memory_request_bytes),
        ("NO_NODE_WITH_CPUS", offers.cpus_free >= shape.cpus),
        ("NO_NODE_WITH_GPUS", offers.gpus_free >= shape.gpus if shape.gpus else anywhere),
        ("NODE_KEPT_FOR_ANOTHER", ~kept),
    )
    left, reason = offers.open, "NO_NODE_WITH_MEMORY"
    for code, mask in steps:
        passed = left & mask
        if not passed.any():
            reason = code
            break
        left = passed
    best = int(np.argmax(np.where(left, offers.promise, -1)))
    return Refusal(reason, nodes, best, int(offers.promise[best]))


def able_when_empty(offers: Offers, shape: Shape) -> Bools:
    """Return which slots could take this shape once all tasks there have ended."""
    able: Bools = (
        offers.open
        & ~offers.blocked
        & (offers.when_empty >= shape.memory_request_bytes)
        & (offers.cpus >= shape.cpus)
    )
    if shape.node_min_bytes:
        able &= offers.capacity >= shape.node_min_bytes
    if shape.gpus:
        able &= offers.gpus >= shape.gpus
    if shape.constraint:
        able &= offers.matching(shape.constraint)
    return able


def largest_sizes_bytes(offers: Offers) -> tuple[int, int]:
    """Return the most that a learned size may be: what some open node could give when empty, and
    what some closed one may give again; 0 where there is none.

    The first in steps of a 32nd of a node's capacity, so that sizes do not change with each sample.
    """
    step = np.maximum(offers.capacity // 32, 1)
    fits = np.minimum(offers.when_empty, offers.capacity) // step * step
    again = offers.capacity[offers.reopens].max(initial=0) if len(offers.reopens) else 0
    return int(fits[offers.open].max(initial=0)), int(again)


def node_to_keep(offers: Offers, shape: Shape, taken: Bools) -> int | None:
    """Return the node that will soonest fit a task that others keep overtaking.

    That is the one with the largest promise among those that could take it when empty.
    """
    able = able_when_empty(offers, shape) & ~taken
    if not able.any():
        return None
    return int(np.argmax(np.where(able, offers.promise, -1)))
