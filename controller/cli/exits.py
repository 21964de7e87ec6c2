"""Owns the exit codes of `mass`: one table, printed in docs/cli.md and used by every command.

A command that follows tasks (`run`, `submit --wait`, `task wait`) ends with the task's own code, so
the codes of MASS's answers about a task start where the shell's conventions put them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from controller.core.errors import InvalidRequest, LimitReached, MassError, NotFound

if TYPE_CHECKING:
    from mass.v1.types_pb2 import Task

SIGNAL_BASE = 128


class ExitCode(IntEnum):
    """What `mass` says to the shell."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    TRY_LATER = 5
    LOST = 123
    TIMED_OUT = 124
    OUT_OF_MEMORY = 125
    NOT_STARTED = 126
    CANCELLED = 130


MEANINGS = {
    ExitCode.OK: "done; every task followed has succeeded",
    ExitCode.REFUSED: "refused, or failed for a reason that the message names",
    ExitCode.USAGE: "a flag or a value that cannot be; nothing was changed",
    ExitCode.NOT_FOUND: "no task or node has that name",
    ExitCode.UNREACHABLE: "the controller does not answer",
    ExitCode.TRY_LATER: "a bound of the controller is reached; the same call may work later",
    ExitCode.LOST: "the task ended LOST",
    ExitCode.TIMED_OUT: "the task ended TIMED_OUT",
    ExitCode.OUT_OF_MEMORY: "the task ended OUT_OF_MEMORY",
    ExitCode.NOT_STARTED: "the task's command could not be started",
    ExitCode.CANCELLED: "the task ended CANCELLED, or Ctrl-C ended the command",
}


class Unreachable(MassError):
    """The controller does not answer; start one, or name another."""

    reason = "CONTROLLER_UNREACHABLE"


class Refused(MassError):
    """The controller refused a call; `exit_code` says what kind of refusal it was."""

    def __init__(
        self, message: str, *, reason: str, exit_code: ExitCode, details: dict[str, str]
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code
        self.details = details


def exit_code_of(error: MassError) -> ExitCode:
    """Return the exit code for an error."""
    match error:
        case Refused():
            return error.exit_code
        case InvalidRequest():
            return ExitCode.USAGE
        case NotFound():
            return ExitCode.NOT_FOUND
        case Unreachable():
            return ExitCode.UNREACHABLE
        case LimitReached():
            return ExitCode.TRY_LATER
        case _:
            return ExitCode.REFUSED


def task_exit_code(task: Task) -> int:
    """Return the exit code that stands for the end of a task, 0 to 255.

    OUT_OF_MEMORY and TIMED_OUT come before the signal that carried them out: a script needs the
    reason, and 137 would say only that somebody sent SIGKILL.
    """
    from mass.v1 import types_pb2

    by_state = {
        types_pb2.TASK_STATE_SUCCEEDED: ExitCode.OK,
        types_pb2.TASK_STATE_OUT_OF_MEMORY: ExitCode.OUT_OF_MEMORY,
        types_pb2.TASK_STATE_TIMED_OUT: ExitCode.TIMED_OUT,
        types_pb2.TASK_STATE_CANCELLED: ExitCode.CANCELLED,
        types_pb2.TASK_STATE_LOST: ExitCode.LOST,
    }
    if task.state in by_state:
        return by_state[task.state]
    if task.HasField("signal"):
        return SIGNAL_BASE + task.signal
    if task.HasField("exit_code"):
        # A FAILED task never stands for success, whatever its last exit code was.
        return task.exit_code & 0xFF or ExitCode.REFUSED
    return ExitCode.NOT_STARTED
