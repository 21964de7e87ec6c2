"""The values of an attempt's life on this node: what is asked, what happens, what it asks for.

Owns the words that lifecycle, wire, spool and connection share. Bytes and nanoseconds throughout;
instants are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

Key: TypeAlias = tuple[int, int]  # (task_id, attempt)


class OomCause(Enum):
    """Whose doing an end for want of memory was; the values are those of the wire."""

    UNSPECIFIED = 0
    OWN_LIMIT = 1
    BYSTANDER = 2  # the kernel's choice when the node, or a group above it, was full
    GUARD = 3
    OUTSIDE = 4  # another memory killer of the machine
    CHILD_ONLY = 5


class GuardStepKind(Enum):
    """A rung of the guard's ladder or the way back down; the values are those of the wire."""

    STOP_INTAKE = 1
    OPEN_INTAKE = 2
    FREEZE = 3
    THAW = 4
    ASK = 5
    KILL = 6


@dataclass(frozen=True, slots=True)
class GuardStep:
    """One thing the guard did and the numbers it did it for; `key` None means the node."""

    taken_at_ns: int  # since the Unix epoch
    kind: GuardStepKind
    key: Key | None
    memory_used_bytes: int  # of memory_limit_bytes, the bound that was foreseen to be reached
    memory_limit_bytes: int
    memory_growth_bytes_per_second: float = 0.0
    seconds_to_full: float | None = None  # None: nothing grew
    psi_full_percent: float | None = None
    task_memory_used_bytes: int = 0
    reason: str = ""


class Timer(Enum):
    """What a timer of an attempt is for."""

    TIME_LIMIT = "time limit"
    GRACE = "grace"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt to start. An empty working directory means the attempt's own."""

    key: Key
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = ""
    memory_limit_bytes: int | None = None
    memory_request_bytes: int = 0
    cpus: float = 1.0
    time_limit_ns: int | None = None
    grace_ns: int = 10_000_000_000
    stdout_path: str = ""  # empty: the attempt's own file
    stderr_path: str = ""
    gpu_indexes: tuple[int, ...] = ()
    array_id: int = 0  # 0: it is no element of an array
    array_index: int = 0
    label: str = ""  # the task's id as people read it
    memory_elastic: bool = False  # may outgrow its request; then the limit is the user's own
    memory_expected_peak_bytes: int = 0  # 0: unknown
    priority: int = 0  # higher is worth more
    no_requeue: bool = False  # it would not run again: the guard's last choice
    oom_group: bool = False  # the kernel ends the whole tree at the limit, not one process
    ahead: bool = False  # waits here until those that run leave CPUs for it


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the process ended; `start_error` says why there never was one."""

    exit_code: int | None = None
    signal: int | None = None
    memory_peak_bytes: int = 0
    oom_kill_count: int = 0
    started_at_ns: int = 0  # 0: it never began
    ended_at_ns: int = 0
    start_error: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen around an end that the outcome does not tell; it decides the cause alone."""

    own_limit: bool = False  # a kernel kill was for the attempt's own limit
    node_full: bool = False  # a kernel kill was for the node, a group above it or the machine
    memory_short: bool = False  # the machine was short of memory in the last moments
    memory_refused: bool = False  # the kernel gave the node's tasks no more in the last moments
    oomd_kill: bool = False  # systemd-oomd has marked the attempt's group


@dataclass(frozen=True, slots=True)
class Started:
    """Report: the process runs."""

    pid: int
    started_at_ns: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Report: the process and its whole tree are gone, or never were."""

    outcome: Outcome
    oom_cause: OomCause
    timed_out: bool
    stopped: bool
    guard: GuardStep | None = None  # the guard's step that ended it
    agent_stopped: bool = False  # stopped, and the agent was told to end


@dataclass(frozen=True, slots=True)
class Frozen:
    """Report: the process tree was paused, or goes on."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Something that happened to an attempt; sequences count from 1 in one agent instance."""

    sequence: int
    key: Key
    event: Started | Frozen | Ended


# Events.


@dataclass(frozen=True, slots=True)
class Assigned:
    """The controller wants an attempt run. With `error` it cannot be, and is reported so."""

    assignment: Assignment
    error: str = ""

    @property
    def key(self) -> Key:
        """The attempt it is about."""
        return self.assignment.key


@dataclass(frozen=True, slots=True)
class StartSucceeded:
    """Exec has happened."""

    key: Key
    pid: int
    started_at_ns: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The process could not be started; nothing of it ever ran."""

    key: Key
    error: str
    lacked_memory: bool = False  # that of the node, by no fault of the attempt


@dataclass(frozen=True, slots=True)
class Exited:
    """The process and its whole tree are gone."""

    key: Key
    outcome: Outcome
    evidence: Evidence = Evidence()


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The controller wants an attempt ended; grace 0 means SIGKILL at once. `only_held`: only if
    it waits for CPUs still."""

    key: Key
    grace_ns: int
    only_held: bool = False


@dataclass(frozen=True, slots=True)
class FreezeAsked:
    """The controller wants an attempt paused, or to go on."""

    key: Key
    paused: bool


@dataclass(frozen=True, slots=True)
class TimeLimitReached:
    """The timer of the time limit has fired."""

    key: Key


@dataclass(frozen=True, slots=True)
class GraceOver:
    """The timer between SIGTERM and SIGKILL has fired."""

    key: Key


@dataclass(frozen=True, slots=True)
class GuardAsked:
    """The guard has asked an attempt to end (SIGTERM), to save the node."""

    key: Key
    step: GuardStep


@dataclass(frozen=True, slots=True)
class GuardKilled:
    """The guard ends an attempt to save the node; SIGKILL may already be on its way."""

    key: Key
    step: GuardStep


@dataclass(frozen=True, slots=True)
class IntakeChanged:
    """The guard lets no new attempt start for now, or lets them start again."""

    stopped: bool


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """There was no contact for so long that the controller may run the tasks elsewhere."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The agent ends on purpose: everything is stopped, and what comes now is not started.

    What comes is answered at the next Leaving, so that a controller that has not understood yet
    does not send the same task again and again.
    """

    grace_ns: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """All reports up to this sequence number are saved."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Welcomed:
    """A new stream is open; `forget` are attempts to end and forget."""

    acknowledged_sequence: int
    forget: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Estranged:
    """The controller is of another cluster: what is known so far is not of its tasks."""


Event: TypeAlias = (
    Assigned
    | StartSucceeded
    | StartFailed
    | Exited
    | StopAsked
    | FreezeAsked
    | TimeLimitReached
    | GraceOver
    | GuardAsked
    | GuardKilled
    | IntakeChanged
    | LeaseLost
    | Leaving
    | Acknowledged
    | Welcomed
    | Estranged
)


# Commands.


@dataclass(frozen=True, slots=True)
class Start:
    """Give the attempt to the runner; answered by StartSucceeded or StartFailed."""

    key: Key
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM to the whole tree."""

    key: Key


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to the whole tree until it is empty; answered by Exited."""

    key: Key


@dataclass(frozen=True, slots=True)
class Freeze:
    """Pause the whole tree, or let it go on; one that is so already stays so."""

    key: Key
    paused: bool


@dataclass(frozen=True, slots=True)
class Arm:
    """Fire a timer after the delay; of two of one kind the earlier deadline holds."""

    key: Key
    timer: Timer
    delay_ns: int


@dataclass(frozen=True, slots=True)
class Disarm:
    """Drop every timer of the attempt."""

    key: Key


@dataclass(frozen=True, slots=True)
class ReportReady:
    """Make the report durable where that is needed, and send it."""

    report: Report


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Nothing of the attempt is owed any more: let go of what is kept for it."""

    key: Key


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End the stream: the controller broke a bound; a new hello puts both sides in step."""

    reason: str


Command: TypeAlias = (
    Start | Terminate | Kill | Freeze | Arm | Disarm | ReportReady | Forgotten | Disconnect
)
