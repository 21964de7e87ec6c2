"""The waiting tasks come out by priority and id, whatever came in and went out before."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from support.builders import task

from controller.core.model import Task
from controller.core.queue import PendingQueue, Shape, shape_of


def order(queue: PendingQueue, skip: frozenset[Shape] = frozenset()) -> list[int]:
    """Return the ids of one walk; shapes in skip are left out after their first task."""
    walk, found = queue.in_order(), []
    while (entry := walk.next()) is not None:
        found.append(entry[0])
        if entry[1].shape in skip:
            walk.skip_line()
    return found


def queue_of(*tasks: Task) -> PendingQueue:
    queue = PendingQueue()
    for waiting in tasks:
        queue.add(waiting)
    return queue


def test_higher_priority_comes_first_then_the_lower_id() -> None:
    queue = queue_of(task(4), task(3, priority=-1), task(2, "2GiB", priority=1), task(1))
    assert order(queue) == [2, 1, 4, 3]


def test_skipped_shape_gives_nothing_more_in_that_walk() -> None:
    queue = queue_of(task(1), task(2, "2GiB"), task(3), task(4, "2GiB"))
    assert order(queue, frozenset({shape_of(task(1))})) == [1, 2, 4]
    assert order(queue) == [1, 2, 3, 4]


def test_walk_leaves_the_queue_as_it_is() -> None:
    queue = queue_of(task(1), task(2))
    assert order(queue) == order(queue) == [1, 2]
    assert len(queue) == 2


def test_task_that_waits_again_comes_out_once() -> None:
    first, second = task(1), task(2)
    queue = queue_of(first, second)
    queue.remove(2)
    queue.add(second)
    assert order(queue) == [1, 2]


def test_removing_what_is_not_there_changes_nothing() -> None:
    queue = queue_of(task(1))
    queue.remove(7)
    assert order(queue) == [1]


def test_entries_do_not_outgrow_the_tasks_that_are_there() -> None:
    queue = queue_of(*[task(i) for i in range(1, 1_001)])
    for i in range(2, 1_001):
        queue.remove(i)
    (line,) = queue._lines.values()
    assert len(line.entries) <= 64
    assert order(queue) == [1]


@dataclass(slots=True)
class Model:
    """The same in the plainest way."""

    tasks: dict[int, Task] = field(default_factory=dict)

    def order(self, skip: frozenset[Shape]) -> list[int]:
        found, seen = [], set()
        for waiting in sorted(self.tasks.values(), key=lambda t: (-t.spec.priority, t.id)):
            shape = shape_of(waiting)
            if shape in seen and shape in skip:
                continue
            seen.add(shape)
            found.append(waiting.id)
        return found


WAITING = [
    task(i, f"{1 + i % 3}GiB", cpus=1.0 + i % 2, priority=i * 7 % 5 - 2) for i in range(1, 25)
]


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(WAITING)), max_size=120),
    st.frozensets(st.sampled_from([shape_of(waiting) for waiting in WAITING])),
)
def test_order_is_that_of_a_sorted_list(
    changes: list[tuple[bool, Task]], skip: frozenset[Shape]
) -> None:
    queue, model = PendingQueue(), Model()
    for add, waiting in changes:
        if not add:
            queue.remove(waiting.id)
            model.tasks.pop(waiting.id, None)
        elif waiting.id not in queue:
            queue.add(waiting)
            model.tasks[waiting.id] = waiting
        assert order(queue, skip) == model.order(skip)
        assert len(queue) == len(model.tasks)
