"""The whole state: its memory lies in the pool, its check finds what is wrong."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest
from mass.v1 import agent_pb2
from support.builders import rule, spec
from support.harness import SMALL, Harness

from controller import wire
from controller.core.model import OutputStream, TaskState
from controller.views import pool_view

WINDOWED = (rule("Long", "avg(mem_percent, '5m') > 99 or max(load1, '60m') > 1000"),)


def test_series_ledger_and_tails_account_for_the_pool() -> None:
    limits = replace(SMALL, nodes_max=200, tasks_running_max=400)
    with Harness(limits, WINDOWED, 64 << 20) as world:
        for number in range(150):
            world.join(f"n{number}")
            world.sample(f"n{number}", cycle=False)
        world.submit(*[spec("1GiB")] * 300)
        assert len(world.cluster.reservations) == 300
        for task_id in range(1, 301):
            world.cluster.append_tail(task_id, 1, OutputStream.STDOUT, b"x" * 5_000)
        pool = pool_view(world.cluster)
        named = pool.series_bytes + pool.ledger_bytes + pool.tails_bytes
        assert pool.series_bytes > 0
        assert pool.ledger_bytes > 0
        assert pool.tails_bytes >= 300 * 5_000
        assert 0.95 * pool.used_bytes <= named <= pool.used_bytes


def test_everything_goes_back_to_the_pool_at_the_end() -> None:
    world = Harness(rules=WINDOWED)
    world.ready("n1")
    world.submit(spec())
    world.cluster.append_tail(1, 1, OutputStream.STDERR, b"x")
    world.cluster.close()
    assert world.pool.statistics().used_bytes == 0


def test_samples_leave_no_python_object_behind() -> None:
    """100,000 samples of 20 nodes: what they allocate outside the pool is given back."""
    limits = replace(SMALL, nodes_max=20)
    with Harness(limits, WINDOWED) as world:
        records = []
        for number in range(20):
            world.ready(f"n{number}")
            records.append(world.cluster.nodes[f"n{number}"])
        sample = agent_pb2.Sample(
            memory_total_bytes=8 << 30, memory_available_bytes=5 << 30, load1=0.5
        )
        batch = agent_pb2.SampleBatch(samples=[sample])

        def write(count: int) -> None:
            for turn in range(count // len(records)):
                world.now_ns += 1_000_000
                batch.samples[0].memory_available_bytes = (turn % 1000) << 20
                for record in records:
                    wire.write_samples(world.cluster, record, batch, world.now_ns)
                if turn % 500 == 0:
                    world.scheduler.run_cycle(world.now_ns)

        write(20_000)  # everything that is made once is made now
        gc.collect()
        tracemalloc.start()
        write(2_000)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        write(20_000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        count = len(gc.get_objects())
        write(58_000)
        gc.collect()
        assert after - before < 4_096  # less than a fifth of a byte for each sample
        assert abs(len(gc.get_objects()) - count) < 50


def _forget_reservation(world: Harness) -> None:
    world.cluster.reservations.pop(1)


def _leak_reservation(world: Harness) -> None:
    world.cluster.ledger.reserve(0, 1 << 20, 77, 1)


def _lose_from_queue(world: Harness) -> None:
    world.cluster.queue.remove(2)


def _lose_from_node(world: Harness) -> None:
    world.cluster.nodes["n1"].task_ids.clear()


def _change_state(world: Harness) -> None:
    world.cluster.tasks[2] = replace(world.cluster.tasks[2], state=TaskState.RUNNING)


def _miscount_cpus(world: Harness) -> None:
    world.cluster.table.cpus_used[0] += 1


def _keep_for_nobody(world: Harness) -> None:
    world.cluster.kept_slots[1] = 0


def _give_an_id_twice(world: Harness) -> None:
    world.cluster.next_task_id = 2


def _raise_capacity(world: Harness) -> None:
    world.cluster.ledger.set_node(0, 1 << 40)


@pytest.mark.parametrize(
    "damage",
    [
        _forget_reservation,
        _leak_reservation,
        _lose_from_queue,
        _lose_from_node,
        _change_state,
        _miscount_cpus,
        _keep_for_nobody,
        _give_an_id_twice,
        _raise_capacity,
    ],
)
def test_check_finds_damage(damage: Callable[[Harness], None]) -> None:
    world = Harness()
    world.ready("n1", capacity="2GiB")
    world.submit(spec(), spec("4GiB"))
    world.check()
    damage(world)
    with pytest.raises(AssertionError):
        world.cluster.check()
    world.close()


def test_histories_and_tails_come_back_step_by_step_when_there_is_room() -> None:
    with Harness(rules=WINDOWED) as world:
        world.ready("n1")
        cluster = world.cluster
        cluster.history.series.shorten()
        cluster.tails.stop()
        seen = []
        for _ in range(3):
            seen.append((cluster.tails.is_stopped, cluster.history.series.level))
            cluster.recover_room()
        assert seen == [(True, 1), (False, 1), (False, 0)]


def test_nothing_comes_back_while_the_pool_is_more_than_half_full() -> None:
    with Harness(rules=WINDOWED) as world:
        world.ready("n1")
        world.cluster.tails.stop()
        hog = world.pool.allocate(world.pool.statistics().capacity_bytes // 2)
        world.cluster.recover_room()
        assert world.cluster.tails.is_stopped
        world.pool.free(hog)
        world.cluster.recover_room()
        assert not world.cluster.tails.is_stopped


def test_restore_rebuilds_reservations_members_and_queue() -> None:
    with Harness() as world:
        world.ready("n1")
        world.ready("n2")
        world.submit(spec("2GiB", cpus=2.0), spec("3GiB"), spec("50GiB"))
        world.started(1)
        before = world.cluster.ledger.reserved_bytes[:2].tolist()
        cpus = world.cluster.table.cpus_used[:2].tolist()
        world.restart()
        world.check()
        assert world.cluster.ledger.reserved_bytes[:2].tolist() == before
        assert world.cluster.table.cpus_used[:2].tolist() == cpus
        assert len(world.cluster.queue) == 1
        assert world.cluster.next_task_id == 4
