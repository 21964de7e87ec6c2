"""Who goes where: feasible, score, choose, and why not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import size, task

from controller.core.model import Task
from controller.core.placement import (
    Offers,
    Placements,
    explain_shape,
    feasible,
    node_to_keep,
    place,
)
from controller.core.queue import PendingQueue, Shape, shape_of

GIB = 1 << 30


def offers(
    *promises: str | int,
    cpus: float = 8.0,
    machines: tuple[int, ...] = (),
    shut: tuple[int, ...] = (),
    blocked: tuple[int, ...] = (),
) -> Offers:
    """Return nodes with these promises; each has twice as much when it is empty."""
    count = len(promises)
    promise = np.array([size(text) for text in promises], dtype=np.int64)
    mask = np.zeros(count, dtype=np.bool_)
    mask[list(blocked)] = True
    machine_of = machines or tuple(range(count))
    return Offers(
        open=np.array([slot not in shut for slot in range(count)], dtype=np.bool_),
        blocked=mask,
        promise=promise,
        own=promise.copy(),
        machine=promise.copy(),
        capacity=promise * 2,
        when_empty=promise * 2,
        cpus=np.full(count, cpus),
        cpus_free=np.full(count, cpus),
        members=lambda slot: frozenset(
            other for other in range(count) if machine_of[other] == machine_of[slot]
        ),
        machines_shared=len(set(machine_of)) < count,
    )


def placed(
    found: Offers, *tasks: Task, kept: dict[int, int] | None = None, room: int = 1_000
) -> Placements:
    queue = PendingQueue()
    for waiting in tasks:
        queue.add(waiting)
    return place(queue, found, kept or {}, room)


def where(result: Placements) -> dict[int, int]:
    return {placement.task_id: placement.slot for placement in result.placed}


def code(result: Placements, waiting: Task) -> str:
    refusal = result.refused.get(shape_of(waiting))
    return refusal.code if refusal is not None else "placed"


def test_node_with_the_most_memory_left_wins_and_ties_go_to_the_lower_slot() -> None:
    assert where(placed(offers("2GiB", "4GiB", "4GiB"), task(1))) == {1: 1}
    tasks = [task(i) for i in range(1, 6)]
    assert where(placed(offers("2GiB", "4GiB", "4GiB"), *tasks)) == {1: 1, 2: 2, 3: 1, 4: 2, 5: 0}


def test_nothing_is_promised_twice_in_one_round() -> None:
    result = placed(offers("3GiB", "1GiB"), *[task(i) for i in range(1, 9)])
    assert len(result.placed) == 4
    assert code(result, task(1)) == "NO_NODE_WITH_MEMORY"


def test_placing_on_a_node_takes_from_its_neighbours_on_the_machine() -> None:
    found = offers("4GiB", "4GiB", "1GiB", machines=(0, 0, 1))
    assert where(placed(found, task(1, "3GiB"), task(2, "3GiB"))) == {1: 0}
    assert found.promise.tolist() == [GIB, GIB, GIB]


def test_later_task_that_fits_overtakes_one_that_does_not() -> None:
    result = placed(offers("4GiB"), task(1, "5GiB"), task(2, "1GiB"), task(3, "6GiB"))
    assert where(result) == {2: 0}
    assert result.overtaken == {1}


def test_kept_node_is_closed_to_what_comes_later_and_open_to_what_comes_before() -> None:
    first, big, later = task(1, priority=1), task(2, "3GiB"), task(3)
    result = placed(offers("2GiB"), first, big, later, kept={2: 0})
    assert where(result) == {1: 0}
    assert code(result, later) == "NODE_KEPT_FOR_ANOTHER"


def test_kept_node_is_closed_also_when_another_task_of_the_shape_stands_before_its_owner() -> None:
    owner, before, later = task(1, "3GiB"), task(2, "3GiB", priority=1), task(3)
    result = placed(offers("2GiB"), owner, before, later, kept={1: 0})
    assert where(result) == {}
    assert code(result, later) == "NODE_KEPT_FOR_ANOTHER"


def test_owner_of_a_kept_node_gets_it_when_it_fits() -> None:
    result = placed(offers("3GiB"), task(1, "3GiB"), kept={1: 0})
    assert where(result) == {1: 0}


def test_several_of_a_shape_that_was_begun_stay_off_a_node_kept_meanwhile() -> None:
    first = [task(1, priority=1), task(2, priority=1)]
    big, later = task(3, "9GiB"), [task(4), task(5), task(6)]
    result = placed(offers("4GiB", "3GiB"), *first, big, *later, kept={3: 0})
    assert where(result) == {1: 0, 2: 0, 4: 1, 5: 1, 6: 1}


def test_bound_of_the_round_is_kept_and_named() -> None:
    result = placed(offers("8GiB"), *[task(i) for i in range(1, 5)], room=2)
    assert where(result) == {1: 0, 2: 0}
    assert code(result, task(3)) == "RUNNING_LIMIT"


@pytest.mark.parametrize(
    ("found", "mem", "cpus", "expected"),
    [
        (offers("1GiB", shut=(0,)), "1GiB", 1.0, "NO_NODE_READY"),
        (offers(), "1GiB", 1.0, "NO_NODE_READY"),
        (offers("1GiB", "2GiB"), "5GiB", 1.0, "NO_NODE_LARGE_ENOUGH"),
        (offers("1GiB"), "1GiB", 9.0, "NO_NODE_WITH_THAT_MANY_CPUS"),
        (offers("1GiB", blocked=(0,)), "1GiB", 1.0, "BLOCKED_BY_RULE"),
        (offers("1GiB", "2GiB"), "3GiB", 1.0, "NO_NODE_WITH_MEMORY"),
    ],
)
def test_refusal_names_the_check_that_left_no_node(
    found: Offers, mem: str, cpus: float, expected: str
) -> None:
    waiting = task(1, mem, cpus=cpus)
    result = placed(found, waiting)
    assert code(result, waiting) == expected
    if expected != "NO_NODE_READY":
        refusal = explain_shape(found, shape_of(waiting), np.zeros(len(found.open), dtype=np.bool_))
        assert refusal.best_promise_bytes == int(found.promise.max())


def test_refusal_for_want_of_free_cpus() -> None:
    found = offers("8GiB", cpus=2.0)
    result = placed(found, task(1, cpus=2.0), task(2, "2GiB", cpus=1.5))
    assert code(result, task(2, "2GiB", cpus=1.5)) == "NO_NODE_WITH_CPUS"


def test_shape_that_was_placed_or_does_not_wait_has_no_refusal() -> None:
    result = placed(offers("8GiB"), task(1))
    assert result.refused.get(shape_of(task(1))) is None
    assert result.refused.get(Shape(1, 1.0)) is None


def test_node_to_keep_is_the_one_that_will_soonest_fit() -> None:
    none = np.zeros(3, dtype=np.bool_)
    found = offers("2GiB", "3GiB", "1GiB")
    shape = Shape(4 * GIB, 1.0)
    assert node_to_keep(found, shape, none) == 1
    assert node_to_keep(found, shape, np.array([False, True, False])) == 0
    assert node_to_keep(found, Shape(7 * GIB, 1.0), none) is None
    assert node_to_keep(found, Shape(GIB, 9.0), none) is None
    assert node_to_keep(offers("2GiB", "3GiB", blocked=(1,)), shape, none[:2]) == 0


def test_node_whose_memory_others_use_for_good_is_not_kept() -> None:
    found = offers("1GiB")
    found.when_empty[0] = GIB  # of a capacity of 2 GiB, the rest is foreign
    assert node_to_keep(found, Shape(2 * GIB, 1.0), np.zeros(1, dtype=np.bool_)) is None


waiting_tasks = st.lists(
    st.tuples(st.integers(1, 16), st.sampled_from([0.5, 1.0, 3.0, 9.0]), st.integers(-1, 1)),
    max_size=30,
)


@given(
    promises=st.lists(st.integers(0, 16), min_size=1, max_size=6),
    wanted=waiting_tasks,
    machines=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    room=st.integers(0, 12),
)
def test_round_places_greedily_in_order_and_never_too_much(
    promises: list[int], wanted: list[tuple[int, float, int]], machines: list[int], room: int
) -> None:
    """Against the same in plain loops over tasks and nodes."""
    tasks = [
        task(i + 1, quarters * GIB // 4, cpus=cpus, priority=priority)
        for i, (quarters, cpus, priority) in enumerate(wanted)
    ]
    machine_of = tuple(machines[: len(promises)])
    sizes = [quarters * GIB // 4 for quarters in promises]
    found, plain = offers(*sizes, machines=machine_of), offers(*sizes, machines=machine_of)
    result = placed(found, *tasks, room=room)
    expected: dict[int, int] = {}
    nobody = np.zeros(len(promises), dtype=np.bool_)
    for waiting in sorted(tasks, key=lambda t: (-t.spec.priority, t.id)):
        shape = shape_of(waiting)
        fits = np.flatnonzero(feasible(plain, shape, nobody)).tolist()
        if fits and len(expected) < room:
            best = max(fits, key=lambda slot: (int(plain.promise[slot]), -slot))
            plain.take(best, shape)
            expected[waiting.id] = best
    assert where(result) == expected
    assert found.promise.tolist() == plain.promise.tolist()
    assert (found.cpus_free >= 0).all()
    for waiting in tasks:
        refused = result.refused.get(shape_of(waiting)) is not None
        assert refused or waiting.id in expected
