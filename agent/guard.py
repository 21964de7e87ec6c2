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

    # Never given to tasks: what measuring and reacting late may cost.
    margin_ratio: float = 0.02


class Guard:
    """Decides for one node; remembers whom it asked or killed and whether intake is open."""

    def __init__(self, settings: GuardSettings | None = None) -> None:
        self.settings = settings or GuardSettings()

    def look(self, view: NodeView) -> tuple[Step, ...]:
        """Return what to do now, in the order to do it. Cost: a few passes over the tasks."""
        del view
        return ()

    def next_look_ns(self, view: NodeView) -> int:
        """Return the delay to the next look: shorter the sooner the node is foreseen to be full."""
        del view
        return 250 * MILLISECOND_NS
