"""When a kept node will be free, and who may use it until then."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from support.builders import task

from controller.core.backfill import Room, free_at_ns
from controller.core.model import Task
from controller.core.queue import Shape

GIB = 1 << 30


def running(task_id: int, limit_ns: int | None, since_ns: int = 0, gib: int = 1) -> Task:
    made = task(task_id)
    spec = replace(made.spec, memory_request_bytes=gib * GIB, cpus=1.0, time_limit_ns=limit_ns)
    return replace(
        made,
        spec=spec,
        memory_size_bytes=gib * GIB,
        assigned_at_ns=since_ns,
        started_at_ns=since_ns,
    )


def free(gib: int, *tasks: Task, cpus: float = 1.0, left: float = 8.0) -> int | None:
    return free_at_ns(Shape(gib * GIB, cpus), Room(GIB, left, 0), tasks, 5)


def test_node_is_free_when_enough_has_reached_its_limit() -> None:
    tasks = [running(1, 100), running(2, 50, since_ns=20), running(3, None)]
    assert free(1, *tasks) == 0
    assert free(2, *tasks) == 75
    assert free(3, *tasks) == 105
    assert free(4, *tasks) is None
    assert free(1, *tasks, cpus=2.0, left=0.0) == 105
    assert free(1, *tasks, cpus=3.0, left=0.0) is None
    assert free_at_ns(Shape(GIB, 1.0, gpus=1), Room(GIB, 8.0, 0), tasks, 5) is None


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100), st.integers(1, 4)), max_size=8),
    st.integers(1, 12),
)
def test_a_task_that_ends_before_does_not_move_the_instant(
    given_tasks: list[tuple[int, int, int]], gib: int
) -> None:
    tasks = [running(i, limit, since, size) for i, (limit, since, size) in enumerate(given_tasks)]
    before = free_at_ns(Shape(gib * GIB, 1.0), Room(2 * GIB, 8.0, 0), tasks, 5)
    if before is None or before < 6:
        return
    more = [*tasks, running(99, before - 5)]
    after = free_at_ns(Shape(gib * GIB, 1.0), Room(GIB, 7.0, 0), more, 5)
    assert after is not None
    assert after <= before
