"""The simulated controller: who is placed when, by what is reserved, learned and seen.

Uses the product's own growth; sizing is the product's too. Sees samples each 250 ms,
hears of ends after 10 ms, and a placed task starts 30 ms later.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from _memory_workloads import Work
from _simulated_node import MIB, STEP_NS, Attempt, Ended, Node, levels_of

from agent.group import gap_bytes
from agent.guard import DEFAULT_SETTINGS, Guard, GuardSettings
from controller.core.growth import (
    Curves,
    Expectation,
    GrowthPolicy,
    Running,
    expected_first,
    reserved_now,
)
from controller.core.learning import UNKNOWN_BASES, expected_peak, set_aside_first
from controller.core.limits import DEFAULT_LIMITS
from controller.core.peaks import Peaks
from controller.core.sizing import Ask, Size, Sizing

SAMPLE_NS = 250_000_000
REPORT_NS = 10_000_000
START_NS = 30_000_000
SECONDS_MAX = 300
PILOT_NS = 500_000_000  # how long a task of a new category has run before it tells of the others


@dataclass(frozen=True, slots=True)
class Policy:
    """What is compared."""

    growth: GrowthPolicy = field(default_factory=GrowthPolicy)
    guard: GuardSettings | None = DEFAULT_SETTINGS
    order: str = "id"  # or "size": what asks most goes first
    learn: bool = True  # what running tasks are expected to use, from their curves
    slots: int = 8
    pilots: int = 3  # of a category of which nothing was seen
    believe: bool = True  # the guard goes by declaration or default while nothing is learned


POLICIES: dict[str, Policy] = {
    "default": Policy(),
    # No overcommit: the expected peak is set aside in full; the guard has next to nothing to do.
    "peak reserved": Policy(GrowthPolicy(rest_share=1.0)),
    "share 0.6": Policy(GrowthPolicy(rest_share=0.6)),
    "share 0.5": Policy(GrowthPolicy(rest_share=0.5)),
    "share 0.7": Policy(GrowthPolicy(rest_share=0.7)),
    "share 0.4": Policy(GrowthPolicy(rest_share=0.4)),
    "share 0.2": Policy(GrowthPolicy(rest_share=0.2)),
    "quantile 0.75": Policy(GrowthPolicy(quantile=0.75)),
    "quantile 0.9": Policy(GrowthPolicy(quantile=0.9)),
    # The guard keeps nothing, a share, or all that older tasks may need free of younger ones.
    "claim nothing": Policy(guard=GuardSettings(claim_share=0.0)),
    "claim half": Policy(guard=GuardSettings(claim_share=0.5)),
    "banker": Policy(guard=GuardSettings(claim_share=1.0, claim_ns=3_600_000_000_000)),
    # Waiting frozen against running again.
    "wait long": Policy(guard=GuardSettings(frozen_crowd_ns=30_000_000_000)),
    "wait short": Policy(guard=GuardSettings(frozen_crowd_ns=1_000_000_000)),
    # The order of waiting tasks, no guard, running tasks that keep what they were placed by, and a
    # guard that knows of a task without a run only what was set aside for it.
    "largest first": Policy(order="size"),
    "no guard": Policy(guard=None),
    "no curves": Policy(learn=False),
    "believe nothing": Policy(believe=False),
    "one pilot": Policy(pilots=1),
    "no pilots": Policy(pilots=99),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    makespan_s: float
    guard_kills: int
    kernel_kills: int
    lost: int
    wasted_gib_s: float
    used_ratio: float
    frozen_s: float


@dataclass(slots=True)
class _Waiting:
    work: Work
    number: int = 1
    need_bytes: int = 0  # after a guard's kill: reserve it in full


class Controller:
    """Places the waiting tasks on one node until all are done."""

    def __init__(self, works: list[Work], node: Node, policy: Policy) -> None:
        self.node, self.policy = node, policy
        self.sizing = Sizing()
        self.curves = Curves(policy.growth)
        self._learned: dict[Ask, tuple[int, Size, Peaks | None]] = {}
        self.waiting = [_Waiting(work) for work in works]
        self.levels = {work.task_id: levels_of(work) for work in works}
        self.starting: list[tuple[int, Attempt]] = []
        self.seen: dict[tuple[int, int], int] = {}
        self.peak: dict[tuple[int, int], int] = {}
        self.whole: set[int] = set()
        self.reserved: dict[tuple[int, int], int] = {}
        self.ends: list[tuple[int, Ended]] = []
        self.next_sample_ns = SAMPLE_NS
        self.guard_kills = self.kernel_kills = 0
        self.intake_stopped = False

    def run(self) -> Outcome:
        node = self.node
        self._cycle()
        while (self.waiting or self.starting or node.running or self.ends) and (
            node.now_ns < SECONDS_MAX * 1e9
        ):
            for at_ns, attempt in list(self.starting):
                if node.now_ns >= at_ns:
                    self.starting.remove((at_ns, attempt))
                    attempt.started_ns = node.now_ns
                    node.running.append(attempt)
            for ended in node.advance():
                self.ends.append((node.now_ns + REPORT_NS, ended))
            changed = self._hear_ends()
            if node.now_ns >= self.next_sample_ns:
                self._sample()
                self.next_sample_ns += SAMPLE_NS
                changed = True
            if node.intake_stopped != self.intake_stopped:
                self.intake_stopped = node.intake_stopped
                changed = True
            if changed:
                self._cycle()
        seconds = node.now_ns / 1e9
        return Outcome(
            seconds,
            self.guard_kills,
            self.kernel_kills,
            len(self.waiting) + len(node.running) + len(self.starting),
            node.wasted_area / (1 << 30),
            node.used_area / seconds / node.capacity_bytes,
            node.frozen_seconds,
        )

    def _hear_ends(self) -> bool:
        heard = [ended for at_ns, ended in self.ends if at_ns <= self.node.now_ns]
        self.ends = [(at_ns, e) for at_ns, e in self.ends if at_ns > self.node.now_ns]
        for ended in heard:
            attempt = ended.attempt
            self.curves.ended(attempt.key, ended.how == "done", attempt.peak_bytes)
            for table in (self.seen, self.peak, self.reserved):
                table.pop(attempt.key, None)
            if ended.how == "done":
                ran_ns = int(attempt.progress * STEP_NS)
                self.sizing.observe(_ask(attempt.work), attempt.peak_bytes, ran_ns)
                continue
            if ended.how == "guard":
                self.guard_kills += 1
            else:
                self.kernel_kills += 1
            self.waiting.append(_Waiting(attempt.work, attempt.number + 1, attempt.peak_bytes))
            self.whole.add(attempt.work.task_id)
        return bool(heard)

    def _sample(self) -> None:
        for attempt in self.node.running:
            key = attempt.key
            self.seen[key] = attempt.used_bytes
            self.peak[key] = max(self.peak.get(key, 0), attempt.used_bytes)
            elapsed = self.node.now_ns - attempt.started_ns - attempt.frozen_ns
            self.curves.observe(key, elapsed, attempt.used_bytes)
            if elapsed >= PILOT_NS:
                self.sizing.observe_live(_ask(attempt.work), attempt.peak_bytes, elapsed)

    def _expected(self, attempt: Attempt) -> Expectation:
        if not self.policy.learn:
            return Expectation()
        return self.curves.expect(attempt.key, self._peaks(attempt.work))

    def _cycle(self) -> None:
        node, policy = self.node, self.policy
        on_node = node.running + [attempt for _, attempt in self.starting]
        promised = 0
        for attempt in on_node:
            used = self.seen.get(attempt.key, 0)
            task = Running(
                attempt.first_bytes,
                used,
                whole=attempt.work.task_id in self.whole,
            )
            self.reserved[attempt.key] = reserved_now(task, self._expected(attempt), policy.growth)
            promised += max(self.reserved[attempt.key], used)
        if self.intake_stopped:
            return
        room = node.capacity_bytes - promised
        for line in self._ordered():
            if len(on_node) >= policy.slots:
                break
            if self._waits_for_pilots(line, on_node):
                continue
            expected = expected_first(self._peaks(line.work), policy.growth)
            first = set_aside_first(self._known(line.work)[1], expected, policy.growth)
            if line.need_bytes:
                first = max(first, expected.peak_bytes, line.need_bytes)
            first = min(first, node.capacity_bytes)
            if first > room:
                continue
            room -= first
            self._place(line, first, expected, on_node)

    def _waits_for_pilots(self, line: _Waiting, on_node: list[Attempt]) -> bool:
        category = line.work.category
        if line.need_bytes or self._known(line.work)[1].basis not in UNKNOWN_BASES:
            return False
        count = sum(attempt.work.category == category for attempt in on_node)
        return count >= self.policy.pilots

    def _peaks(self, work: Work) -> Peaks | None:
        return self._known(work)[2]

    def _known(self, work: Work) -> tuple[int, Size, Peaks | None]:
        """Return what sizing says of a task, asked anew when its category has changed."""
        ask = _ask(work)
        version = self.sizing.version(work.category)
        kept = self._learned.get(ask)
        if kept is None or kept[0] != version:
            size = self.sizing.size(ask, self.node.capacity_bytes)
            kept = self._learned[ask] = (version, size, self.sizing.peaks(ask))
        return kept

    def _ordered(self) -> list[_Waiting]:
        if self.policy.order == "id":
            return sorted(self.waiting, key=lambda line: line.work.task_id)
        return sorted(
            self.waiting,
            key=lambda line: (-self._known(line.work)[1].memory_bytes, line.work.task_id),
        )

    def _place(
        self, line: _Waiting, first: int, expected: Expectation, on_node: list[Attempt]
    ) -> None:
        told = expected.peak_bytes
        if self.policy.believe:
            believed_bytes = self.sizing.believed_bytes(_ask(line.work))
            told = expected_peak(self._known(line.work)[1], expected, believed_bytes)
        attempt = Attempt(
            line.work,
            line.number,
            0,
            first,
            max(told, line.need_bytes),
            self.levels[line.work.task_id],
        )
        self.waiting.remove(line)
        self.curves.started(attempt.key, line.work.category)
        self.starting.append((self.node.now_ns + START_NS, attempt))
        on_node.append(attempt)


def _ask(work: Work) -> Ask:
    declared = None if work.declared_mib is None else int(work.declared_mib * MIB)
    return Ask(work.category, None, declared)


def simulate(works: list[Work], policy: Policy, seed: int = 1, total_mib: int = 4_096) -> Outcome:
    """Return how a policy does with these tasks, all submitted at once, on a machine that large."""
    total_bytes = total_mib * MIB
    capacity_bytes = total_bytes - DEFAULT_LIMITS.system_reserve_bytes(total_bytes)
    guard = None if policy.guard is None else Guard(policy.guard)
    node = Node(capacity_bytes, capacity_bytes - gap_bytes(capacity_bytes), guard, seed)
    return Controller(works, node, policy).run()
