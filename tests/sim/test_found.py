"""What the simulation found, reduced to the few steps that show it."""

from __future__ import annotations

from controller.core.model import Task, TaskSpec, TaskState
from controller.core.queue import PendingQueue


def waiting_task(task_id: int) -> Task:
    spec = TaskSpec(("true",), "true", "true", 1 << 20, None)
    return Task(task_id, spec, "user", TaskState.PENDING, 0)


def ids_in_order(queue: PendingQueue) -> list[int]:
    ordered, ids = queue.in_order(), []
    while (entry := ordered.next()) is not None:
        ids.append(entry[0])
    return ids


def test_task_that_waits_again_is_given_out_once() -> None:
    queue = PendingQueue()
    for task_id in (1, 2, 3):
        queue.add(waiting_task(task_id))
    queue.remove(3)  # its entry still stands behind the others
    queue.add(waiting_task(3))
    assert ids_in_order(queue) == [1, 2, 3]
    queue.remove(1)
    queue.remove(3)
    queue.add(waiting_task(3))
    queue.remove(2)
    assert ids_in_order(queue) == [3]
