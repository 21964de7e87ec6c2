"""A simulated node: attempts that use memory over time, a guard that looks, and the kernel.

Advances in steps of 10 ms. What the guard and the controller see is as late and as coarse as in
the real parts: a freeze works 20 ms after the look, a kill gives memory back after 50-150 ms,
slopes are measured over what was seen at earlier looks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from _memory_workloads import Work

from agent.guard import Guard, GuardedTask, NodeView, Step, StepKind

MIB = 1 << 20
STEP_NS = 10_000_000
STEP_S = STEP_NS / 1e9
SLOPE_NS = 400_000_000  # slopes are over at most this long, and so many looks
SLOPE_LOOKS = 15
FREEZE_LATENCY_NS = 20_000_000
# Two cores fault in so much; when tasks want more, all that grow get on more slowly.
FAULT_BYTES_PER_STEP = int(3.0 * (1 << 30) * STEP_S)


@dataclass(slots=True)
class Attempt:
    """One running attempt."""

    work: Work
    number: int
    started_ns: int
    first_bytes: int  # what it was placed by
    expected_peak_bytes: int
    levels: list[int]  # bytes at each 10 ms of its own time
    progress: float = 0.0  # steps of its own time
    used_bytes: int = 0
    peak_bytes: int = 0
    area: float = 0.0  # bytes x seconds
    frozen: bool = False
    frozen_ns: int = 0
    freeze_at_ns: int | None = None  # a freeze on its way
    dies_at_ns: int | None = None  # a kill on its way
    dying_by: str = ""
    seen: list[tuple[int, int]] = field(default_factory=list)  # (when, used) at earlier looks

    @property
    def key(self) -> tuple[int, int]:
        return (self.work.task_id, self.number)

    def wants(self) -> int:
        """Return the bytes it would take in the next 10 ms; negative gives back."""
        if self.frozen or self.dies_at_ns is not None or self.progress >= len(self.levels):
            return 0
        return self.levels[int(self.progress)] - self.used_bytes

    def slope(self, now_ns: int) -> float:
        """Return bytes per second since the oldest look of the window, 0 at the first."""
        if not self.seen:
            return 0.0
        old = next((seen for seen in self.seen if now_ns - seen[0] <= SLOPE_NS), self.seen[-1])
        elapsed = now_ns - old[0]
        return (self.used_bytes - old[1]) / elapsed * 1e9 if elapsed > 0 else 0.0


def levels_of(work: Work) -> list[int]:
    """Return the use at the end of each 10 ms of a task's own time, in bytes."""
    made: list[int] = []
    at, before, moment = 0.0, 0.0, STEP_S
    for seconds, size in work.ramps:
        while moment <= at + seconds + 1e-9:
            made.append(int((before + (size - before) * (moment - at) / seconds) * MIB))
            moment += STEP_S
        at, before = at + seconds, size
    return made


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that is over: 'done', 'guard' or 'kernel'."""

    attempt: Attempt
    how: str


class Node:
    """The machine: what the tasks' group may use before the kernel kills, which is also what is
    promised to tasks, and the bound the guard keeps, which lies below."""

    def __init__(self, capacity_bytes: int, guard_bytes: int, guard: Guard | None, seed: int):
        self.capacity_bytes, self.guard_bytes = capacity_bytes, guard_bytes
        self.guard = guard
        self.random = random.Random(f"node/{seed}")
        self.now_ns = 0
        self.running: list[Attempt] = []
        self.intake_stopped = False
        self.steps: list[tuple[int, Step]] = []
        self.frozen_seconds = 0.0
        self.used_area = 0.0
        self.wasted_area = 0.0
        self._next_look_ns = 0
        self._seen: list[tuple[int, int]] = []

    def used_bytes(self) -> int:
        return sum(attempt.used_bytes for attempt in self.running)

    def advance(self) -> list[Ended]:
        """Let 10 ms pass; return the attempts that are over."""
        self.now_ns += STEP_NS
        ended: list[Ended] = []
        wanted = sum(max(0, attempt.wants()) for attempt in self.running)
        pace = min(1.0, FAULT_BYTES_PER_STEP / wanted) if wanted else 1.0
        for attempt in list(self.running):
            if attempt.dies_at_ns is not None and self.now_ns >= attempt.dies_at_ns:
                self._remove(attempt, attempt.dying_by, ended)
            elif self._grow(attempt, pace):
                self._remove(attempt, "done", ended)
        used = self.used_bytes()
        while used > self.capacity_bytes:
            self._remove(max(self.running, key=lambda a: a.used_bytes), "kernel", ended)
            used = self.used_bytes()
        self.used_area += used * STEP_S
        if self.guard is not None and self.now_ns >= self._next_look_ns:
            self._look(self.guard)
        return ended

    def _grow(self, attempt: Attempt, pace: float) -> bool:
        """Move one attempt on; True when it has ended by itself."""
        if attempt.freeze_at_ns is not None and self.now_ns >= attempt.freeze_at_ns:
            attempt.frozen, attempt.freeze_at_ns = True, None
        attempt.area += attempt.used_bytes * STEP_S
        if attempt.frozen:
            attempt.frozen_ns += STEP_NS
            self.frozen_seconds += STEP_S
            return False
        if attempt.dies_at_ns is not None:
            return False  # SIGKILL has arrived: it does nothing more
        if attempt.progress >= len(attempt.levels):
            return True
        if attempt.wants() > 0 and pace < 1.0:
            attempt.used_bytes += int(attempt.wants() * pace)
            attempt.progress += pace
        else:
            attempt.used_bytes = attempt.levels[int(attempt.progress)]
            attempt.progress += 1
        attempt.peak_bytes = max(attempt.peak_bytes, attempt.used_bytes)
        return False

    def _remove(self, attempt: Attempt, how: str, ended: list[Ended]) -> None:
        self.running.remove(attempt)
        if how != "done":
            self.wasted_area += attempt.area
        ended.append(Ended(attempt, how))

    def _look(self, guard: Guard) -> None:
        view = self._view()
        for step in guard.look(view):
            self.steps.append((self.now_ns, step))
            self._carry_out(step)
        for attempt in self.running:
            attempt.seen = [*attempt.seen[1 - SLOPE_LOOKS :], (self.now_ns, attempt.used_bytes)]
        self._seen = [*self._seen[1 - SLOPE_LOOKS :], (self.now_ns, view.used_bytes)]
        self._next_look_ns = self.now_ns + guard.next_look_ns(view)

    def _view(self) -> NodeView:
        used = self.used_bytes()
        now_ns = self.now_ns
        recent = (seen for seen in self._seen if now_ns - seen[0] <= SLOPE_NS)
        old = next(recent, self._seen[-1] if self._seen else (now_ns, used))
        elapsed = self.now_ns - old[0]
        return NodeView(
            self.now_ns,
            used,
            self.guard_bytes,
            (used - old[1]) / elapsed * 1e9 if elapsed else 0.0,
            False,
            None,
            tuple(
                GuardedTask(
                    attempt.key,
                    attempt.used_bytes,
                    attempt.slope(self.now_ns),
                    attempt.started_ns,
                    attempt.first_bytes,
                    attempt.expected_peak_bytes,
                    0,
                    False,
                    attempt.frozen or attempt.freeze_at_ns is not None,
                    False,
                    True,
                )
                for attempt in self.running
            ),
        )

    def _carry_out(self, step: Step) -> None:
        if step.kind is StepKind.STOP_INTAKE:
            self.intake_stopped = True
        elif step.kind is StepKind.OPEN_INTAKE:
            self.intake_stopped = False
        else:
            attempt = next(a for a in self.running if a.key == step.key)
            if step.kind is StepKind.FREEZE:
                attempt.freeze_at_ns = self.now_ns + FREEZE_LATENCY_NS
            elif step.kind is StepKind.THAW:
                attempt.frozen, attempt.freeze_at_ns = False, None
            else:
                attempt.dying_by = "guard"
                attempt.frozen, attempt.freeze_at_ns = False, None
                attempt.dies_at_ns = self.now_ns + int(self.random.uniform(50e6, 150e6))
