"""What can happen to the cluster. The engine stamps each event; the core never reads a clock.

Samples are not events: they are written straight into the series.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.core.limits import Limits
from controller.core.model import (
    GuardStep,
    KnownAttempt,
    OomCause,
    TaskAction,
    TaskSpec,
    TaskState,
)
from controller.core.rules import RuleSet


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """An agent said hello on a new stream."""

    at_ns: int
    node_id: str
    instance_id: str
    machine_id: str
    boot_id: str
    agent_version: str
    memory_total_bytes: int
    memory_declared_bytes: int | None
    cpus: float
    enforcement: str
    attempts: tuple[KnownAttempt, ...]
    stream: int  # the engine's number of the stream; a later one replaces an earlier one
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    cluster_id: str = ""  # the one whose tasks the attempts are of; empty when it knows none
    capabilities: tuple[str, ...] = ()  # words for people; nothing is decided by them
    holds_ahead: bool = False  # keeps what is sent ahead until it has CPUs for it


@dataclass(frozen=True, slots=True)
class NodeLeft:
    """A stream has ended; one that was replaced before changes nothing."""

    at_ns: int
    node_id: str
    stream: int
    reason: str
    goodbye: bool = False  # its agent has ended all its attempts and reported what it could


@dataclass(frozen=True, slots=True)
class TasksSubmitted:
    """A user wants new tasks. Answered with the tuple of their ids; an array has one.

    `outcomes` are, by task or array, the states of what had ended of those that `after` names.
    `unfinished` are those that were open then: of them more may have ended since. `ends_seen` is
    how many ends the cluster had counted when that was looked up; None leaves those since unknown.
    """

    at_ns: int
    request_id: str
    user: str
    specs: tuple[TaskSpec, ...]
    outcomes: Mapping[int, frozenset[TaskState]] = field(default_factory=dict)
    unfinished: frozenset[int] = frozenset()
    ends_seen: int | None = None


@dataclass(frozen=True, slots=True)
class TasksCancelled:
    """A user wants tasks ended. A repeated call may shorten the grace. Answered with the ids."""

    at_ns: int
    task_ids: tuple[int, ...]
    grace_ns: int


@dataclass(frozen=True, slots=True)
class TasksControlled:
    """A user holds, releases, pauses or resumes tasks, or changes their priority.

    Answered with, for each task, why the action does not apply; "" where it was done.
    """

    at_ns: int
    task_ids: tuple[int, ...]
    action: TaskAction
    priority: int = 0


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """An agent's report: the process runs."""

    at_ns: int
    node_id: str
    sequence: int
    task_id: int
    attempt: int
    started_at_ns: int
    stream: int | None = None  # the one it came on; None passes as the node's present one


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An agent's report: the process and its tree are gone, or it never started."""

    at_ns: int
    node_id: str
    sequence: int
    task_id: int
    attempt: int
    exit_code: int | None
    signal: int | None
    memory_peak_bytes: int
    oom_kill_count: int
    oom_cause: OomCause
    started_at_ns: int
    ended_at_ns: int
    timed_out: bool
    stopped: bool
    start_error: str
    stdout_tail: bytes = b""
    stderr_tail: bytes = b""
    stream: int | None = None  # as in AttemptStarted
    error_text: str = ""  # what the task wrote to its MASS_ERROR_FILE
    guard_reason: str = ""  # why the node's guard ended it
    agent_stopped: bool = False  # stopped, because its agent was told to end


@dataclass(frozen=True, slots=True)
class AttemptFrozen:
    """An agent's report: the attempt was paused, or goes on."""

    at_ns: int
    node_id: str
    sequence: int
    task_id: int
    attempt: int
    paused: bool
    stream: int | None = None  # as in AttemptStarted


@dataclass(frozen=True, slots=True)
class GuardActed:
    """A node's guard did something to keep the node from running out of memory, oldest first."""

    at_ns: int
    node_id: str
    steps: tuple[GuardStep, ...]


@dataclass(frozen=True, slots=True)
class NodeCordoned:
    """Somebody keeps new tasks off a node. Answered with the node."""

    at_ns: int
    node_id: str
    reason: str
    user: str


@dataclass(frozen=True, slots=True)
class NodeUncordoned:
    """Somebody lets new tasks onto a node again. Answered with the node."""

    at_ns: int
    node_id: str
    user: str


@dataclass(frozen=True, slots=True)
class NodeDrained:
    """Somebody keeps new tasks off a node and waits for those it has. Answered with the node."""

    at_ns: int
    node_id: str
    reason: str
    user: str
    deadline_ns: int = 0  # the instant at which the tasks left are ended; 0: never


@dataclass(frozen=True, slots=True)
class NodeForgotten:
    """Somebody removes a node that is gone. Answered with its id."""

    at_ns: int
    node_id: str


@dataclass(frozen=True, slots=True)
class ReservationAsked:
    """Somebody wants memory set aside. Answered with the reservation."""

    at_ns: int
    request_id: str
    memory_bytes: int
    node_id: str  # empty: the node with the most memory left
    ttl_ns: int
    purpose: str
    user: str


@dataclass(frozen=True, slots=True)
class ReservationRenewed:
    """Somebody moves the end of a reservation. Answered with the reservation."""

    at_ns: int
    reservation_id: int
    ttl_ns: int


@dataclass(frozen=True, slots=True)
class ReservationReleased:
    """Somebody gives a reservation back. Answered with its id."""

    at_ns: int
    reservation_id: int


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """An operator has changed rules or settings; both are whole, not differences."""

    at_ns: int
    rules: RuleSet
    limits: Limits


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: silences, leases and holds are looked at."""

    at_ns: int


Event = (
    NodeJoined
    | NodeLeft
    | TasksSubmitted
    | TasksCancelled
    | TasksControlled
    | AttemptStarted
    | AttemptEnded
    | AttemptFrozen
    | GuardActed
    | NodeCordoned
    | NodeUncordoned
    | NodeDrained
    | NodeForgotten
    | ReservationAsked
    | ReservationRenewed
    | ReservationReleased
    | Reconfigured
    | Tick
)
