"""Feeds the guard with what is measured and carries out what it decides, in a thread of its own.

Owns the looks at the node's memory, their pace, and the signals and freezes of the guard. The rules
kept: a look needs neither the controller nor the agent's loop; why an attempt ends is told to the
loop before it is signalled, so that its end cannot be judged without; a look that fails is logged
and the next one comes.

Two bounds are watched: the node's own share (all attempts together, the capacity) and the machine
(the tightest of the host and the groups above the agent). The guard sees the one that is foreseen
to be reached first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Protocol

from agent.attempt import GuardStep, GuardStepKind, Key
from agent.group import EnforcementError, NodeMemory
from agent.guard import DEFAULT_SETTINGS, GuardedTask, NodeView, Step, StepKind
from agent.memory import MemoryReading, MemoryUnreadable
from agent.slope import Slope

LOG = logging.getLogger(__name__)

MIB = 1 << 20
SECOND_NS = 1_000_000_000
# The pause after a look that failed, and the longest for what a look costs; the others are the
# guard's own, within the same bound.
LOOK_MAX_NS = DEFAULT_SETTINGS.look_max_ns
# While nothing presses, looks take at most one part in this many of the agent's time, though never
# longer apart than LOOK_MAX_NS: tasks that surge meanwhile stall at the capacity.
LOOK_SHARE = 64
# How long a reading serves: the kernel renews its averages each 2 s; a machine with much more room
# than the node's share cannot become the tighter bound at once.
PSI_KEPT_NS = 500_000_000
MACHINE_KEPT_NS = 250_000_000
MACHINE_SURGE_BYTES = 1_024 * MIB
LOOKS_FAILED_MAX = 4  # in a row; then nobody would act on a stall
# The last moments before the end of memory are worth more samples, at any growth that is no noise.
HURRY_SECONDS = 2.0
HURRY_GROWTH_BYTES_PER_SECOND = 4.0 * MIB
# Without a guard only the shortness of memory is noted, and it holds for twice as long.
UNGUARDED_LOOK_NS = SECOND_NS
# The machine is not filled to the last byte: its kernel kills before. Half of what placement
# leaves to the system, which may use that itself, and never more than an eighth of a small one.
MACHINE_MARGIN_RATIO = 0.025
MACHINE_MARGIN_MIN_BYTES = 128 * MIB
MACHINE_MARGIN_MAX_RATIO = 0.125
# Memory killers of a machine act at 10 % free (earlyoom) or at long stalls (systemd-oomd); the
# look before may have been a little earlier.
SHORT_AVAILABLE_RATIO = 0.12
SHORT_PSI_PERCENT = 20.0
SHORT_HOLDS_NS = 2 * SECOND_NS
# A program that is refused memory mostly ends at once; some tidy up before.
REFUSED_HOLDS_NS = SECOND_NS


class Decides(Protocol):
    """What decides; agent.guard.Guard outside of tests."""

    def look(self, view: NodeView) -> tuple[Step, ...]:
        """Return what to do now, in the order to do it."""

    def next_look_ns(self, view: NodeView) -> int:
        """Return the delay to the next look, within bounds of its own."""


class Guardable(Protocol):
    """What the guard measures and acts on; agent.running.Running outside of tests."""

    def guarded(self, growth: Callable[[Key, int], float]) -> tuple[GuardedTask, ...]:
        """Return all running attempts; `growth` tells a slope by key and present use."""

    def node_memory(self) -> NodeMemory:
        """Return what all groups together hold now."""

    def psi_full_percent(self) -> float | None:
        """Return the share of the last 10 s in which all tasks waited for memory."""

    def settle_capacity(self) -> None:
        """Try again to hold what was above the capacity when it was set."""

    def suspend_capacity(self, suspended: bool) -> None:
        """Let the capacity go for now, so that nothing stalls at its end, or hold it again."""

    def hold(self, key: Key, frozen: bool) -> bool:
        """Freeze an attempt or let go; return whether anything changed."""

    def ask(self, key: Key) -> bool:
        """SIGTERM; return whether it was sent."""

    def kill(self, key: Key) -> bool:
        """SIGKILL to the whole tree; return whether it runs."""

    def stall_fd(self) -> int | None:
        """Return what becomes readable when the groups begin to stall."""

    def clear_stall(self) -> None:
        """Be ready to be told of the next stall."""


class Guarding:
    """One node's looks; `look` by hand in tests, `start` and `stop` for the thread."""

    def __init__(
        self,
        guard: Decides | None,
        running: Guardable,
        machine: Callable[[], MemoryReading],
        tell: Callable[[GuardStep], None],
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        """`guard` None only notes shortness. `tell` is called in the thread, before or after the
        step is carried out; see the module."""
        self._guard = guard
        self._running = running
        self._machine = machine
        self._tell = tell
        self._clock_ns = clock_ns
        self._wall_ns = wall_ns
        self._cpu_ns = cpu_ns
        self._reading: MemoryReading | None = None
        self._read_at_ns = 0
        self._psi: float | None = None
        self._psi_at_ns: int | None = None
        self._own_slope, self._machine_slope = Slope(), Slope()
        self._slopes: dict[Key, Slope] = {}
        self._short_at_ns: int | None = None
        self._refused_at_ns: int | None = None
        self._looks_failed = 0  # in a row
        self.hurried = False  # the guard acts, or memory is foreseen to be full soon
        self._thread: threading.Thread | None = None
        self._wake = -1

    def memory_was_short(self) -> bool:
        """Return whether the machine was short of memory within the last SHORT_HOLDS_NS."""
        at_ns = self._short_at_ns
        return at_ns is not None and self._clock_ns() - at_ns <= SHORT_HOLDS_NS

    def memory_was_refused(self) -> bool:
        """Return whether the kernel refused the tasks memory within the last REFUSED_HOLDS_NS,
        noted or not yet."""
        if self._guard is not None:
            with contextlib.suppress(OSError):
                self._note_refusal(self._running.node_memory())
        at_ns = self._refused_at_ns
        if at_ns is not None and self._clock_ns() - at_ns <= REFUSED_HOLDS_NS:
            return True
        stall_fd = self._running.stall_fd() if self._guard is not None else None
        if stall_fd is None:
            return False
        poller = select.poll()
        poller.register(stall_fd, select.POLLIN | select.POLLPRI)
        return bool(poller.poll(0))

    def look(self) -> int:
        """Measure, let the guard decide, carry it out; return nanoseconds to the next look.

        Raises nothing: without the thread that looks, tasks that stall would do so for ever.
        """
        try:
            pause_ns = self._look()
        except Exception:
            self._looks_failed += 1
            if self._looks_failed == 1:
                LOG.exception("the guard cannot look, trying again")
            if self._looks_failed == LOOKS_FAILED_MAX:
                LOG.error("no capacity is held until the guard can look: nothing would end a stall")
            if self._looks_failed >= LOOKS_FAILED_MAX:
                self._suspend_capacity(True)  # at each: what failed at the first one may not now
            return LOOK_MAX_NS
        if self._looks_failed < LOOKS_FAILED_MAX or self._suspend_capacity(False):
            self._looks_failed = 0
        return pause_ns

    def _suspend_capacity(self, suspended: bool) -> bool:
        """Return whether it was taken; what keeps the guard from looking may keep this, too."""
        try:
            self._running.suspend_capacity(suspended)
        except Exception as error:
            LOG.error("the capacity stays as it is suspended=%s reason=%r", suspended, error)
            return False
        return True

    def start(self) -> None:
        """Look in a thread of its own until `stop`."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a look under way is finished first."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.eventfd_write(self._wake, 1)
            thread.join()
            os.close(self._wake)

    def _run(self) -> None:
        poller, deaf_poller = select.poll(), select.poll()
        poller.register(self._wake, select.POLLIN)
        deaf_poller.register(self._wake, select.POLLIN)
        stall_fd = self._running.stall_fd() if self._guard is not None else None
        if stall_fd is not None:
            poller.register(stall_fd, select.POLLIN | select.POLLPRI)
        while True:
            pause_ns = self.look()
            told = {descriptor for descriptor, _ in poller.poll(pause_ns / 1e6)}
            if stall_fd in told:
                self._refused_at_ns = self._clock_ns()
            if told and self._wake not in told and not self._clear_stall():
                # It is still readable: to listen on would be to look without a pause.
                told = {descriptor for descriptor, _ in deaf_poller.poll(LOOK_MAX_NS / 1e6)}
            if self._wake in told:
                return

    def _clear_stall(self) -> bool:
        try:
            self._running.clear_stall()
        except Exception as error:
            LOG.error("what tells of stalls cannot be read reason=%r", error)
            return False
        return True

    def _look(self) -> int:
        now_ns, began_ns = self._clock_ns(), self._cpu_ns()
        if self._guard is None:
            self._read_machine(now_ns)
            self._note_shortness(now_ns)
            return UNGUARDED_LOOK_NS
        self._running.settle_capacity()
        view = self._view(now_ns)
        self._note_shortness(now_ns)
        for step in self._guard.look(view):
            self._carry_out(step)
        pause_ns = self._guard.next_look_ns(view)
        self.hurried = is_pressing(view)
        if not self.hurried:
            shared_ns = (self._cpu_ns() - began_ns) * LOOK_SHARE
            pause_ns = max(pause_ns, min(shared_ns, LOOK_MAX_NS))
        return pause_ns

    def _view(self, now_ns: int) -> NodeView:
        slopes, self._slopes = self._slopes, {}

        def growth(key: Key, used_bytes: int) -> float:
            slope = self._slopes[key] = slopes.get(key) or Slope()
            return slope.add(now_ns, used_bytes)

        tasks = self._running.guarded(growth)
        own = self._running.node_memory()
        self._note_refusal(own)
        bounds: list[tuple[int, int, float]] = []
        if own.limit_bytes is not None:
            own_growth = self._own_slope.add(now_ns, own.used_bytes)
            bounds.append((own.used_bytes, own.limit_bytes, own_growth))
        if (reading := self._kept_machine(now_ns, own)) is not None:
            used_bytes = reading.total_bytes - reading.available_bytes
            machine_growth = self._machine_slope.add(self._read_at_ns, used_bytes)
            limit_bytes = reading.total_bytes - machine_margin_bytes(reading.total_bytes)
            bounds.append((used_bytes, limit_bytes, machine_growth))
        if not bounds:
            raise MemoryUnreadable("there is no bound to watch")
        used_bytes, limit_bytes, node_growth = min(bounds, key=_room_in_a_second)
        return NodeView(
            now_ns=now_ns,
            used_bytes=used_bytes,
            limit_bytes=limit_bytes,
            growth_bytes_per_second=node_growth,
            stalled=own.stalled,
            psi_full_percent=self._kept_psi(now_ns),
            tasks=tasks,
        )

    def _note_refusal(self, own: NodeMemory) -> None:
        """Remember when the kernel last refused memory; called from both threads."""
        found = [at_ns for at_ns in (self._refused_at_ns, own.refused_at_ns) if at_ns is not None]
        if own.stalled:
            found.append(self._clock_ns())
        self._refused_at_ns = max(found, default=None)

    def _kept_machine(self, now_ns: int, own: NodeMemory) -> MemoryReading | None:
        """Return a reading of the machine, a little old when it is not the tighter bound by far."""
        reading = self._reading
        if reading is None or own.limit_bytes is None:
            return self._read_machine(now_ns)
        room_bytes = reading.available_bytes - machine_margin_bytes(reading.total_bytes)
        is_far = room_bytes - (own.limit_bytes - own.used_bytes) >= MACHINE_SURGE_BYTES
        if is_far and now_ns - self._read_at_ns < MACHINE_KEPT_NS:
            return reading
        return self._read_machine(now_ns)

    def _read_machine(self, now_ns: int) -> MemoryReading | None:
        try:
            self._reading, self._read_at_ns = self._machine(), now_ns
        except MemoryUnreadable as error:
            LOG.error("the machine's memory is not watched reason=%s", error)
            self._reading = None
        return self._reading

    def _kept_psi(self, now_ns: int) -> float | None:
        if self._psi_at_ns is None or now_ns - self._psi_at_ns >= PSI_KEPT_NS:
            self._psi, self._psi_at_ns = self._running.psi_full_percent(), now_ns
        return self._psi

    def _carry_out(self, decided: Step) -> None:
        step = GuardStep(
            taken_at_ns=self._wall_ns(),
            kind=KINDS[decided.kind],
            key=decided.key,
            memory_used_bytes=decided.used_bytes,
            memory_limit_bytes=decided.limit_bytes,
            memory_growth_bytes_per_second=decided.growth_bytes_per_second,
            seconds_to_full=decided.seconds_to_full,
            psi_full_percent=decided.psi_full_percent,
            task_memory_used_bytes=decided.task_used_bytes,
            reason=decided.reason,
        )
        key = decided.key
        if key is None:
            self._tell(step)
            return
        try:
            match decided.kind:
                case StepKind.FREEZE | StepKind.THAW:
                    if self._running.hold(key, decided.kind is StepKind.FREEZE):
                        self._tell(step)
                case StepKind.ASK:
                    self._tell(step)
                    self._running.ask(key)
                case StepKind.KILL:
                    self._tell(step)
                    self._running.kill(key)
        except (OSError, EnforcementError) as error:
            LOG.error(
                "a step of the guard failed kind=%s task=%d attempt=%d reason=%s",
                step.kind.name, *key, error,
            )  # fmt: skip

    def _note_shortness(self, now_ns: int) -> None:
        reading, psi = self._reading, self._kept_psi(now_ns)
        is_short = reading is not None and (
            reading.available_bytes <= SHORT_AVAILABLE_RATIO * reading.total_bytes
        )
        if is_short or (psi is not None and psi >= SHORT_PSI_PERCENT):
            self._short_at_ns = now_ns


KINDS: dict[StepKind, GuardStepKind] = {kind: GuardStepKind[kind.name] for kind in StepKind}


def machine_margin_bytes(total_bytes: int) -> int:
    """Return how much of the machine's memory is never given to tasks."""
    margin = max(MACHINE_MARGIN_MIN_BYTES, round(MACHINE_MARGIN_RATIO * total_bytes))
    return min(margin, round(MACHINE_MARGIN_MAX_RATIO * total_bytes))


def is_pressing(view: NodeView) -> bool:
    """Return whether the guard holds or loses something, or will within HURRY_SECONDS."""
    if view.stalled or any(task.frozen for task in view.tasks):
        return True
    growth = max(
        view.growth_bytes_per_second,
        sum(max(0.0, task.growth_bytes_per_second) for task in view.tasks),
    )
    if growth < HURRY_GROWTH_BYTES_PER_SECOND:
        return False
    return view.limit_bytes - view.used_bytes < growth * HURRY_SECONDS


def _room_in_a_second(bound: tuple[int, int, float]) -> float:
    used_bytes, limit_bytes, growth = bound
    return limit_bytes - used_bytes - max(0.0, growth)
