"""The saves of one turn by kind, each thing with its last value only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from controller.core.commands import (
    ForgetNode,
    ForgetReservation,
    Save,
    SaveAlert,
    SaveAttempt,
    SaveNode,
    SaveOutput,
    SaveReservation,
    SaveSubmission,
    SaveTask,
)
from controller.core.model import (
    Alert,
    AlertKey,
    Attempt,
    MemoryReservation,
    Node,
    OutputStream,
    Submission,
    Task,
)


class Turn:
    """What a commit has to write, by the key under which each thing is kept."""

    __slots__ = (
        "alerts",
        "attempts",
        "nodes",
        "outputs",
        "reservations",
        "submissions",
        "tasks",
    )

    def __init__(self, saves: Iterable[Save]) -> None:
        self.tasks: dict[int, Task] = {}
        self.attempts: dict[tuple[int, int], Attempt] = {}
        self.outputs: dict[tuple[int, int, OutputStream], bytes] = {}
        self.nodes: dict[str, Node | None] = {}  # None is forgotten
        self.reservations: dict[int, MemoryReservation | None] = {}
        self.submissions: dict[str, Submission] = {}
        self.alerts: dict[AlertKey, Alert] = {}
        for save in saves:
            self._add(save)

    def _add(self, save: Save) -> None:
        match save:
            case SaveTask(task):
                self.tasks[task.id] = task
            case SaveAttempt(attempt):
                self.attempts[attempt.task_id, attempt.number] = attempt
            case SaveOutput(task_id, number, stream, data):
                self.outputs[task_id, number, stream] = data
            case SaveNode(node):
                self.nodes[node.id] = node
            case ForgetNode(node_id):
                self.nodes[node_id] = None
            case SaveReservation(reservation):
                self.reservations[reservation.id] = reservation
            case ForgetReservation(reservation_id):
                self.reservations[reservation_id] = None
            case SaveSubmission(submission):
                self.submissions[submission.request_id] = submission
            case SaveAlert(alert):
                self.alerts[alert.key] = alert
            case _:
                assert_never(save)
