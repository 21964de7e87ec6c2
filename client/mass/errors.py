"""What the client raises: one class for each thing a caller would do differently.

The rule: `reason` is a stable word to test, the message is a sentence for people and may change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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


class CallError(MassClientError):
    """A Python call of an Executor could not be sent, or its result could not be brought back."""

    reason = "CALL_ERROR"
