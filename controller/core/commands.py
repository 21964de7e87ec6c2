"""What the core asks for. The engine saves all Save commands of a turn in one transaction, and
only then replies, sends and notifies."""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.model import (
    Alert,
    Attempt,
    GuardStep,
    KnownAttempt,
    MemoryReservation,
    Node,
    OutputStream,
    Submission,
    Task,
)


@dataclass(frozen=True, slots=True)
class SaveTask:
    """Keep this value of a task; a later one of the same turn replaces it."""

    task: Task


@dataclass(frozen=True, slots=True)
class SaveAttempt:
    """Keep an ended attempt."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class SaveOutput:
    """Keep the last part (at most 64 KiB) of an ended attempt's output."""

    task_id: int
    attempt: int
    stream: OutputStream
    data: bytes


@dataclass(frozen=True, slots=True)
class SaveNode:
    """Keep this value of a node."""

    node: Node


@dataclass(frozen=True, slots=True)
class ForgetNode:
    """Keep nothing of a node any more."""

    node_id: str


@dataclass(frozen=True, slots=True)
class SaveReservation:
    """Keep this value of a reservation of memory."""

    reservation: MemoryReservation


@dataclass(frozen=True, slots=True)
class ForgetReservation:
    """Keep nothing of a reservation any more: it was given back, or its time is over."""

    reservation_id: int


@dataclass(frozen=True, slots=True)
class SaveSubmission:
    """Keep the answer to a submit, so that a repeated call gets the same one."""

    submission: Submission


@dataclass(frozen=True, slots=True)
class SaveAlert:
    """Keep this value of an alert; one that is INACTIVE is forgotten."""

    alert: Alert


Save = (
    SaveTask
    | SaveAttempt
    | SaveOutput
    | SaveNode
    | ForgetNode
    | SaveReservation
    | ForgetReservation
    | SaveSubmission
    | SaveAlert
)


@dataclass(frozen=True, slots=True)
class SendWelcome:
    """Answer a hello on its stream, which is the node's from here on. The attempts in forget are
    to be ended and forgotten."""

    node_id: str
    acknowledged_sequence: int
    forget: tuple[KnownAttempt, ...]
    stream: int
    memory_capacity_bytes: int = 0  # what all attempts of the node together may use


@dataclass(frozen=True, slots=True)
class SendAssignment:
    """Give an attempt to its node."""

    node_id: str
    task: Task


@dataclass(frozen=True, slots=True)
class SendStop:
    """End an attempt: SIGTERM, and SIGKILL after the grace. `only_held`: only if it has not been
    started yet."""

    node_id: str
    task_id: int
    attempt: int
    grace_ns: int
    only_held: bool = False


@dataclass(frozen=True, slots=True)
class SendFreeze:
    """Pause an attempt's processes, or let them go on."""

    node_id: str
    task_id: int
    attempt: int
    paused: bool


@dataclass(frozen=True, slots=True)
class SendAcknowledgement:
    """Let the agent forget its reports up to this one."""

    node_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class SendSampling:
    """Tell an agent how often to sample from now on."""

    node_id: str


Send = SendWelcome | SendAssignment | SendStop | SendFreeze | SendAcknowledgement | SendSampling


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the event being handled, for whoever waits for it."""

    value: object


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell people that an alert fires or has resolved."""

    alert: Alert


@dataclass(frozen=True, slots=True)
class NoteGuardStep:
    """Let those who follow what happens know what a node's guard did; nothing is saved."""

    node_id: str
    step: GuardStep


Command = Save | Send | Reply | Notify | NoteGuardStep
