"""The guard's decisions: a view of the node goes in, steps of its ladder come out.

Keeps tasks from filling the node before the kernel has to act, while losing as little work as it
can. The rule kept is the banker's: there is always a task that can run to its expected peak within
what is left, so something ends and gives memory back. While that holds, growers that others need
the room of are frozen (the youngest first) and thawed again; only when it no longer holds is a
task ended, the cheapest to redo, one at a time.

Pure: no clock, no IO, no randomness. Time comes in with the view, in nanoseconds of any monotonic
clock; the owner measures, carries the steps out at once and in order, and looks again after
`next_look_ns`. A task that a step ended stays in the view until its processes are gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

Key: TypeAlias = tuple[int, int]  # (task_id, attempt)

MIB = 1 << 20
MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000


class StepKind(Enum):
    """A rung of the ladder, or the way back down."""

    STOP_INTAKE = "stop intake"
    OPEN_INTAKE = "open intake"
    FREEZE = "freeze"
    THAW = "thaw"
    ASK = "ask"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class GuardedTask:
    """One running attempt as the guard sees it."""

    key: Key
    used_bytes: int
    growth_bytes_per_second: float  # slope of its use over the last moments
    started_at_ns: int
    request_bytes: int  # what was reserved for it at the start
    expected_peak_bytes: int  # 0: unknown
    priority: int
    no_requeue: bool
    frozen: bool  # by the guard
    paused: bool  # by its user: neither frozen nor thawed by the guard
    elastic: bool  # may outgrow its request and gives way first


@dataclass(frozen=True, slots=True)
class NodeView:
    """What the guard decides by; `tasks` in any order."""

    now_ns: int
    used_bytes: int  # of limit_bytes
    limit_bytes: int  # must not be reached: the smaller room of own share and machine
    growth_bytes_per_second: float
    stalled: bool  # the kernel holds faulting tasks at the end of memory right now
    psi_full_percent: float | None
    tasks: tuple[GuardedTask, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, with the numbers it is done for; key is None for the node itself."""

    kind: StepKind
    key: Key | None
    used_bytes: int
    limit_bytes: int
    growth_bytes_per_second: float
    seconds_to_full: float | None  # None when nothing grows
    psi_full_percent: float | None
    task_used_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """The numbers of the guard, each with why it is that."""

    # Never handed to growing tasks: kernel memory of processes and what is faulted in while a step
    # is carried out.
    margin_ratio: float = 0.015
    # How far a slope is believed: one look, the time a freeze takes, and pages in flight.
    freeze_lookahead_ns: int = 200 * MILLISECOND_NS
    # A kill is the last thing before the end of memory: the time a freeze needs to work, doubled.
    kill_lookahead_ns: int = 60 * MILLISECOND_NS
    # A task is thawed only into room for this long a growth, so that it does not flap.
    thaw_lookahead_ns: int = 600 * MILLISECOND_NS
    # After a victim: its memory is back after 50-300 ms, and until then the node looks full.
    hold_ns: int = 300 * MILLISECOND_NS
    # A task asked to end gets so long; it is asked only if the node will last twice as long.
    ask_ns: int = 1 * SECOND_NS
    # Slower growth than this is noise of measuring: no one is frozen for it.
    growth_min_bytes_per_second: float = 4.0 * MIB
    # Intake stops when the node is foreseen full so soon, and opens at twice that.
    intake_ns: int = 1 * SECOND_NS
    # A task that outgrew what was expected is taken to grow by this factor more.
    outgrown_factor: float = 1.15
    # A victim must give back this share of what is missing, or it would be killed for nothing.
    victim_share: float = 0.25
    # Looks: 50 Hz near the end, 20 Hz when it is less than two seconds away, else slower.
    look_urgent_ns: int = 20 * MILLISECOND_NS
    look_soon_ns: int = 50 * MILLISECOND_NS
    look_calm_ns: int = 250 * MILLISECOND_NS
    look_idle_ns: int = 1 * SECOND_NS


DEFAULT_SETTINGS = GuardSettings()


@dataclass(slots=True)
class _Plan:
    """Who may grow into what is left; made anew at each look, consistent with itself."""

    view: NodeView
    room_bytes: float  # left until the margin
    running: list[GuardedTask]  # neither frozen nor paused, oldest first
    assured: list[GuardedTask]  # these can all run to their expected peaks at once
    slack_bytes: float  # left when they have
    safe: bool  # some task that is not paused can end within the room


class Guard:
    """Decides for one node; remembers whom it asked or killed and whether intake is open."""

    def __init__(self, settings: GuardSettings = DEFAULT_SETTINGS) -> None:
        self.settings = settings
        self.intake_stopped = False
        self._hold_until_ns: int | None = None
        self._asked: tuple[Key, int] | None = None  # and when its time is over
        self._growth: dict[Key, float] = {}  # of frozen tasks, from before they were

    def look(self, view: NodeView) -> tuple[Step, ...]:
        """Return what to do now, in the order to do it. Cost: a few passes over the tasks."""
        keys = {task.key for task in view.tasks}
        self._growth = {key: slope for key, slope in self._growth.items() if key in keys}
        plan = self._plan(view)
        steps: list[Step] = []
        frozen_now = self._freeze(plan, steps)
        self._end_one(plan, frozen_now, steps)
        if not frozen_now and not any(s.kind in (StepKind.ASK, StepKind.KILL) for s in steps):
            self._thaw(plan, steps)
        self._move_intake(plan, bool(frozen_now), steps)
        return tuple(steps)

    def next_look_ns(self, view: NodeView) -> int:
        """Return the delay to the next look: shorter the sooner the node is foreseen to be full."""
        settings = self.settings
        seconds = _seconds_to_full(view, self._room(view))
        if view.stalled or (seconds is not None and seconds < 0.5):
            return settings.look_urgent_ns
        if seconds is not None and seconds < 2.0:
            return settings.look_soon_ns
        if not view.tasks:
            return settings.look_idle_ns
        return settings.look_calm_ns

    def _room(self, view: NodeView) -> float:
        return view.limit_bytes * (1 - self.settings.margin_ratio) - view.used_bytes

    def _expected(self, task: GuardedTask) -> float:
        known = task.expected_peak_bytes or task.request_bytes
        if task.used_bytes < known:
            return known
        if task.growth_bytes_per_second < self.settings.growth_min_bytes_per_second:
            return task.used_bytes
        return task.used_bytes * self.settings.outgrown_factor

    def _rest(self, task: GuardedTask) -> float:
        return max(0.0, self._expected(task) - task.used_bytes)

    def _plan(self, view: NodeView) -> _Plan:
        """Hand what is left to the tasks, the oldest first, as long as it covers all they need."""
        movable = sorted((t for t in view.tasks if not t.paused), key=_age_order)
        room = self._room(view)
        slack = room
        assured: list[GuardedTask] = []
        for task in movable:
            rest = self._rest(task)
            if rest <= slack:
                assured.append(task)
                slack -= rest
        safe = bool(assured) or not movable
        if not safe:  # the one that needs least is the best hope
            assured = [min(movable, key=lambda t: (self._rest(t), _age_order(t)))]
            slack = 0.0
        running = [task for task in movable if not task.frozen]
        return _Plan(view, room, running, assured, slack, safe)

    def _freeze(self, plan: _Plan, steps: list[Step]) -> list[GuardedTask]:
        """Freeze the youngest growers beyond the assured ones while the slack runs out."""
        settings = self.settings
        assured = {task.key for task in plan.assured}
        growers = [
            task
            for task in plan.running
            if task.key not in assured
            and task.growth_bytes_per_second >= settings.growth_min_bytes_per_second
        ]
        lookahead = settings.freeze_lookahead_ns / SECOND_NS
        frozen: list[GuardedTask] = []
        while growers:
            need = sum(task.growth_bytes_per_second for task in growers) * lookahead
            if need <= plan.slack_bytes:
                break
            task = growers.pop()
            frozen.append(task)
            self._growth[task.key] = task.growth_bytes_per_second
            steps.append(
                self._step(
                    StepKind.FREEZE,
                    plan,
                    task,
                    f"the {_mib(plan.slack_bytes)} that others do not need are full within "
                    f"{lookahead:.2f} s, and it is the youngest that grows",
                )
            )
        return frozen

    def _end_one(self, plan: _Plan, frozen_now: list[GuardedTask], steps: list[Step]) -> None:
        """Ask or kill one task when freezing does not keep the node from its end of memory."""
        view, settings = plan.view, self.settings
        if self._asked is not None:
            key, until_ns = self._asked
            task = next((t for t in view.tasks if t.key == key), None)
            if task is None or view.now_ns >= until_ns:
                self._asked = None
                if task is not None:
                    self._kill(plan, task, "it was asked to end and still runs", steps)
            return
        if self._hold_until_ns is not None and view.now_ns < self._hold_until_ns:
            return
        stopped = {task.key for task in frozen_now}
        growth = sum(
            max(0.0, t.growth_bytes_per_second) for t in plan.running if t.key not in stopped
        )
        ahead = growth * settings.kill_lookahead_ns / SECOND_NS
        if not view.stalled and ahead <= plan.room_bytes:
            return
        if growth < settings.growth_min_bytes_per_second and not view.stalled:
            return
        victim = self._victim(plan)
        if victim is None:
            return
        self._kill(plan, victim, "the node is about to be full and it is cheapest to redo", steps)

    def _victim(self, plan: _Plan) -> GuardedTask | None:
        """Return the task that costs least to run again and gives back enough."""
        settings = self.settings
        keep = plan.assured[0].key if plan.assured else None
        candidates = [t for t in plan.view.tasks if t.key != keep] or list(plan.view.tasks)
        if not candidates:
            return None
        needed = min((self._rest(t) for t in plan.assured[:1]), default=0.0)
        enough = settings.victim_share * needed
        return min(
            candidates,
            key=lambda t: (
                t.no_requeue,
                t.used_bytes < enough,
                t.paused,
                not t.elastic,
                t.priority,
                -t.started_at_ns,
                t.key,
            ),
        )

    def _kill(self, plan: _Plan, task: GuardedTask, why: str, steps: list[Step]) -> None:
        self._hold_until_ns = plan.view.now_ns + self.settings.hold_ns
        steps.append(self._step(StepKind.KILL, plan, task, why))

    def _thaw(self, plan: _Plan, steps: list[Step]) -> None:
        """Thaw frozen tasks, the oldest first, while the room covers what they may take."""
        settings = self.settings
        assured = {task.key for task in plan.assured}
        lookahead = settings.thaw_lookahead_ns / SECOND_NS
        growth = sum(
            max(0.0, t.growth_bytes_per_second) for t in plan.running if t.key not in assured
        )
        frozen = sorted((t for t in plan.view.tasks if t.frozen and not t.paused), key=_age_order)
        for task in frozen:
            slope = self._growth.get(task.key, 0.0)
            if task.key not in assured:
                if (growth + slope) * lookahead > plan.slack_bytes:
                    continue
                growth += slope
            self._growth.pop(task.key, None)
            steps.append(
                self._step(StepKind.THAW, plan, task, f"{_mib(plan.room_bytes)} are free again")
            )

    def _move_intake(self, plan: _Plan, froze: bool, steps: list[Step]) -> None:
        settings = self.settings
        seconds = _seconds_to_full(plan.view, plan.room_bytes)
        limit = settings.intake_ns / SECOND_NS * (2 if self.intake_stopped else 1)
        tight = (
            froze
            or plan.view.stalled
            or any(task.frozen for task in plan.view.tasks)
            or plan.room_bytes <= 0
            or (seconds is not None and seconds < limit)
        )
        if tight == self.intake_stopped:
            return
        self.intake_stopped = tight
        kind = StepKind.STOP_INTAKE if tight else StepKind.OPEN_INTAKE
        why = "the room that is left is for the tasks here" if tight else "there is room again"
        steps.append(self._step(kind, plan, None, why))

    def _step(self, kind: StepKind, plan: _Plan, task: GuardedTask | None, why: str) -> Step:
        view = plan.view
        return Step(
            kind,
            None if task is None else task.key,
            view.used_bytes,
            view.limit_bytes,
            view.growth_bytes_per_second,
            _seconds_to_full(view, plan.room_bytes),
            view.psi_full_percent,
            0 if task is None else task.used_bytes,
            why,
        )


def _age_order(task: GuardedTask) -> tuple[int, int, Key]:
    """Order by worth: the highest priority first, then the oldest."""
    return (-task.priority, task.started_at_ns, task.key)


def _seconds_to_full(view: NodeView, room_bytes: float) -> float | None:
    growth = max(view.growth_bytes_per_second, _growth_of(view))
    if growth <= 0:
        return None
    return max(0.0, room_bytes) / growth


def _growth_of(view: NodeView) -> float:
    return sum(max(0.0, t.growth_bytes_per_second) for t in view.tasks if not t.frozen)


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / MIB:,.0f} MiB"
