"""What the world can do wrong. Each class is one thing a caller would do differently."""

from __future__ import annotations


class MassError(Exception):
    """Something was refused; the message names the thing, the value and the bound.

    `reason` is the stable word that clients test; `details` are its numbers as text.
    """

    reason = "REFUSED"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = {key: str(value) for key, value in details.items()}


class InvalidRequest(MassError):
    """A field has a value that cannot be; do not repeat the call unchanged."""

    reason = "INVALID_REQUEST"


class NotFound(MassError):
    """Nothing has that name."""

    reason = "NOT_FOUND"


class Conflict(MassError):
    """The thing is in a state in which this cannot be done; change that first."""

    reason = "CONFLICT"


class OutcomeUnknown(MassError):
    """A task that another waits for has ended meanwhile; look its end up and ask again."""

    reason = "OUTCOME_UNKNOWN"


class NoMemoryFree(MassError):
    """No node can promise that much memory now; try again later."""

    reason = "NO_NODE_WITH_MEMORY"


class LimitReached(MassError):
    """A bound of the controller is reached; try again later."""

    reason = "LIMIT_REACHED"


class PoolIsExhausted(MassError):
    """The controller's memory pool has no room left; try again later."""

    reason = "POOL_EXHAUSTED"


class ProtocolMismatch(MassError):
    """The peer speaks another version of the protocol, or breaks its rules."""

    reason = "PROTOCOL_MISMATCH"


class NodeUnavailable(MassError):
    """The node cannot be asked now; try again later."""

    reason = "NODE_UNAVAILABLE"
