"""What is known of the memory of categories, and the sizes that follow from it.

Fed by ended attempts and by samples of running ones, in the order in which they come; asked for the
size of a need once for each change of what is known, however many tasks wait with it.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from mass.units import size_words

from controller.core.growth import (
    CurveLimits,
    Curves,
    Expectation,
    GrowthPolicy,
    Running,
    expected_first,
    reserved_first,
    reserved_now,
)
from controller.core.limits import SECOND_NS, Limits
from controller.core.model import Attempt, MemoryLimits, OomCause, Task, TaskSpec, TaskState
from controller.core.needs import Need, rounded_up
from controller.core.peaks import STEP_MIN
from controller.core.sizing import UNMEASURED, Ask, Basis, Size, Sizing, SizingLimits

RUNTIMES_MAX = 32  # of a category, the latest
OFFER_KEPT_NS = 30 * SECOND_NS  # of what first attempts go by
# Of what the step after an end out of memory waits for: long enough for a neighbour's batch job to
# end, and short beside running into the same wall five times.
STEP_KEPT_NS = 600 * SECOND_NS
DECISIONS_KEPT_MAX = 20_000  # beyond it they are made anew
# A size from one of these is a guess about a category of which nothing was seen.
UNKNOWN_BASES = frozenset({Basis.DEFAULT, Basis.BORROWED})
# What was declared stands beside one of these.
DECLARATION_STANDS = frozenset({Basis.DECLARED, Basis.BORROWED})
# Ends that say that the task needs more than it had.
OWN_FAULTS = frozenset({OomCause.OWN_LIMIT, OomCause.CHILD_ONLY})


@dataclass(frozen=True, slots=True)
class Decision:
    """How much memory is set aside for a need, and which numbers led to it."""

    size_bytes: int  # to set aside at the start
    node_min_bytes: int  # what a node must be able to give in all; 0: any will do
    expected_peak_bytes: int  # what the node's guard goes by; 0: nothing is known
    basis: Basis
    reason: str


@dataclass(slots=True)
class Outcomes:
    """How the attempts of a category ended."""

    succeeded: int = 0
    failed: int = 0  # by themselves
    out_of_memory: int = 0  # at a limit of their own
    spared: int = 0  # for want of memory, by no fault of theirs
    failed_measured: bool = False  # one of the failed ones has told its peak
    runtimes_ns: deque[int] = field(default_factory=lambda: deque(maxlen=RUNTIMES_MAX))


@dataclass(slots=True)
class _Clock:
    """How long an attempt has run, without the time it was paused or frozen."""

    seen_ns: int
    elapsed_ns: int = 0
    first_bytes: int = 0
    peak_bytes: int = 0
    frozen: bool = False  # by the guard


@dataclass(slots=True)
class _Most:
    """The most of the last while: of between one and two times kept_ns."""

    kept_ns: int
    bytes: int = 0
    _since_ns: int = 0
    _now: int = 0
    _before: int = 0

    def take(self, now_ns: int, value: int) -> None:
        if now_ns - self._since_ns >= self.kept_ns:
            self._since_ns, self._before, self._now = now_ns, self._now, 0
        self._now = max(self._now, value)
        self.bytes = max(self._now, self._before)


class Learning:
    """Sizes by category. Bounded by categories_max and the number of placed tasks."""

    def __init__(self, limits: Limits) -> None:
        self.sizing = Sizing(
            SizingLimits(
                categories_max=limits.categories_max,
                default_bytes=limits.memory_request_default_bytes,
            )
        )
        self.curves = Curves(
            limits=CurveLimits(
                categories_max=limits.categories_max, rows_max=limits.tasks_running_max
            )
        )
        self.reconfigure(limits)
        self.outcomes: OrderedDict[str, Outcomes] = OrderedDict()  # the longest unused first
        # What nodes could give with no task on them; 0: not known.
        self._open = _Most(OFFER_KEPT_NS)
        self._reopening = _Most(STEP_KEPT_NS)  # open ones, and those that may be again soon
        self._closed = _Most(STEP_KEPT_NS)  # any closed one: only where nothing else is of use
        self._clocks: dict[tuple[int, int], _Clock] = {}

    def reconfigure(self, limits: Limits) -> None:
        """Go on with other limits; what was decided by the others is decided anew."""
        self.limits = limits
        self.policy = GrowthPolicy(rest_share=1.0 - limits.overcommit_share)
        self.curves.policy = self.policy
        self._decisions: dict[Need, tuple[tuple[int, int], Decision]] = {}

    def offer(self, now_ns: int, open_bytes: int, reopening_bytes: int = 0) -> None:
        """Take in the most that some open node could give with no task on it, now, and what one
        that is closed may give again soon.

        Sizes go no further than the most of the last while: what others use on a node for a moment,
        or a task that has just ended, must not make every size small.
        """
        self._open.take(now_ns, open_bytes)
        self._reopening.take(now_ns, max(open_bytes, reopening_bytes))
        self._closed.take(now_ns, 0)  # time passes for it too

    def hope(self, now_ns: int, closed_bytes: int) -> None:
        """Let tasks that were seen to use more than open nodes give wait a while for a closed one,
        however long it is closed; `closed_bytes` is what the largest could give."""
        self._closed.take(now_ns, closed_bytes)

    # --- asking ---

    @property
    def lately_bytes(self) -> int:
        """Return the most that an open node could lately give when empty; 0: not known."""
        return self._open.bytes

    def decide(self, need: Need) -> Decision:
        """Return the size of a need by what is known now. Cost: one lookup unless that changed."""
        most_bytes = self._most_bytes(need)
        stamp = (self.sizing.version(need.category), most_bytes)
        known = self._decisions.get(need)
        if known is not None and known[0] == stamp:
            return known[1]
        if len(self._decisions) >= DECISIONS_KEPT_MAX:
            self._decisions.clear()
        decision = self._decide(need, most_bytes)
        self._decisions[need] = (stamp, decision)
        return decision

    def sizes_bytes(self, need: Need) -> tuple[int, int]:
        """Return what a need's next attempt has set aside at its start, and what its node must be
        able to give in all."""
        decision = self.decide(need)
        return decision.size_bytes, decision.node_min_bytes

    def is_brief(self, spec: TaskSpec) -> bool:
        """Say whether a task may be expected to end soon, as all of its category did lately.

        Only such as may run again if that proves wrong.
        """
        known = self.outcomes.get(spec.category)
        return (
            known is not None
            and len(known.runtimes_ns) >= self.limits.brief_runs_min
            and spec.requeue
            and not spec.gpus
            and max(known.runtimes_ns) <= self.limits.brief_ns
        )

    def is_guess(self, need: Need) -> bool:
        """Say whether nothing of its category was seen, so that one task should go ahead.

        One that failed by itself was seen: a category that always fails does not go one by one.
        """
        known = self.outcomes.get(need.category)
        if need.reached_bytes or (known is not None and known.failed_measured):
            return False
        return self.decide(need).basis in UNKNOWN_BASES

    def _decide(self, need: Need, most_bytes: int) -> Decision:
        ask = Ask(need.category, need.input_bytes, need.declared_bytes)
        if need.reached_bytes:
            size = self.sizing.size_after_out_of_memory(
                ask, need.reached_bytes, need.failures, most_bytes
            )
        else:
            size = self.sizing.size(ask, most_bytes, need.once)
        expected = self._expected_first(ask)
        size_bytes, reason = size.memory_bytes, f"from {size.basis.value}: {size.reason}"
        peak_bytes = expected.peak_bytes
        if self.limits.memory_limits is MemoryLimits.ELASTIC:
            size_bytes, told = self._elastic(need, size, expected)
            reason += told
            peak_bytes = expected_peak(size, expected, self.sizing.believed_bytes(ask))
        peak_bytes = max(peak_bytes, need.seen_bytes)
        if size_bytes < need.used_bytes:
            size_bytes = need.used_bytes
            reason += f"; at least the {size_words(size_bytes)} that it used before"
        if size_bytes > most_bytes:
            size_bytes = most_bytes
            reason += f"; no more than {size_words(size_bytes)}, which a node could lately give"
        if need.limit_bytes is not None:
            peak_bytes = min(peak_bytes, need.limit_bytes)
            if size_bytes > need.limit_bytes:
                size_bytes = need.limit_bytes
                reason += f"; no more than its own limit of {size_words(size_bytes)}"
        stands = size.basis in DECLARATION_STANDS
        # Its user may know better than we: it waits for a node that large, and says so.
        node_min_bytes = (need.declared_bytes or 0) if stands else 0
        return Decision(size_bytes, node_min_bytes, peak_bytes, size.basis, reason)

    def _most_bytes(self, need: Need) -> int:
        """Return what the size goes no further than: what an open node could give lately.

        After an end that memory made, that may be too little while a larger node is closed, or used
        by others for a while: a step beyond what was reached by its own fault, or what the guard
        saw it use, is waited for, as far as there is hope.
        """
        most_bytes = self._open.bytes or self.limits.memory_request_max_bytes
        if not need.seen_bytes:
            return most_bytes
        wanted_bytes = least_bytes = max(math.ceil(need.reached_bytes * STEP_MIN), need.used_bytes)
        # One that the guard ended may outgrow what an open node gives, so it has no need to wait.
        hoped_bytes = self._reopening.bytes if need.reached_bytes else 0
        if need.seen_bytes >= most_bytes:
            # Open nodes are of no use: any closed one is waited for that gives any more.
            hoped_bytes = max(hoped_bytes, self._closed.bytes)
            least_bytes = min(wanted_bytes, need.seen_bytes + 1)
        if hoped_bytes < least_bytes:
            return most_bytes
        return max(most_bytes, min(wanted_bytes, hoped_bytes))

    def _elastic(self, need: Need, size: Size, expected: Expectation) -> tuple[int, str]:
        """Return what is set aside at first of a size that a task may outgrow, and why."""
        if need.reached_bytes:
            return size.memory_bytes, ""
        first_bytes, told = set_aside_first(size, expected, self.policy), ""
        if need.whole and expected.peak_bytes:
            whole_bytes = max(first_bytes, expected.peak_bytes, need.used_bytes)
            told = f"; {size_words(whole_bytes)} is set aside, all it is expected to use"
            return whole_bytes, f"{told}, as the guard ended it before"
        if size.basis not in UNMEASURED:
            peak_bytes, share = expected.peak_bytes, 100.0 * self.policy.rest_share
            whole = f"its expected peak of {size_words(peak_bytes)}" if peak_bytes else "that"
            told = f"; {share:.0f} % of {whole} is set aside at first: {size_words(first_bytes)}"
        return first_bytes, told

    def _expected_first(self, ask: Ask) -> Expectation:
        return expected_first(self.sizing.peaks(ask), self.policy)

    # --- learning ---

    def started(self, task: Task, now_ns: int) -> None:
        """Begin to follow an attempt whose process runs."""
        key = (task.id, task.attempt)
        self.curves.started(key, task.spec.category)
        self._clocks[key] = _Clock(now_ns, first_bytes=task.memory_size_bytes)

    def is_silent(self, task: Task, now_ns: int) -> bool:
        """Say whether nothing was measured of a placed task for pilot_silent_ns."""
        clock = self._clocks.get((task.id, task.attempt))
        measured = clock is not None and clock.peak_bytes > 0
        heard_ns = clock.seen_ns if clock is not None and measured else task.assigned_at_ns
        # A task that rests is told with a heartbeat only.
        patience_ns = self.limits.pilot_silent_ns + measured * self.limits.heartbeat_ns
        return now_ns - heard_ns >= patience_ns

    def freeze(self, key: tuple[int, int], frozen: bool) -> None:
        """Note that the guard froze an attempt, or let it go on."""
        clock = self._clocks.get(key)
        if clock is not None:
            clock.frozen = frozen

    def follow(self, task: Task, used_bytes: int, now_ns: int) -> int | None:
        """Take in what a running attempt uses; return what to have set aside for it now.

        None leaves it as it is: its size is fixed.
        """
        key = (task.id, task.attempt)
        clock = self._clocks.get(key)
        if clock is None:
            if not task.started_at_ns:
                return None
            self.started(task, task.started_at_ns)  # the controller has begun anew meanwhile
            clock = self._clocks[key]
        if task.state is TaskState.RUNNING and not clock.frozen:
            clock.elapsed_ns += max(0, now_ns - clock.seen_ns)
        clock.seen_ns = now_ns
        clock.peak_bytes = max(clock.peak_bytes, used_bytes)
        self.curves.observe(key, clock.elapsed_ns, used_bytes)
        ask = sizing_ask(task)
        is_pilot = not self._runs(task.spec.category)
        if is_pilot and now_ns - task.started_at_ns >= self.limits.pilot_ns:
            self.sizing.observe_live(ask, clock.peak_bytes, clock.elapsed_ns)
        if not task.memory_elastic:
            return None
        expected = self.curves.expect(key, self.sizing.peaks(ask))
        running = Running(clock.first_bytes, used_bytes, whole=task.guard_kills > 0)
        return reserved_now(running, expected, self.policy)

    def ended(self, task: Task, attempt: Attempt) -> None:
        """Learn from an ended attempt, and follow it no more."""
        key = (task.id, task.attempt)
        self._clocks.pop(key, None)
        whole = attempt.outcome is TaskState.SUCCEEDED
        self.curves.ended(key, whole, attempt.memory_peak_bytes)
        self.observe(attempt)

    def observe(self, attempt: Attempt) -> None:
        """Learn from an attempt as it is kept; at the start from those of before."""
        if not attempt.category:
            return
        outcomes = self._outcomes(attempt.category)
        ask = Ask(
            attempt.category,
            None if attempt.input_bytes is None else rounded_up(attempt.input_bytes),
            attempt.declared_bytes,
        )
        peak_bytes = attempt.memory_peak_bytes
        match attempt.outcome:
            case TaskState.SUCCEEDED:
                outcomes.succeeded += 1
                runtime_ns = max(1, attempt.ended_at_ns - attempt.started_at_ns)
                if peak_bytes > 0 and attempt.started_at_ns:
                    outcomes.runtimes_ns.append(runtime_ns)
                    self.sizing.observe(ask, peak_bytes, runtime_ns)
            case TaskState.OUT_OF_MEMORY if by_own_fault(attempt):
                outcomes.out_of_memory += 1
                reached_bytes = reached(attempt)
                if reached_bytes > 0:
                    self.sizing.observe_out_of_memory(ask, reached_bytes)
            case TaskState.OUT_OF_MEMORY:
                outcomes.spared += 1
            case TaskState.FAILED:
                outcomes.failed += 1
                outcomes.failed_measured |= peak_bytes > 0
                # A failure may come early: it can raise what is believed, never lower it.
                if peak_bytes > self.sizing.believed_bytes(ask):
                    runtime_ns = max(1, attempt.ended_at_ns - attempt.started_at_ns)
                    self.sizing.observe_live(ask, peak_bytes, runtime_ns)

    def forget(self, task: Task) -> None:
        """Follow an attempt no more of which nobody tells how it ended."""
        key = (task.id, task.attempt)
        self._clocks.pop(key, None)
        self.curves.ended(key, False)

    def _runs(self, category: str) -> int:
        known = self.outcomes.get(category)
        return known.succeeded if known is not None else 0

    def _outcomes(self, category: str) -> Outcomes:
        known = self.outcomes.get(category)
        if known is None:
            if len(self.outcomes) >= self.limits.categories_max:
                self.outcomes.popitem(last=False)
            known = self.outcomes[category] = Outcomes()
        self.outcomes.move_to_end(category)
        return known

    def check(self, placed: set[tuple[int, int]]) -> None:
        """Assert that nothing is followed but the placed attempts."""
        assert self._clocks.keys() <= placed
        assert len(self.outcomes) <= self.limits.categories_max


def set_aside_first(size: Size, expected: Expectation, policy: GrowthPolicy) -> int:
    """Return what is set aside of a size at the start of a task that may outgrow it, in bytes.

    Of what nobody measured sizing takes a share already.
    """
    if size.basis in UNMEASURED:
        return size.memory_bytes
    return reserved_first(size.memory_bytes, expected, policy)


def expected_peak(size: Size, expected: Expectation, believed_bytes: int) -> int:
    """Return what the guard goes by for a task that may outgrow its size, in bytes.

    It keeps room for older tasks up to there. While no run has succeeded that is all that is
    believed (`Sizing.believed_bytes`), though a third is tried: so a first burst loses half as much
    work in the same time.
    """
    return expected.peak_bytes or max(size.memory_bytes, believed_bytes)


def by_own_fault(attempt: Attempt) -> bool:
    """Say whether an attempt that memory ended had outgrown a limit of its own.

    One without a limit can only have lost a child, or its life, to the node's.
    """
    return attempt.oom_cause in OWN_FAULTS and attempt.memory_limit_bytes is not None


def reached(attempt: Attempt) -> int:
    """Return the most an attempt reached that outgrew its own limit: its peak, or that limit.

    The kernel ends it within a page of its limit, and a peak that was sampled may have missed it.
    """
    return max(attempt.memory_peak_bytes, attempt.memory_limit_bytes or 0)


def sizing_ask(task: Task) -> Ask:
    """Return what sizing is asked about a task."""
    spec = task.spec
    return Ask(
        spec.category,
        None if spec.input_bytes is None else rounded_up(spec.input_bytes),
        spec.memory_request_bytes if spec.memory_declared else None,
    )
