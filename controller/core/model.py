"""The values the core thinks in: tasks, attempts, nodes and their states.

All are frozen: a change is a new value. Memory is in bytes, time in nanoseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class TaskState(Enum):
    """Where a task is in its life; the values are the words people read."""

    HELD = "HELD"
    PENDING = "PENDING"
    ASSIGNED = "ASSIGNED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"
    LOST = "LOST"


AHEAD = "AHEAD"  # why a task is ASSIGNED that waits on its node for CPUs


class NodeState(Enum):
    """Whether a node can be reached."""

    JOINING = "JOINING"
    READY = "READY"
    UNREACHABLE = "UNREACHABLE"
    DOWN = "DOWN"


class Scheduling(Enum):
    """Whether people let new tasks onto a node."""

    ENABLED = "ENABLED"
    CORDONED = "CORDONED"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"


class Pressure(Enum):
    """How near a node is to the end of its memory."""

    NONE = "NONE"
    WARN = "WARN"
    HIGH = "HIGH"
    CRITICAL = "CRITICAL"


class AlertState(Enum):
    """Where an alert is in its life."""

    INACTIVE = "INACTIVE"
    PENDING = "PENDING"
    FIRING = "FIRING"
    KEEP_FIRING = "KEEP_FIRING"
    RESOLVED = "RESOLVED"
    NO_DATA = "NO_DATA"


class OomCause(Enum):
    """Whose doing an end for want of memory was."""

    NONE = "NONE"
    OWN_LIMIT = "OWN_LIMIT"
    BYSTANDER = "BYSTANDER"
    GUARD = "GUARD"
    OUTSIDE = "OUTSIDE"
    CHILD_ONLY = "CHILD_ONLY"


class GuardStepKind(Enum):
    """A rung of a guard's ladder, or the way back down."""

    STOP_INTAKE = "STOP_INTAKE"
    OPEN_INTAKE = "OPEN_INTAKE"
    FREEZE = "FREEZE"
    THAW = "THAW"
    ASK = "ASK"
    KILL = "KILL"


class OutputStream(Enum):
    """One of a task's two outputs."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Preference(Enum):
    """Which of the nodes that could take a task is best."""

    SPREAD = "spread"
    PACK = "pack"


class DependencyKind(Enum):
    """What must have become of an earlier task."""

    OK = "ok"
    ANY = "any"
    FAIL = "fail"


class MemoryLimits(Enum):
    """What the kernel enforces on a task without a hard limit of its own."""

    STRICT = "strict"  # the size that was decided
    ELASTIC = "elastic"  # nothing: it may outgrow its size while the node has room


class TaskAction(Enum):
    """What users do to tasks beside cancelling them."""

    HOLD = "hold"
    RELEASE = "release"
    PAUSE = "pause"
    RESUME = "resume"
    PRIORITY = "priority"


ENDED_STATES = frozenset(
    {
        TaskState.SUCCEEDED,
        TaskState.FAILED,
        TaskState.OUT_OF_MEMORY,
        TaskState.TIMED_OUT,
        TaskState.CANCELLED,
        TaskState.LOST,
    }
)
WAITING_STATES = frozenset({TaskState.HELD, TaskState.PENDING})
# A task in one of these holds a reservation on the node of its latest attempt.
PLACED_STATES = frozenset(
    {
        TaskState.ASSIGNED,
        TaskState.STARTING,
        TaskState.RUNNING,
        TaskState.PAUSED,
        TaskState.STOPPING,
    }
)


@dataclass(frozen=True, slots=True)
class Dependency:
    """An earlier task, or all elements of an array, that another task waits for.

    In a call that is not yet accepted an id below 0 means one of its own tasks: -1 the first.
    """

    task_id: int
    kind: DependencyKind = DependencyKind.OK


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a user asks for, checked and with the defaults filled in."""

    command: tuple[str, ...]
    name: str
    category: str
    memory_request_bytes: int
    memory_limit_bytes: int | None  # the user's own hard limit; None leaves it to the policy
    cpus: float = 1.0
    priority: int = 0
    time_limit_ns: int | None = None
    retries: int = 0
    requeue: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = ""
    constraint: str = ""  # what a node must be like; see controller.core.constraint
    preference: Preference = Preference.SPREAD
    gpus: int = 0
    stdout_path: str = ""
    stderr_path: str = ""
    hold: bool = False
    retry_delay_ns: int = 1_000_000_000  # before the first retry; doubles with each one
    after: tuple[Dependency, ...] = ()
    array: str = ""  # the indexes of its elements; empty for a single task
    array_running_max: int = 0  # elements placed at once; 0: no bound
    # Where nothing was declared, memory_request_bytes is only what is taken while nothing is known.
    memory_declared: bool = True
    memory_exact: bool = False  # what is reserved stays at the request, whatever was learned
    input_bytes: int | None = None  # the size of what it reads; None: unknown
    oom_group: bool = False  # at the hard limit the kernel ends the whole tree


@dataclass(frozen=True, slots=True)
class Task:
    """A task and its latest attempt."""

    id: int
    spec: TaskSpec
    user: str
    state: TaskState
    submitted_at_ns: int
    reason_code: str = ""
    reason: str = ""
    attempt: int = 0  # the number fences: a report of an older attempt changes nothing
    node_id: str = ""
    instance_id: str = ""  # the agent process that was given the attempt
    assigned_at_ns: int = 0
    started_at_ns: int = 0
    ended_at_ns: int = 0
    exit_code: int | None = None
    signal: int | None = None
    memory_peak_bytes: int = 0
    memory_limit_bytes: int | None = None  # what the kernel enforces on the attempt
    oom_cause: OomCause = OomCause.NONE
    failures: int = 0
    memory_requeues: int = 0
    cancelled: bool = False  # its user wants it ended
    array_id: int = 0
    array_index: int = 0
    not_before_ns: int = 0  # the next attempt may not be placed earlier
    gpu_indexes: tuple[int, ...] = ()  # of its node, that the latest attempt has
    priority_set: int | None = None  # by a user after the submit
    # What was decided about memory for the present or latest attempt; 0 before the first.
    memory_size_bytes: int = 0  # set aside at its start; what is reserved now is in the ledger
    memory_expected_peak_bytes: int = 0  # what the node's guard goes by; 0: nothing is known
    memory_elastic: bool = False  # it may outgrow its size; memory_limit_bytes is the user's own
    memory_reason: str = ""  # which numbers led to the size
    # What earlier attempts told about its need.
    memory_reached_bytes: int = 0  # the most that one reached which memory ended
    memory_spared: int = 0  # attempts ended for want of memory by no fault of the task
    guard_kills: int = 0  # those of them that the guard ended

    @property
    def is_ahead(self) -> bool:
        """Say whether it was sent ahead of free CPUs and has not started, as far as is known."""
        return self.reason_code == AHEAD

    @property
    def ended(self) -> bool:
        """Say whether it has ended for good."""
        return self.state in ENDED_STATES

    @property
    def priority(self) -> int:
        """Return the priority in force."""
        return self.spec.priority if self.priority_set is None else self.priority_set

    @property
    def label(self) -> str:
        """Return the id as people read it: 12, or 12_3 for an element of an array."""
        return f"{self.array_id}_{self.array_index}" if self.array_id else str(self.id)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One ended attempt, kept for people and for learning."""

    task_id: int
    number: int
    node_id: str
    outcome: TaskState
    assigned_at_ns: int
    started_at_ns: int
    ended_at_ns: int
    exit_code: int | None
    signal: int | None
    memory_peak_bytes: int
    memory_limit_bytes: int | None
    oom_cause: OomCause
    reason: str
    # What its task asked for, so that the next ones of its category can be sized from it.
    category: str = ""
    input_bytes: int | None = None
    declared_bytes: int | None = None  # None: nothing was declared
    memory_size_bytes: int = 0  # what was set aside at its start


@dataclass(frozen=True, slots=True)
class Node:
    """A worker: what its agent said at its last hello, and what people decided."""

    id: str
    machine_id: str
    boot_id: str
    instance_id: str
    agent_version: str
    memory_total_bytes: int
    memory_declared_bytes: int | None  # the agent's --memory
    cpus: float
    enforcement: str
    joined_at_ns: int
    scheduling: Scheduling = Scheduling.ENABLED
    scheduling_reason: str = ""
    scheduling_by: str = ""
    scheduling_since_ns: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    drain_deadline_ns: int = 0  # when a draining node ends what it still has; 0: never


@dataclass(frozen=True, slots=True)
class MemoryReservation:
    """Memory of a node set aside for something that is not a task."""

    id: int
    request_id: str
    node_id: str
    memory_bytes: int
    purpose: str
    user: str
    created_at_ns: int
    expires_at_ns: int


@dataclass(frozen=True, slots=True)
class GuardStep:
    """One thing a node's guard did, and the numbers it did it for."""

    taken_at_ns: int
    kind: GuardStepKind
    task_id: int  # 0: the node
    attempt: int
    used_bytes: int  # of limit_bytes
    limit_bytes: int
    growth_bytes_per_second: float
    seconds_to_full: float | None
    psi_full_percent: float | None
    task_used_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class KnownAttempt:
    """An attempt an agent says it has and whose end is not acknowledged."""

    task_id: int
    attempt: int
    ended: bool


AlertKey = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule on what it is about, with every instant of its life in a field of its own.

    It is about a node; about a task on its node; or, without a node, about the whole cluster.
    """

    name: str
    node_id: str
    state: AlertState
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    value: float
    active_at_ns: int
    fired_at_ns: int = 0
    resolved_at_ns: int = 0
    task_id: int = 0

    @property
    def key(self) -> AlertKey:
        """What it is known by: rule, node and task."""
        return self.name, self.node_id, self.task_id


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted call of SubmitTasks: the ids first_task_id, first_task_id + 1, ..."""

    request_id: str
    first_task_id: int
    count: int
    at_ns: int
