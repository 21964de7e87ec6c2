"""What the simulation found, reduced to the few steps that show it."""

from __future__ import annotations

from support.builders import spec
from support.harness import Harness

from controller.core.model import KnownAttempt, Task, TaskSpec, TaskState
from controller.core.queue import PendingQueue


def waiting_task(task_id: int) -> Task:
    wanted = TaskSpec(("true",), "true", "true", 1 << 20, None)
    return Task(task_id, wanted, "user", TaskState.PENDING, 0)


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


def test_hello_of_a_dead_stream_that_comes_late_loses_no_attempt() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        world.started(1)
        # Said before the attempt was given, kept by the network, and no welcome will reach it.
        world.join("n1", attempts=())
        assert world.states(1) == ["RUNNING"]
        world.join("n1", attempts=(KnownAttempt(1, 1, ended=False),))
        world.sample("n1")
        assert world.states(1) == ["RUNNING"]
