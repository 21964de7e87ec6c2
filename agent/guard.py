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

import math
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
    # The room that no assured task needs is closed to the others when it would last only so long.
    freeze_lookahead_ns: int = 200 * MILLISECOND_NS
    # Nothing grows into the last room beyond this: one look and the time a freeze needs to work.
    end_lookahead_ns: int = 60 * MILLISECOND_NS
    # A task that stays frozen so long, and longer than it had run, is better run again; so long
    # where its memory lets another frozen task go on, and so long where it only waits.
    frozen_crowd_ns: int = 5 * SECOND_NS
    frozen_alone_ns: int = 30 * SECOND_NS
    # All tasks waited for memory for this share of the last moments: as good as full.
    psi_full_max_percent: float = 40.0
    # A task is thawed only into room for this long a growth, so that it does not flap.
    thaw_lookahead_ns: int = 600 * MILLISECOND_NS
    # After a victim: its memory is back after 50-300 ms, and until then the node looks full.
    hold_ns: int = 300 * MILLISECOND_NS
    # A victim that is still there after this is stuck in the kernel and may stay for ever; memory
    # comes back at some GiB a second, so that even the largest has mostly gone by then.
    stuck_ns: int = 5 * SECOND_NS
    # How long a task that was asked to end may take before it is killed.
    ask_ns: int = 500 * MILLISECOND_NS
    # A slope measured after a thaw has the pause in it: the one from before holds for so long too.
    slope_memory_ns: int = 400 * MILLISECOND_NS
    # Slower growth than this is noise of measuring: no one is frozen for it.
    growth_min_bytes_per_second: float = 4.0 * MIB
    # A task so young has no slope yet, though the node's has it: its growth looks like no task's.
    young_ns: int = 600 * MILLISECOND_NS
    # Intake stops when the node is foreseen full so soon, and opens at twice that.
    intake_ns: int = 300 * MILLISECOND_NS
    # A task that outgrew what was expected is taken to grow by this factor more.
    outgrown_factor: float = 1.15
    # Of what an older task is expected to need, this share is kept free of younger ones' growth,
    # and no more than it grows in this time: the rest is often not used, or when others are gone.
    # A victim has to give back as much, too.
    claim_share: float = 0.25
    claim_ns: int = 1 * SECOND_NS
    # New tasks can begin to grow between two looks: so much per second is always reckoned with.
    surge_bytes_per_second: float = 1_024.0 * MIB
    # A look may be late by this share of the time to full.
    look_share: float = 0.1
    look_min_ns: int = 20 * MILLISECOND_NS  # 50 Hz
    look_max_ns: int = 250 * MILLISECOND_NS


DEFAULT_SETTINGS = GuardSettings()


@dataclass(slots=True)
class _Plan:
    """Who may grow into what is left; made anew at each look, consistent with itself."""

    view: NodeView
    room_bytes: float  # left until the margin
    movable: list[GuardedTask]  # not paused by their users, in the order of their worth
    assured: list[GuardedTask]  # what is kept for them fits; or only the worthiest
    slack_bytes: float  # left beside that


class Guard:
    """Decides for one node; remembers whom it asked or killed and whether intake is open."""

    def __init__(self, settings: GuardSettings = DEFAULT_SETTINGS) -> None:
        self.settings = settings
        self.intake_stopped = False
        self._hold_until_ns: int | None = None
        self._ending: dict[Key, int] = {}  # killed, still in the view, and when it counts as stuck
        self._asked: tuple[Key, int] | None = None  # and when its time is over
        self._growth: dict[Key, float] = {}  # of frozen tasks, from before they were
        self._frozen_at_ns: dict[Key, int] = {}
        self._thawed: dict[Key, tuple[float, int]] = {}  # growth before, and until when it holds

    def look(self, view: NodeView) -> tuple[Step, ...]:
        """Return what to do now, in the order to do it. Cost: a few passes over the tasks.

        ASK of a frozen task lets it go on as well, for it cannot end frozen.
        """
        keys = {task.key for task in view.tasks}
        self._ending = {key: until_ns for key, until_ns in self._ending.items() if key in keys}
        self._growth = {
            task.key: self._growth.get(task.key, 0.0) for task in view.tasks if task.frozen
        }
        self._frozen_at_ns = {key: self._frozen_at_ns.get(key, view.now_ns) for key in self._growth}
        self._thawed = {
            key: kept for key, kept in self._thawed.items() if key in keys and view.now_ns < kept[1]
        }
        plan = self._plan(view)
        steps: list[Step] = []
        frozen = self._freeze(plan, steps)
        thawed = self._thaw(plan, steps) if not frozen else False
        going = thawed or any(not t.frozen and t.key not in frozen for t in plan.movable)
        ended = self._end_one(plan, going, steps)
        self._move_intake(plan, bool(frozen) or ended, steps)
        return tuple(steps)

    def next_look_ns(self, view: NodeView) -> int:
        """Return the delay to the next look: shorter the sooner the node is foreseen to be full."""
        settings = self.settings
        growth = max(settings.surge_bytes_per_second, _growth_of(view))
        seconds = max(0.0, self._room(view)) / growth
        delay = int(seconds * settings.look_share * SECOND_NS)
        if view.stalled:
            delay = 0
        return max(settings.look_min_ns, min(settings.look_max_ns, delay))

    # ------------------------------------------------------------ who may grow
    def _margin(self, view: NodeView) -> float:
        return view.limit_bytes * self.settings.margin_ratio

    def _room(self, view: NodeView) -> float:
        return view.limit_bytes - self._margin(view) - view.used_bytes

    def _enough(self, view: NodeView) -> float:
        """Return what a victim gives back at least: less than the margin, or than what can grow
        before another may be ended, is ended for nothing."""
        surge = self.settings.surge_bytes_per_second * self.settings.hold_ns / SECOND_NS
        return min(self._margin(view), surge)

    def _slope(self, task: GuardedTask) -> float:
        """Return how fast a task grows, or grew when it was frozen."""
        if task.frozen:
            slope = self._growth.get(task.key, 0.0)
        else:
            slope = max(task.growth_bytes_per_second, self._thawed.get(task.key, (0.0, 0))[0])
        return slope if slope >= self.settings.growth_min_bytes_per_second else 0.0

    def _rest(self, task: GuardedTask) -> float:
        """Return how much more a task is expected to use than it does."""
        known = task.expected_peak_bytes or task.request_bytes
        if task.used_bytes < known:
            return float(known - task.used_bytes)
        if not self._slope(task):
            return 0.0
        return task.used_bytes * (self.settings.outgrown_factor - 1)

    def _claim(self, task: GuardedTask) -> float:
        """Return the room that is kept for a task."""
        settings = self.settings
        soon = self._slope(task) * settings.claim_ns / SECOND_NS
        return min(self._rest(task) * settings.claim_share, soon)

    def _plan(self, view: NodeView) -> _Plan:
        """Hand what is left to the tasks, the oldest first, as long as it covers all they need."""
        movable = [t for t in view.tasks if not t.paused and t.key not in self._ending]
        movable.sort(key=_worth)
        room = self._room(view)
        slack = room
        assured: list[GuardedTask] = []
        for task in movable:
            claim = self._claim(task)
            if claim <= slack:
                assured.append(task)
                slack -= claim
        return _Plan(view, room, movable, assured or movable[:1], max(0.0, slack))

    # ------------------------------------------------------------ down the ladder
    def _freeze(self, plan: _Plan, steps: list[Step]) -> set[Key]:
        """Freeze growers, the youngest first: those that are not assured while the slack runs out,
        and at the end of the room the assured ones as well."""
        settings = self.settings
        assured = {task.key for task in plan.assured}
        growing = [
            task
            for task in plan.movable
            if not task.frozen and self._slope(task) and not self._is_asked(task)
        ]
        frozen: set[Key] = set()
        others = [task for task in growing if task.key not in assured]
        ahead = settings.freeze_lookahead_ns / SECOND_NS
        running = sum(not task.frozen for task in plan.movable)
        while (
            others
            and running - len(frozen) > 1
            and sum(map(self._slope, others)) * ahead > plan.slack_bytes
        ):
            self._freeze_one(
                plan,
                others.pop(),
                f"it is the youngest that grows into {_mib(plan.slack_bytes)} that others do not "
                f"need, which would last less than {ahead:.2f} s",
                frozen,
                steps,
            )
        left = [task for task in growing if task.key not in frozen]
        ahead = settings.end_lookahead_ns / SECOND_NS
        while left and sum(map(self._slope, left)) * ahead > plan.room_bytes:
            self._freeze_one(
                plan,
                left.pop(),
                f"{_mib(plan.room_bytes)} would last less than {ahead:.2f} s",
                frozen,
                steps,
            )
        return frozen

    def _freeze_one(
        self, plan: _Plan, task: GuardedTask, why: str, frozen: set[Key], steps: list[Step]
    ) -> None:
        frozen.add(task.key)
        self._growth[task.key] = self._slope(task)
        self._thawed.pop(task.key, None)
        self._frozen_at_ns[task.key] = plan.view.now_ns
        steps.append(self._step(StepKind.FREEZE, plan, task, why))

    def _is_asked(self, task: GuardedTask) -> bool:
        return self._asked is not None and self._asked[0] == task.key

    def _end_one(self, plan: _Plan, going: bool, steps: list[Step]) -> bool:
        """Ask or kill one task when nobody can go on; True when one is on its way to its end.

        A victim that is stuck keeps its memory, but not the others from being chosen.
        """
        view, settings = plan.view, self.settings
        if self._asked is not None:
            key, until_ns = self._asked
            task = next((t for t in view.tasks if t.key == key), None)
            if task is not None and view.now_ns < until_ns:
                return True
            self._asked = None
            if task is not None:
                self._kill(plan, task, "it was asked to end and still runs", steps)
                return True
        if self._hold_until_ns is not None and view.now_ns < self._hold_until_ns:
            return bool(self._ending)
        if any(view.now_ns < until_ns for until_ns in self._ending.values()):
            return False
        if not plan.movable:
            return False
        if not going or self._is_full(view):
            victim = self._victim(plan)
            why = "no task can go on in the room that is left, and this is the cheapest to redo"
        elif (found := self._for_overdue(plan)) is not None:
            victim, why = found
        elif self._is_squeezed(plan) and (worthwhile := self._worthwhile(plan)):
            victim = self._victim(plan, worthwhile)
            why = "what is no task's grows into the last room, and this is the cheapest to redo"
        else:
            return False
        if self._slope(victim) * settings.ask_ns / SECOND_NS <= plan.room_bytes:
            self._asked = (victim.key, view.now_ns + settings.ask_ns)
            self._hold_until_ns = view.now_ns + settings.hold_ns
            steps.append(self._step(StepKind.ASK, plan, victim, why))
        else:
            self._kill(plan, victim, why, steps)
        return True

    def _is_full(self, view: NodeView) -> bool:
        waits = view.psi_full_percent or 0.0
        return view.stalled or (
            waits >= self.settings.psi_full_max_percent and self._room(view) <= 0
        )

    def _is_squeezed(self, plan: _Plan) -> bool:
        """Tell whether others than tasks take the last room, so that to freeze helps nobody."""
        view, settings = plan.view, self.settings
        if plan.room_bytes > 0 or any(
            task.frozen or self._slope(task) or view.now_ns - task.started_at_ns < settings.young_ns
            for task in view.tasks
        ):
            return False
        foreign = view.growth_bytes_per_second - _growth_of(view)
        return foreign >= settings.growth_min_bytes_per_second

    def _worthwhile(self, plan: _Plan) -> list[GuardedTask]:
        """Return the tasks that would give back enough: to end others saves nobody."""
        enough = self._enough(plan.view)
        return [
            task
            for task in plan.view.tasks
            if task.key not in self._ending and task.used_bytes >= enough
        ]

    def _overdue(self, plan: _Plan) -> list[GuardedTask]:
        """Return the frozen tasks for which it would be cheaper to run again than to wait on."""
        now_ns, settings = plan.view.now_ns, self.settings
        crowd = len(self._frozen_at_ns) > 1
        least_ns = settings.frozen_crowd_ns if crowd else settings.frozen_alone_ns
        return [
            task
            for task in plan.movable
            if (since := self._frozen_at_ns.get(task.key)) is not None
            and now_ns - since >= max(least_ns, since - task.started_at_ns)
        ]

    def _for_overdue(self, plan: _Plan) -> tuple[GuardedTask, str] | None:
        """Return whom to end, and why, because a task has been frozen for too long.

        That is the task itself, if it would run again. One that would not makes the cheapest other
        give way that would; where there is none it stays frozen, for to end it loses it for good.
        """
        overdue = self._overdue(plan)
        if again := [task for task in overdue if not task.no_requeue]:
            why = "it has been frozen for longer than it ran, and there is no room for it"
            return again[-1], why
        others = [t for t in plan.view.tasks if not t.no_requeue and t.key not in self._ending]
        if not overdue or not others:
            return None
        why = (
            "one that would not run again has been frozen for longer than it ran, and this is the "
            "cheapest to redo"
        )
        return self._cheapest(plan, others, overdue[0]), why

    def _victim(self, plan: _Plan, among: list[GuardedTask] | None = None) -> GuardedTask:
        """Return whom to end so that the worthiest can go on; that one only if it is the last."""
        keep = plan.movable[0]
        candidates = among or [task for task in plan.view.tasks if task.key not in self._ending]
        if any(task.key != keep.key and not task.no_requeue for task in candidates):
            candidates = [task for task in candidates if task.key != keep.key]
        return self._cheapest(plan, candidates, keep)

    def _cheapest(
        self, plan: _Plan, candidates: list[GuardedTask], keep: GuardedTask
    ) -> GuardedTask:
        """Return the task that costs least to run again and gives back enough for another one.

        That one's claim is enough: what it is expected to need in all may be far too much, and
        would cost an old large task its work where a young one would do.
        """
        enough = max(self._claim(keep), self._enough(plan.view))
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
        self._ending[task.key] = plan.view.now_ns + self.settings.stuck_ns
        steps.append(self._step(StepKind.KILL, plan, task, why))

    # ------------------------------------------------------------ and up again
    def _thaw(self, plan: _Plan, steps: list[Step]) -> bool:
        """Thaw frozen tasks in the order of their worth while the room covers their growth."""
        settings = self.settings
        assured = {task.key for task in plan.assured}
        ahead = settings.thaw_lookahead_ns / SECOND_NS
        end = settings.end_lookahead_ns / SECOND_NS
        thawed = False
        running = [task for task in plan.movable if not task.frozen]
        everyone = sum(map(self._slope, running))
        others = sum(self._slope(t) for t in running if t.key not in assured)
        for task in plan.movable:
            if not task.frozen:
                continue
            slope = self._slope(task)
            if (everyone + slope) * end * 2 > plan.room_bytes and everyone:
                continue
            if slope * end > plan.room_bytes:
                continue
            if task.key not in assured:
                if (others + slope) * ahead > plan.slack_bytes:
                    continue
                others += slope
            everyone += slope
            thawed = True
            until_ns = plan.view.now_ns + settings.slope_memory_ns
            self._thawed[task.key] = (self._growth.pop(task.key), until_ns)
            del self._frozen_at_ns[task.key]
            why = f"{_mib(plan.room_bytes)} are free for it again"
            steps.append(self._step(StepKind.THAW, plan, task, why))
        return thawed

    def _move_intake(self, plan: _Plan, acted: bool, steps: list[Step]) -> None:
        """Close the node to new tasks while the room is for those here, or open it again."""
        settings = self.settings
        seconds = _seconds_to_full(plan.view, plan.room_bytes)
        limit = settings.intake_ns / SECOND_NS * (2 if self.intake_stopped else 1)
        tight = (
            acted
            or self._is_full(plan.view)
            or any(task.frozen for task in plan.movable)
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


def _worth(task: GuardedTask) -> tuple[int, int, Key]:
    """Order by what would be lost: the highest priority first, then the oldest."""
    return (-task.priority, task.started_at_ns, task.key)


def _seconds_to_full(view: NodeView, room_bytes: float) -> float | None:
    growth = max(view.growth_bytes_per_second, _growth_of(view))
    if growth <= 0:
        return None
    return max(0.0, room_bytes) / growth


def _growth_of(view: NodeView) -> float:
    """Return what all grow together; exact, so that the order of the tasks changes nothing."""
    return math.fsum(max(0.0, t.growth_bytes_per_second) for t in view.tasks if not t.frozen)


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / MIB:,.0f} MiB"
