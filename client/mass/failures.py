"""The errors for tasks that ended in another way than SUCCEEDED, one class for each way."""

from __future__ import annotations

from typing import Any

from mass.errors import MassClientError
from mass.model import TaskInfo


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
