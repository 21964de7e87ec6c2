"""A store in memory that passes the contract of all stores, for tests of what stands on one."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
from controller.core.limits import DEFAULT_LIMITS, Limits
from controller.core.model import (
    Alert,
    AlertKey,
    AlertState,
    Attempt,
    MemoryReservation,
    Node,
    OutputStream,
    Submission,
    Task,
    TaskState,
)
from controller.store.base import ATTEMPTS_READ_MAX, Stored, StoreError, TaskFilter


@dataclass(slots=True)
class MemoryDisk:
    """What outlives a MemoryStore: give it to the next one to play a restart."""

    tasks: dict[int, Task] = field(default_factory=dict)
    attempts: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    outputs: dict[tuple[int, int, OutputStream], bytes] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    submissions: dict[str, Submission] = field(default_factory=dict)
    alerts: dict[AlertKey, Alert] = field(default_factory=dict)
    next_task_id: int = 1
    reservations: dict[int, MemoryReservation] = field(default_factory=dict)
    next_reservation_id: int = 1
    cluster_id: str = "00000000000000c1"


class MemoryStore:
    """A Store whose commits are as durable as its disk.

    `failures` are raised by the next commits, one each, which then keep nothing. While `gate` is
    not set, a commit waits for it before it keeps anything.
    """

    def __init__(self, disk: MemoryDisk | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self.disk = MemoryDisk() if disk is None else disk
        self.failures: list[StoreError] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.commit_count = 0
        self._limits = limits
        self._closed = False

    @classmethod
    def from_backup(cls, path: Path) -> MemoryStore:
        """Return a store of what backup() wrote."""
        disk = pickle.loads(path.read_bytes())
        assert isinstance(disk, MemoryDisk)
        return cls(disk)

    async def load(self) -> Stored:
        self._check_open()
        disk = self.disk
        submissions = sorted(disk.submissions.values(), key=lambda value: value.first_task_id)
        kept = len(submissions) - self._limits.submissions_kept
        return Stored(
            tasks=tuple(task for _, task in sorted(disk.tasks.items()) if not task.ended),
            nodes=tuple(node for _, node in sorted(disk.nodes.items())),
            alerts=tuple(alert for _, alert in sorted(disk.alerts.items())),
            submissions=tuple(submissions[max(0, kept) :]),
            next_task_id=disk.next_task_id,
            reservations=tuple(value for _, value in sorted(disk.reservations.items())),
            next_reservation_id=disk.next_reservation_id,
            cluster_id=disk.cluster_id,
            attempts=self._latest_attempts(),
        )

    def _latest_attempts(self) -> tuple[Attempt, ...]:
        def order(one: Attempt) -> tuple[int, int, int]:
            return one.ended_at_ns, one.task_id, one.number

        by_category: dict[str, list[Attempt]] = {}
        for one in sorted(self.disk.attempts.values(), key=order):
            if one.category:
                by_category.setdefault(one.category, []).append(one)
        latest = sorted(
            by_category.values(), key=lambda ones: (ones[-1].ended_at_ns, ones[-1].category)
        )
        found = [
            one
            for ones in latest[-self._limits.categories_max :]
            for one in ones[-self._limits.category_attempts_max :]
        ]
        return tuple(sorted(found, key=order))

    async def commit(self, saves: Sequence[Save]) -> None:
        self._check_open()
        if not saves:
            return
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self._check_references(saves)
        for save in saves:
            self._keep(save)
        self.commit_count += 1

    async def task(self, task_id: int) -> Task | None:
        self._check_open()
        return self.disk.tasks.get(task_id)

    async def tasks(self, *, before_id: int | None, limit: int, wanted: TaskFilter) -> list[Task]:
        self._check_open()
        found = [
            task
            for task_id, task in sorted(self.disk.tasks.items(), reverse=True)
            if (before_id is None or task_id < before_id) and _passes(task, wanted)
        ]
        return found[:limit]

    async def array_task_ids(self, array_id: int, index: int | None = None) -> list[int]:
        self._check_open()
        return [
            task_id
            for task_id, task in sorted(self.disk.tasks.items())
            if task.array_id == array_id and index in (None, task.array_index)
        ]

    async def ended_states(self, thing_ids: Collection[int]) -> dict[int, frozenset[TaskState]]:
        self._check_open()
        return {
            thing_id: frozenset(
                task.state
                for task in self.disk.tasks.values()
                if task.ended and thing_id in (task.id, task.array_id)
            )
            for thing_id in thing_ids
        }

    async def tasks_by_id(self, task_ids: Collection[int]) -> dict[int, Task]:
        self._check_open()
        tasks = self.disk.tasks
        return {task_id: tasks[task_id] for task_id in task_ids if task_id in tasks}

    async def task_ids_known(self, task_ids: Collection[int]) -> set[int]:
        self._check_open()
        return set(task_ids) & self.disk.tasks.keys()

    async def attempts(self, task_id: int) -> list[Attempt]:
        self._check_open()
        found = [value for key, value in sorted(self.disk.attempts.items()) if key[0] == task_id]
        return found[-ATTEMPTS_READ_MAX:]

    async def output(self, task_id: int, attempt: int, stream: OutputStream) -> bytes | None:
        self._check_open()
        return self.disk.outputs.get((task_id, attempt, stream))

    async def prune(self, ended_before_ns: int, tasks_max: int) -> int:
        self._check_open()
        disk = self.disk
        ended = sorted(
            (task for task in disk.tasks.values() if task.ended),
            key=lambda task: (task.ended_at_ns, task.id),
        )
        beyond = max(0, len(ended) - tasks_max)
        forgotten = {
            task.id
            for place, task in enumerate(ended)
            if place < beyond or task.ended_at_ns < ended_before_ns
        }
        for task_id in forgotten:
            del disk.tasks[task_id]
        disk.attempts = {k: v for k, v in disk.attempts.items() if k[0] not in forgotten}
        disk.outputs = {k: v for k, v in disk.outputs.items() if k[0] not in forgotten}
        newest = sorted(disk.submissions.values(), key=lambda value: -value.first_task_id)
        kept = newest[: self._limits.submissions_kept]
        disk.submissions = {value.request_id: value for value in kept}
        return len(forgotten)

    async def backup(self, path: Path) -> None:
        self._check_open()
        if path.exists():
            raise StoreError(f"{path} cannot be made: it exists")
        path.write_bytes(pickle.dumps(self.disk))

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    def _check_references(self, saves: Iterable[Save]) -> None:
        known = {save.task.id for save in saves if isinstance(save, SaveTask)}
        for save in saves:
            match save:
                case SaveAttempt(Attempt(task_id=task_id)) | SaveOutput(task_id=task_id):
                    if task_id not in known and task_id not in self.disk.tasks:
                        raise StoreError(f"task {task_id} was never saved")

    def _keep(self, save: Save) -> None:
        disk = self.disk
        match save:
            case SaveTask(task):
                first = disk.tasks.get(task.id, task)
                disk.tasks[task.id] = replace(
                    task,
                    spec=first.spec,
                    user=first.user,
                    submitted_at_ns=first.submitted_at_ns,
                )
                disk.next_task_id = max(disk.next_task_id, task.id + 1)
            case SaveAttempt(attempt):
                disk.attempts[attempt.task_id, attempt.number] = attempt
            case SaveOutput(task_id, number, stream, data):
                disk.outputs[task_id, number, stream] = data
            case SaveNode(node):
                disk.nodes[node.id] = node
            case ForgetNode(node_id):
                self.disk.nodes.pop(node_id, None)
            case SaveReservation(reservation):
                self.disk.reservations[reservation.id] = reservation
                following = max(self.disk.next_reservation_id, reservation.id + 1)
                self.disk.next_reservation_id = following
            case ForgetReservation(reservation_id):
                self.disk.reservations.pop(reservation_id, None)
            case SaveSubmission(submission):
                disk.submissions[submission.request_id] = submission
            case SaveAlert(alert):
                if alert.state is AlertState.INACTIVE:
                    disk.alerts.pop(alert.key, None)
                else:
                    disk.alerts[alert.key] = alert


def _passes(task: Task, wanted: TaskFilter) -> bool:
    return (
        (not wanted.states or task.state in wanted.states)
        and wanted.name in ("", task.spec.name)
        and wanted.user in ("", task.user)
        and task.submitted_at_ns >= wanted.since_ns
        and wanted.array_id in (0, task.array_id)
    )
