"""The client's values: what is asked for, and a task as the controller last told it.

The rule: values are frozen and carry plain Python types; the wire's messages stay behind
`to_wire` and `from_wire`. Bounds other than those of sizes and durations are the controller's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Literal, TypeAlias, TypedDict

from mass.errors import InvalidValue
from mass.units import duration_ns, size_bytes
from mass.v1 import types_pb2

_TASK_ID = re.compile(r"[1-9]\d{0,17}", re.ASCII)
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_DEPENDENCY_KINDS = {
    "ok": types_pb2.DEPENDENCY_KIND_OK,
    "any": types_pb2.DEPENDENCY_KIND_ANY,
    "fail": types_pb2.DEPENDENCY_KIND_FAIL,
}


class TaskState(Enum):
    """Where a task is in its life; the values are the words that `mass task list` prints."""

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
    UNKNOWN = "UNKNOWN"  # a word of a newer controller

    @property
    def ended(self) -> bool:
        """Whether a task in this state has ended for good."""
        return self in _ENDED


_ENDED = frozenset(
    {
        TaskState.SUCCEEDED,
        TaskState.FAILED,
        TaskState.OUT_OF_MEMORY,
        TaskState.TIMED_OUT,
        TaskState.CANCELLED,
        TaskState.LOST,
    }
)


class OomCause(Enum):
    """Whose doing an end for want of memory was; NONE where memory was not the cause."""

    NONE = "UNSPECIFIED"
    OWN_LIMIT = "OWN_LIMIT"
    BYSTANDER = "BYSTANDER"
    GUARD = "GUARD"
    OUTSIDE = "OUTSIDE"
    CHILD_ONLY = "CHILD_ONLY"
    UNKNOWN = "UNKNOWN"  # a word of a newer controller


class TaskOptions(TypedDict, total=False):
    """What may be said about a task beside its command; each as the field of TaskSpec."""

    mem: str | int | None
    mem_limit: str | int | None
    cpus: float | None
    name: str | None
    category: str | None
    priority: int
    time_limit: str | timedelta | None
    retries: int
    requeue: bool
    env: Mapping[str, str]
    cwd: str | os.PathLike[str] | None
    constraint: str | None
    prefer: Literal["spread", "pack"] | None
    gpus: int
    stdout: str | os.PathLike[str] | None
    stderr: str | os.PathLike[str] | None
    hold: bool
    retry_delay: str | timedelta | None
    after: str | int | Sequence[str | int]
    key: str | None
    array: str | None
    array_running_max: int
    mem_exact: bool
    input_size: str | int | None
    oom_group: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    mem: str | int | None = None
    mem_limit: str | int | None = None
    cpus: float | None = None
    name: str | None = None
    category: str | None = None
    priority: int = 0
    time_limit: str | timedelta | None = None
    retries: int = 0
    requeue: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | os.PathLike[str] | None = None
    constraint: str | None = None
    prefer: Literal["spread", "pack"] | None = None
    gpus: int = 0
    stdout: str | os.PathLike[str] | None = None
    stderr: str | os.PathLike[str] | None = None
    hold: bool = False
    retry_delay: str | timedelta | None = None
    after: str | int | Sequence[str | int] = ()
    key: str | None = None
    array: str | None = None
    array_running_max: int = 0
    mem_exact: bool = False
    input_size: str | int | None = None
    oom_group: bool = False


@dataclass(frozen=True, slots=True)
class TaskSpec(_Options):
    """One task to submit.

    * `command`: the program and its arguments; it is not given to a shell.
    * `mem`: the memory it is expected to need, `"2GiB"` or whole bytes; None or `"auto"` leaves it
      to what was learned of its category, 1 GiB before anything was.
    * `mem_limit`: its hard limit, never raised; None leaves it to the controller.
    * `cpus`: the cores it occupies; None means 1.
    * `name`, `category`: what people call it (None: the command's base name), and which tasks
      need alike (None: the name).
    * `priority`: higher goes first, -1,000,000 to 1,000,000.
    * `time_limit`: the longest run of one attempt, `"1h30m"` or a timedelta; None means none.
    * `retries`: how often a failed attempt is tried again, 0 to 100.
    * `requeue`: False forbids to run it again when its node or the guard ended it.
    * `env`: variables beside the agent's minimal environment.
    * `mem_exact`: True keeps what is set aside at `mem`, whatever was learned.
    * `input_size`: the size of what it reads, by which tasks of one category are told apart.
    * `oom_group`: True ends all its processes at the hard limit, not the biggest only.
    * `cwd`: its directory on the node, a relative one taken from here; None: the attempt's own.
    * `constraint`: what a node must be like, `"label=ssd and cpus>=8"`; None: any node will do.
    * `prefer`: `"spread"` takes the node with the most memory left, `"pack"` the one with the
      least that is enough; None leaves it to the controller.
    * `gpus`: whole GPUs it occupies.
    * `stdout`, `stderr`: files on the node instead of MASS's own, in which `%j` is the task's id,
      `%a` its array index and `%t` its attempt; a relative one is taken from here.
    * `hold`: submit it HELD.
    * `retry_delay`: the wait before the first retry, doubled with each one; None means 1 s.
    * `after`: tasks or arrays it waits for, each an id or the `key` of another task of the same
      call, alone for success or with `:ok`, `:any`, `:fail`: `["12", "prepare:any"]`.
    * `key`: a name for it within its call: letters, digits, `_`, `.` and `-`, no digit first.
    * `array`: the indexes that make it many tasks, `"1-1000"`, `"0-9,20"` or `"0-100:10"`.
    * `array_running_max`: elements placed at once; 0 means no bound.

    Example: `TaskSpec(["align", "s1.fq"], mem="2GiB", time_limit="1h")`.
    """

    command: Sequence[str]

    def to_wire(self) -> types_pb2.TaskSpec:
        """Return the message for it.

        Raises:
            InvalidValue: a value that cannot be, named with its field.
        """
        if isinstance(self.command, str | bytes):
            raise InvalidValue(
                f"command {self.command!r} is one text; give a list, the program and its arguments"
            )
        fields: dict[str, Any] = {
            "command": list(self.command),
            "name": self.name or "",
            "category": self.category or "",
            "priority": self.priority,
            "retries": self.retries,
            "no_requeue": not self.requeue,
            "environment": dict(self.env),
            "constraint": self.constraint or "",
            "gpus": self.gpus,
            "hold": self.hold,
            "after": _dependencies(self.after),
            "key": _key(self.key),
            "memory_exact": self.mem_exact,
            "oom_group": self.oom_group,
        }
        sizes = (
            ("memory_request_bytes", "mem", None if self.mem == "auto" else self.mem),
            ("memory_limit_bytes", "mem_limit", self.mem_limit),
            ("input_bytes", "input_size", self.input_size),
        )
        fields |= {name: size_bytes(size, word) for name, word, size in sizes if size is not None}
        paths = (
            ("working_directory", self.cwd),
            ("stdout_path", self.stdout),
            ("stderr_path", self.stderr),
        )
        fields |= {name: os.path.abspath(path) for name, path in paths if path is not None}
        if self.cpus is not None:
            # The wire's 0 means the default, so a 0 that was written must not get there.
            if not self.cpus > 0:
                raise InvalidValue(f"cpus {self.cpus} must be above 0")
            fields["cpus"] = self.cpus
        if self.prefer is not None:
            fields["preference"] = _preference(self.prefer)
        if self.array is None and self.array_running_max:
            raise InvalidValue(f"array_running_max {self.array_running_max} is of no array")
        try:
            message = types_pb2.TaskSpec(**fields)
            if self.array is not None:
                message.array.indexes = self.array
                message.array.running_max = self.array_running_max
        except (TypeError, ValueError) as error:
            raise InvalidValue(f"the task {list(self.command)[:1]} cannot be: {error}") from error
        if self.time_limit is not None:
            message.time_limit.FromNanoseconds(duration_ns(self.time_limit))
        if self.retry_delay is not None:
            message.retry_delay.FromNanoseconds(duration_ns(self.retry_delay, "retry_delay", 0))
        return message


def _preference(text: str) -> int:
    if text not in ("spread", "pack"):
        raise InvalidValue(f"prefer '{text}' is not spread or pack")
    return types_pb2.Preference.Value(f"PREFERENCE_{text.upper()}")


def _key(text: str | None) -> str:
    if text is not None and not _KEY.fullmatch(text):
        raise InvalidValue(f"key '{text[:80]}' must be letters, digits, '_', '.' and '-'")
    return text or ""


def _dependencies(after: str | int | Sequence[str | int]) -> list[types_pb2.Dependency]:
    """Return what is waited for, as the command line's --after is read."""
    found = []
    for wanted in (after,) if isinstance(after, str | int) else after:
        name, colon, kind = str(wanted).rpartition(":")
        if not colon:
            name, kind = str(wanted), "ok"
        is_id = _TASK_ID.fullmatch(name) is not None
        if kind not in _DEPENDENCY_KINDS or not (is_id or _KEY.fullmatch(name)):
            raise InvalidValue(f"after '{wanted}' is not ID, ID:ok, ID:any or ID:fail")
        dependency = types_pb2.Dependency(task_id=name) if is_id else types_pb2.Dependency(key=name)
        found.append(dependency)
        dependency.kind = _DEPENDENCY_KINDS[kind]
    return found


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as the controller told it. Memory is in bytes; instants are in UTC.

    `exit_code` is None when a signal ended the latest attempt (then `signal` is set), and while
    none has ended. `memory_peak_bytes` is the most an attempt has used, `memory_limit_bytes` what
    the kernel enforces on the latest one (0 means nothing). `reason` explains the state in a
    sentence, `reason_code` is its stable word.
    """

    id: str
    state: TaskState
    command: tuple[str, ...]
    name: str
    category: str
    user: str
    reason_code: str
    reason: str
    attempt: int
    node_id: str
    submitted_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    signal: int | None
    memory_request_bytes: int
    memory_reserved_bytes: int
    memory_used_bytes: int
    memory_peak_bytes: int
    memory_limit_bytes: int
    oom_cause: OomCause
    failures: int
    memory_requeues: int
    array_id: str = ""  # the array it is an element of; empty when it is none
    array_index: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The texts that name it: its id, and of an element ARRAY_INDEX as well."""
        return (self.id, f"{self.array_id}_{self.array_index}") if self.array_id else (self.id,)

    @property
    def ended(self) -> bool:
        """Whether it has ended for good."""
        return self.state.ended

    @property
    def succeeded(self) -> bool:
        """Whether it has ended with exit code 0."""
        return self.state is TaskState.SUCCEEDED

    @staticmethod
    def from_wire(task: types_pb2.Task) -> TaskInfo:
        """Return the value of a message."""
        return TaskInfo(
            id=task.id,
            state=_word(TaskState, types_pb2.TaskState, task.state, "TASK_STATE_"),
            command=tuple(task.spec.command),
            name=task.spec.name,
            category=task.spec.category,
            user=task.user,
            reason_code=task.reason_code,
            reason=task.reason,
            attempt=task.attempt,
            node_id=task.node_id,
            submitted_at=_instant(task, "submitted_at"),
            started_at=_instant(task, "started_at"),
            ended_at=_instant(task, "ended_at"),
            exit_code=task.exit_code if task.HasField("exit_code") else None,
            signal=task.signal if task.HasField("signal") else None,
            memory_request_bytes=task.spec.memory_request_bytes,
            memory_reserved_bytes=task.memory_reserved_bytes,
            memory_used_bytes=task.memory_used_bytes,
            memory_peak_bytes=task.memory_peak_bytes,
            memory_limit_bytes=task.memory_limit_bytes,
            oom_cause=_word(OomCause, types_pb2.OomCause, task.oom_cause, "OOM_CAUSE_"),
            failures=task.failures,
            memory_requeues=task.memory_requeues,
            array_id=task.array_id,
            array_index=task.array_index,
        )


TaskInfos: TypeAlias = list[TaskInfo]


# The generated enums are wrappers whose type the stubs call by the enum's own name.
def _word(kind: Any, wire: Any, number: int, prefix: str) -> Any:
    try:
        return kind(wire.Name(number).removeprefix(prefix))
    except ValueError:
        return kind.UNKNOWN


def _instant(task: types_pb2.Task, name: str) -> datetime | None:
    if not task.HasField(name):
        return None
    moment: datetime = getattr(task, name).ToDatetime(tzinfo=UTC)
    return moment
