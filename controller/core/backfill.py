"""When a node that is kept free for a waiting task will be free for it, by the time limits of what
runs there. What ends before that may run there meanwhile: it delays nobody.

Without enough time limits nothing is known, and the node stays kept free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from controller.core.model import Task
from controller.core.queue import Shape


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has left for more tasks."""

    memory_bytes: int
    cpus: float
    gpus: int


def free_at_ns(wanted: Shape, room: Room, tasks: Iterable[Task], grace_ns: int) -> int | None:
    """Return the instant by which a shape fits beside what runs on past it; None if that is open.

    `tasks` are those placed on the node; one ends `grace_ns` after its time limit at the latest,
    or before. Cost: a sort of the tasks.
    """
    memory_bytes, cpus, gpus = room.memory_bytes, room.cpus, room.gpus
    ends = sorted(
        (_end_ns(task) + grace_ns, task.id, task)
        for task in tasks
        if task.spec.time_limit_ns is not None
    )
    at_ns = 0
    for end_ns, _, task in ends:
        if _fits(wanted, memory_bytes, cpus, gpus):
            break
        at_ns = end_ns
        memory_bytes += task.memory_size_bytes
        cpus += task.spec.cpus
        gpus += task.spec.gpus
    return at_ns if _fits(wanted, memory_bytes, cpus, gpus) else None


def _end_ns(task: Task) -> int:
    assert task.spec.time_limit_ns is not None
    return (task.started_at_ns or task.assigned_at_ns) + task.spec.time_limit_ns


def _fits(wanted: Shape, memory_bytes: int, cpus: float, gpus: int) -> bool:
    return (
        memory_bytes >= wanted.memory_request_bytes and cpus >= wanted.cpus and gpus >= wanted.gpus
    )
