"""What running tasks have reserved follows what they use, and never passes the node."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import spec
from support.harness import SMALL, Harness

from controller.core.limits import GIB, MIB
from controller.core.model import MemoryLimits

ELASTIC = replace(SMALL, memory_limits=MemoryLimits.ELASTIC)


def reserved(world: Harness, task_id: int) -> int:
    return world.cluster.ledger.read(world.cluster.reservations[task_id]).reserved_bytes


def known_category(world: Harness, peak: str = "4GiB") -> None:
    """Let the category `work` be known by four runs."""
    for _ in range(4):
        (task_id,) = world.submit(spec("auto"))
        world.started(task_id)
        world.advance("10s")
        world.sample("n1")
        world.ended(task_id, peak=peak)


def test_reserved_rises_with_use_and_stays_between_use_and_peak() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="32GiB")
        known_category(world)
        (task_id,) = world.submit(spec("auto"))
        first = reserved(world, task_id)
        assert 0 < first < 4 * GIB
        world.started(task_id)
        for gib in (1, 2, 3):
            world.advance("1s")
            world.sample("n1", used=f"{gib}GiB", tasks={task_id: f"{gib}GiB"})
            assert gib * GIB <= reserved(world, task_id) <= 5 * GIB


def test_declared_too_much_falls_once_the_category_is_known() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="32GiB")
        known_category(world, peak="1GiB")
        (task_id,) = world.submit(spec("16GiB"))
        assert reserved(world, task_id) < 2 * GIB


def test_exact_and_strict_sizes_stay_as_they_are() -> None:
    for limits, wanted in ((ELASTIC, spec("2GiB", exact=True)), (SMALL, spec("2GiB"))):
        with Harness(limits) as world:
            world.ready("n1", total="32GiB")
            known_category(world)
            (task_id,) = world.submit(wanted)
            world.started(task_id)
            world.advance("1s")
            world.sample("n1", used="1GiB", tasks={task_id: "1GiB"})
            assert reserved(world, task_id) == 2 * GIB
            assert world.task(task_id).memory_limit_bytes == 2 * GIB


def test_rise_that_does_not_fit_takes_what_is_free() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="8GiB")
        first, second = world.submit(spec("2GiB"), spec("2GiB", name="other", exact=True))
        world.started(first)
        world.advance("1s")
        world.sample("n1", used="7.9GiB", tasks={first: "7.9GiB"})
        capacity = int(world.cluster.ledger.capacity_bytes[0])
        assert reserved(world, first) == capacity - 2 * GIB
        assert int(world.cluster.ledger.reserved_bytes[0]) == capacity
        assert reserved(world, second) == 2 * GIB


def test_small_moves_are_left_for_later() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="32GiB")
        (task_id,) = world.submit(spec("4GiB"))
        world.started(task_id)
        world.advance("1s")
        world.sample("n1", used="3GiB", tasks={task_id: "3GiB"})
        before = reserved(world, task_id)
        world.sample("n1", used="3GiB", tasks={task_id: 3 * GIB + 10 * MIB})
        assert reserved(world, task_id) == before


def test_restart_reserves_what_fits_of_what_is_saved() -> None:
    with Harness(replace(ELASTIC, overcommit_share=0.5)) as world:
        world.ready("n1", total="16GiB")
        known_category(world, peak="4GiB")
        ids: list[int] = []
        for _ in range(6):  # each begins small, and the ones before have shrunk by then
            ids += world.submit(spec("auto"))
            world.started(ids[-1])
            world.advance("1s")
            world.sample("n1", used=0, tasks=dict.fromkeys(ids, "64MiB"))
        world.restart()
        ledger = world.cluster.ledger
        assert int(ledger.reserved_bytes[0]) <= int(ledger.capacity_bytes[0])
        world.cluster.check()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9_000)), min_size=1, max_size=12))
def test_sum_of_reserved_never_passes_the_node(looks: list[tuple[int, int]]) -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="8GiB")
        ids = world.submit(*[spec("1GiB", name=f"c{n}") for n in range(4)])
        for task_id in ids:
            world.started(task_id)
        for place, mib in looks:
            world.advance("1s")
            world.sample("n1", used="4GiB", tasks={ids[place]: mib * MIB})
            world.cluster.check()
