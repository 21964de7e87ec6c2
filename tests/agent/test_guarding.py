"""The guard's looks with fakes and a hand-moved clock: what is seen, what is done, what is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from agent import guarding as guarding_module
from agent.attempt import GuardStep, GuardStepKind, Key
from agent.group import NodeMemory
from agent.guard import GuardedTask, NodeView, Step, StepKind
from agent.guarding import (
    LOOK_MAX_NS,
    LOOK_SHARE,
    LOOKS_FAILED_MAX,
    MACHINE_KEPT_NS,
    PSI_KEPT_NS,
    REFUSED_HOLDS_NS,
    SHORT_AVAILABLE_RATIO,
    SHORT_HOLDS_NS,
    UNGUARDED_LOOK_NS,
    Guarding,
    machine_margin_bytes,
)
from agent.memory import MemoryReading, MemoryUnreadable
from agent.slope import WINDOW_NS, Slope

MIB = 1 << 20
GIB = 1 << 30
SECOND_NS = 1_000_000_000
WAIT_SECONDS_MAX = 5.0
ONE: Key = (1, 1)
TWO: Key = (2, 1)


def task(key: Key, used_bytes: int, growth: float) -> GuardedTask:
    return GuardedTask(key, used_bytes, growth, 0, 0, 0, 0, False, False, False, True)


def step(kind: StepKind, key: Key | None = ONE) -> Step:
    return Step(kind, key, 90, 100, 5.0, 2.0, 1.0, 40, "it must be")


@dataclass
class FakeNode:
    """Attempts whose memory the test sets; notes what is done to them."""

    used: dict[Key, int] = field(default_factory=dict)
    capacity_bytes: int | None = GIB
    stalled: bool = False
    refused_at_ns: int | None = None
    psi: float | None = None
    done: list[str] = field(default_factory=list)
    refuse: OSError | None = None
    event: int | None = None
    settled: int = 0
    suspended: bool = False
    suspensions: list[bool] = field(default_factory=list)
    refuse_capacity: OSError | None = None

    def guarded(self, growth: Callable[[Key, int], float]) -> tuple[GuardedTask, ...]:
        return tuple(task(key, used, growth(key, used)) for key, used in self.used.items())

    def node_memory(self) -> NodeMemory:
        return NodeMemory(
            sum(self.used.values()), self.capacity_bytes, self.stalled, self.refused_at_ns
        )

    def psi_full_percent(self) -> float | None:
        return self.psi

    def settle_capacity(self) -> None:
        self.settled += 1

    def suspend_capacity(self, suspended: bool) -> None:
        self.suspensions.append(suspended)
        if self.refuse_capacity is not None:
            raise self.refuse_capacity
        self.suspended = suspended

    def hold(self, key: Key, frozen: bool) -> bool:
        self.done.append(f"{'freeze' if frozen else 'thaw'} {key[0]}")
        return key in self.used

    def ask(self, key: Key) -> bool:
        self.done.append(f"ask {key[0]}")
        return key in self.used

    def kill(self, key: Key) -> bool:
        self.done.append(f"kill {key[0]}")
        if self.refuse is not None:
            raise self.refuse
        return key in self.used

    def stall_fd(self) -> int | None:
        return self.event

    def clear_stall(self) -> None:
        assert self.event is not None
        self.done.append("clear")
        if self.refuse is not None:
            raise self.refuse
        os.eventfd_read(self.event)


@dataclass
class Script:
    """A guard that does what the test says and keeps what it saw."""

    steps: list[tuple[Step, ...]] = field(default_factory=list)
    pause_ns: int = 100_000_000
    views: list[NodeView] = field(default_factory=list)
    broken: Exception | None = None

    def look(self, view: NodeView) -> tuple[Step, ...]:
        if self.broken is not None:
            raise self.broken
        self.views.append(view)
        return self.steps.pop(0) if self.steps else ()

    def next_look_ns(self, view: NodeView) -> int:
        return self.pause_ns


class Bench:
    """A guarding with a hand clock over a machine of 16 GiB with half of it free."""

    look_cost_ns = 0

    def __init__(self, script: Script | None = None, *, guarded: bool = True) -> None:
        self.node = FakeNode({ONE: 100 * MIB})
        self.script = script or Script()
        self.machine: MemoryReading | None = MemoryReading(16 * GIB, 8 * GIB, 0, 0)
        self.told: list[GuardStep] = []
        self.now_ns = 10**12
        self.cpu_ns = 0
        self.machine_reads = 0
        self.guarding = Guarding(
            self.script if guarded else None,
            self.node,
            self._read,
            self._tell,
            clock_ns=lambda: self.now_ns,
            wall_ns=lambda: 5,
            cpu_ns=self._cpu,
        )

    def _cpu(self) -> int:
        self.cpu_ns += self.look_cost_ns
        return self.cpu_ns

    def _read(self) -> MemoryReading:
        self.machine_reads += 1
        if self.machine is None:
            raise MemoryUnreadable("gone")
        return self.machine

    def _tell(self, told: GuardStep) -> None:
        self.told.append(told)
        self.node.done.append(f"tell {told.kind.name}")

    def look(self, after_ns: int = 100_000_000) -> NodeView:
        self.now_ns += after_ns
        self.guarding.look()
        return self.script.views[-1]


def test_the_guard_sees_the_use_and_slope_of_each_attempt_and_of_the_node() -> None:
    bench = Bench()
    bench.node.used[TWO] = 200 * MIB
    assert bench.look().growth_bytes_per_second == 0.0
    bench.node.used[TWO] = 250 * MIB
    view = bench.look()
    assert (view.used_bytes, view.limit_bytes, view.now_ns) == (350 * MIB, GIB, bench.now_ns)
    assert view.growth_bytes_per_second == 500 * MIB
    assert {t.key: t.growth_bytes_per_second for t in view.tasks} == {ONE: 0.0, TWO: 500 * MIB}


def test_slopes_of_ended_attempts_are_forgotten() -> None:
    bench = Bench()
    bench.look()
    del bench.node.used[ONE]
    bench.look()
    bench.node.used[ONE] = 900 * MIB
    (seen,) = bench.look().tasks
    assert seen.growth_bytes_per_second == 0.0


def test_the_bound_that_is_reached_first_is_seen() -> None:
    bench = Bench()
    assert bench.look().limit_bytes == GIB
    # Another program leaves the machine less than the capacity has left.
    bench.machine = MemoryReading(16 * GIB, GIB, 0, 0)
    view = bench.look(MACHINE_KEPT_NS)
    assert view.limit_bytes == 16 * GIB - machine_margin_bytes(16 * GIB)
    assert view.used_bytes == 15 * GIB


def test_a_machine_that_fills_fast_counts_before_a_smaller_room_that_stands_still() -> None:
    bench = Bench()
    bench.machine = MemoryReading(16 * GIB, 2 * GIB, 0, 0)
    assert bench.look().limit_bytes == GIB
    bench.machine = MemoryReading(16 * GIB, 2 * GIB - 200 * MIB, 0, 0)
    view = bench.look()
    assert view.limit_bytes > GIB
    assert view.growth_bytes_per_second == 2_000 * MIB


def test_a_machine_with_much_more_room_is_read_only_now_and_then() -> None:
    bench = Bench()
    for _ in range(10):
        bench.look(MACHINE_KEPT_NS // 5)
    assert bench.machine_reads == 2
    bench.machine = MemoryReading(16 * GIB, 2 * GIB, 0, 0)
    bench.look(MACHINE_KEPT_NS)
    for _ in range(3):
        bench.look(MACHINE_KEPT_NS // 5)
    assert bench.machine_reads == 6


@pytest.mark.parametrize(
    ("cost_ns", "grown_mib", "pause_ns"),
    [
        (0, 0, 20_000_000),
        (1_000_000, 0, LOOK_SHARE * 1_000_000),
        (100_000_000, 0, LOOK_MAX_NS),
        (1_000_000, 100, 20_000_000),
    ],
)
def test_looks_that_cost_much_are_rarer_while_nothing_presses(
    cost_ns: int, grown_mib: int, pause_ns: int
) -> None:
    bench = Bench(Script(pause_ns=20_000_000))
    bench.look_cost_ns = cost_ns
    bench.look()
    bench.node.used[ONE] += grown_mib * MIB
    bench.now_ns += SECOND_NS // 10
    assert bench.guarding.look() == pause_ns


def test_without_a_capacity_the_machine_is_the_bound() -> None:
    bench = Bench()
    bench.node.capacity_bytes = None
    assert bench.look().used_bytes == 8 * GIB


def test_a_machine_that_cannot_be_read_leaves_the_own_share() -> None:
    bench = Bench()
    bench.machine = None
    assert bench.look().limit_bytes == GIB


@pytest.mark.parametrize(
    ("total_bytes", "margin_bytes"),
    [(GIB, 128 * MIB), (512 * MIB, 64 * MIB), (4 * GIB, 128 * MIB), (400 * GIB, 10 * GIB)],
)
def test_the_machine_keeps_a_margin_that_fits_its_size(total_bytes: int, margin_bytes: int) -> None:
    assert machine_margin_bytes(total_bytes) == margin_bytes


def test_why_an_attempt_ends_is_told_before_it_is_signalled() -> None:
    steps = (step(StepKind.ASK), step(StepKind.KILL))
    bench = Bench(Script([steps]))
    bench.look()
    assert bench.node.done == ["tell ASK", "ask 1", "tell KILL", "kill 1"]
    told = bench.told[1]
    assert (told.taken_at_ns, told.kind, told.key) == (5, GuardStepKind.KILL, ONE)
    assert (told.memory_used_bytes, told.memory_limit_bytes) == (90, 100)
    assert (told.memory_growth_bytes_per_second, told.seconds_to_full) == (5.0, 2.0)
    assert (told.psi_full_percent, told.task_memory_used_bytes) == (1.0, 40)
    assert told.reason == "it must be"


def test_only_what_was_frozen_or_thawed_is_told() -> None:
    steps = tuple(
        step(kind, key) for kind in (StepKind.FREEZE, StepKind.THAW) for key in (ONE, TWO)
    )
    bench = Bench(Script([steps]))
    bench.look()
    assert [(s.kind.name, s.key) for s in bench.told] == [("FREEZE", ONE), ("THAW", ONE)]


def test_a_step_about_the_node_is_told_and_touches_nobody() -> None:
    bench = Bench(Script([(step(StepKind.STOP_INTAKE, None),)]))
    bench.look()
    assert bench.node.done == ["tell STOP_INTAKE"]
    assert bench.told[0].key is None


def test_a_step_that_the_kernel_refuses_does_not_keep_the_next_from_being_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(Script([(step(StepKind.KILL), step(StepKind.FREEZE))]))
    bench.node.refuse = OSError(24, "Too many open files")
    bench.look()
    assert bench.node.done[-2:] == ["freeze 1", "tell FREEZE"]
    assert "Too many open files" in caplog.text


def test_a_look_that_fails_is_logged_once_and_followed_by_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(Script(broken=RuntimeError("a mistake")))
    assert bench.guarding.look() == LOOK_MAX_NS
    bench.guarding.look()
    assert caplog.text.count("RuntimeError: a mistake") == 1
    bench.script.broken = None
    bench.look()
    assert len(bench.script.views) == 1


def test_a_guard_that_goes_on_failing_lets_the_capacity_go_until_it_can_look() -> None:
    bench = Bench(Script(broken=RuntimeError("a mistake")))
    for _ in range(LOOKS_FAILED_MAX - 1):
        bench.guarding.look()
    assert not bench.node.suspended
    bench.guarding.look()
    assert bench.node.suspended
    bench.script.broken = None
    bench.guarding.look()
    assert not bench.node.suspended


def test_a_capacity_that_cannot_be_let_go_or_held_again_is_tried_at_each_look() -> None:
    bench = Bench(Script(broken=OSError(24, "Too many open files")))
    bench.node.refuse_capacity = OSError(24, "Too many open files")
    for _ in range(LOOKS_FAILED_MAX + 1):
        assert bench.guarding.look() > 0
    bench.node.refuse_capacity = None
    bench.guarding.look()
    assert (bench.node.suspensions, bench.node.suspended) == ([True] * 3, True)
    bench.script.broken = None
    bench.node.refuse_capacity = OSError(24, "Too many open files")
    bench.guarding.look()
    bench.node.refuse_capacity = None
    for _ in range(2):
        bench.guarding.look()
    assert (bench.node.suspensions[3:], bench.node.suspended) == ([False] * 2, False)


def test_the_pace_is_the_guards() -> None:
    assert Bench(Script(pause_ns=20_000_000)).guarding.look() == 20_000_000


@pytest.mark.parametrize(
    ("grown_mib", "hurried"),
    [(0, False), (1, False), (39, False), (41, True), (-50, False)],
)
def test_samples_are_hurried_when_memory_will_be_full_within_two_seconds(
    grown_mib: int, hurried: bool
) -> None:
    bench = Bench()
    bench.node.used[ONE] = 200 * MIB
    bench.look()
    bench.node.used[ONE] += grown_mib * MIB
    bench.look(SECOND_NS // 10)  # 40 MiB in 0.1 s fill 784 MiB in 2 s
    assert bench.guarding.hurried is hurried


def test_a_node_that_stalls_is_hurried() -> None:
    bench = Bench(Script(pause_ns=250_000_000))
    bench.node.stalled = True
    assert bench.look().stalled
    assert bench.guarding.hurried


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize(
    ("available_bytes", "psi", "short"),
    [
        (8 * GIB, None, False),
        (8 * GIB, 5.0, False),
        (8 * GIB, 40.0, True),
        (round(16 * GIB * SHORT_AVAILABLE_RATIO), None, True),
        (GIB, 0.0, True),
    ],
)
def test_shortness_of_the_machine_is_remembered_for_a_while(
    guarded: bool, available_bytes: int, psi: float | None, short: bool
) -> None:
    bench = Bench(guarded=guarded)
    assert not bench.guarding.memory_was_short()
    bench.machine, bench.node.psi = MemoryReading(16 * GIB, available_bytes, 0, 0), psi
    bench.guarding.look()
    assert bench.guarding.memory_was_short() is short
    bench.machine, bench.node.psi = MemoryReading(16 * GIB, 8 * GIB, 0, 0), None
    bench.now_ns += PSI_KEPT_NS
    bench.guarding.look()
    bench.now_ns += SHORT_HOLDS_NS - PSI_KEPT_NS
    assert bench.guarding.memory_was_short() is short
    bench.now_ns += 1
    assert not bench.guarding.memory_was_short()


def test_refused_memory_is_remembered_for_a_while() -> None:
    bench = Bench()
    bench.guarding.look()
    assert not bench.guarding.memory_was_refused()
    bench.node.stalled = True
    bench.guarding.look()
    bench.node.stalled = False
    bench.now_ns += REFUSED_HOLDS_NS
    assert bench.guarding.memory_was_refused()
    bench.now_ns += 1
    assert not bench.guarding.memory_was_refused()


def test_memory_refused_to_a_system_call_is_noted_once_it_shows() -> None:
    bench = Bench()
    bench.node.refused_at_ns = bench.now_ns
    assert bench.guarding.memory_was_refused()  # asked before the guard has looked
    bench.now_ns += REFUSED_HOLDS_NS
    assert bench.guarding.memory_was_refused()
    bench.now_ns += 1
    assert not bench.guarding.memory_was_refused()
    bench.node.refused_at_ns = bench.now_ns
    bench.guarding.look()
    bench.node.refused_at_ns = None
    assert bench.guarding.memory_was_refused()


def test_refused_memory_is_known_before_the_guard_has_looked() -> None:
    bench = Bench()
    bench.node.event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert not bench.guarding.memory_was_refused()
        os.eventfd_write(bench.node.event, 1)
        assert bench.guarding.memory_was_refused()
    finally:
        os.close(bench.node.event)


def test_without_a_guard_nothing_is_done() -> None:
    bench = Bench(Script([(step(StepKind.KILL),)]), guarded=False)
    assert bench.guarding.look() == UNGUARDED_LOOK_NS
    assert bench.node.done == []
    assert bench.node.settled == 0


def test_a_stall_is_looked_at_at_once() -> None:
    looked = threading.Semaphore(0)

    class Counted(Script):
        def look(self, view: NodeView) -> tuple[Step, ...]:
            looked.release()
            return super().look(view)

    bench = Bench(Counted(pause_ns=SECOND_NS))
    bench.node.event = os.eventfd(0, os.EFD_NONBLOCK)
    bench.guarding.start()
    try:
        assert looked.acquire(timeout=WAIT_SECONDS_MAX)
        os.eventfd_write(bench.node.event, 1)
        assert looked.acquire(timeout=0.5), "it waited for the next look"
        assert bench.node.done == ["clear"]
    finally:
        bench.guarding.stop()
        os.close(bench.node.event)


def test_the_thread_outlives_a_stall_that_cannot_be_cleared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guarding_module, "LOOK_MAX_NS", 1_000_000)
    looked = threading.Semaphore(0)

    class Counted(Script):
        def look(self, view: NodeView) -> tuple[Step, ...]:
            looked.release()
            return super().look(view)

    bench = Bench(Counted())
    bench.node.refuse = OSError(24, "Too many open files")
    bench.node.event = os.eventfd(1, os.EFD_NONBLOCK)
    bench.guarding.start()
    try:
        for _ in range(3):
            assert looked.acquire(timeout=WAIT_SECONDS_MAX)
    finally:
        bench.guarding.stop()
        os.close(bench.node.event)
    assert "clear" in bench.node.done


def test_stop_ends_the_thread_in_the_middle_of_a_pause() -> None:
    bench = Bench(Script(pause_ns=SECOND_NS))
    bench.guarding.start()
    (thread,) = [t for t in threading.enumerate() if t.name == "guard"]
    bench.guarding.stop()
    assert not thread.is_alive()
    bench.guarding.stop()


def test_a_slope_is_of_the_last_moments() -> None:
    slope = Slope()
    assert slope.add(0, 100) == 0.0
    assert slope.add(WINDOW_NS // 2, 300) == 200 * SECOND_NS / (WINDOW_NS // 2)
    assert slope.add(WINDOW_NS, 300) == 200 * SECOND_NS / WINDOW_NS
    assert slope.add(2 * WINDOW_NS, 300) == 0.0


def test_a_slope_of_rare_readings_is_that_of_the_last_two() -> None:
    slope = Slope()
    for second in range(5):
        growth = slope.add(second * SECOND_NS, second * second)
    assert growth == 7.0


def test_a_second_reading_of_the_same_moment_takes_the_place_of_the_first() -> None:
    slope = Slope()
    slope.add(0, 0)
    slope.add(SECOND_NS, 10)
    assert slope.add(SECOND_NS, 30) == 30.0
