"""What the client raises: one class for each thing a caller would do differently.

The rule: `reason` is a stable word to test, the message is a sentence for people and may change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mass.model import TaskInfo


class MassClientError(Exception):
    """Everything the client raises on its own account; `reason` is a stable word."""

    reason = "CLIENT_ERROR"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidValue(MassClientError, ValueError):
    """A value that cannot be, refused before the controller was asked; do not repeat it.

    `details` are the words of its sentence that a program may want, as text.
    """

    reason = "INVALID_VALUE"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details = {key: str(value) for key, value in details.items()}


class Unreachable(MassClientError):
    """The controller has not answered for the client's whole patience; try again later."""

    reason = "CONTROLLER_UNREACHABLE"


class WaitTimeout(MassClientError, TimeoutError):
    """The time to wait is over; the tasks go on. `pending_ids` are those that have not ended."""

    reason = "WAIT_TIMEOUT"

    def __init__(self, message: str, pending_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.pending_ids = tuple(pending_ids)


class Refused(MassClientError):
    """The controller refused a call.

    `reason` is its word, for example LIMIT_REACHED; `details` are the numbers of its sentence as
    text; `try_later` tells whether the same call may work later.
    """

    def __init__(
        self,
        message: str,
        reason: str = "REFUSED",
        details: Mapping[str, str] | None = None,
        *,
        try_later: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.details = dict(details or {})
        self.try_later = try_later


class NotFound(Refused):
    """No task has that id."""

    def __init__(
        self, message: str, reason: str = "NOT_FOUND", details: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, reason, details)


class TaskFailed(MassClientError):
    """A task ended in another way than SUCCEEDED; `task` is how it ended."""

    reason = "TASK_FAILED"

    def __init__(self, task: TaskInfo) -> None:
        super().__init__(_end_sentence(task))
        self.task = task

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task,)


class TaskOutOfMemory(TaskFailed):
    """Memory ended the task; `task.oom_cause` says whose doing it was."""

    reason = "TASK_OUT_OF_MEMORY"


class TaskTimedOut(TaskFailed):
    """The task outlived its time limit."""

    reason = "TASK_TIMED_OUT"


class TaskCancelled(TaskFailed):
    """The task was cancelled."""

    reason = "TASK_CANCELLED"


class TaskLost(TaskFailed):
    """The task was on a node that vanished, and must not be run again."""

    reason = "TASK_LOST"


class CallError(MassClientError):
    """A Python call of an Executor could not be sent, or its result could not be brought back."""

    reason = "CALL_ERROR"


def task_failed(task: TaskInfo) -> TaskFailed:
    """Return the error for a task that has ended, and not as SUCCEEDED."""
    classes: dict[str, type[TaskFailed]] = {
        "OUT_OF_MEMORY": TaskOutOfMemory,
        "TIMED_OUT": TaskTimedOut,
        "CANCELLED": TaskCancelled,
        "LOST": TaskLost,
    }
    return classes.get(task.state.value, TaskFailed)(task)


def _end_sentence(task: TaskInfo) -> str:
    if task.reason:
        why = task.reason
    elif task.signal is not None:
        why = f"ended by signal {task.signal}"
    elif task.exit_code is not None:
        why = f"exit code {task.exit_code}"
    else:
        why = "no reason given"
    return f"task {task.id} ({task.name}) ended {task.state.value}: {why}"
