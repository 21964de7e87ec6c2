"""Sizes follow what is learned, once for each change of it; causes decide what is learned."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import size, spec, task
from support.harness import SMALL, Harness

from controller.core import explain
from controller.core.learning import Learning, sizing_ask
from controller.core.limits import GIB, MIB, SECOND_NS, Limits
from controller.core.model import MemoryLimits, OomCause, TaskState
from controller.core.needs import INPUT_BITS, Need, need_of, rounded_up
from controller.core.sizing import Basis

ELASTIC = replace(SMALL, memory_limits=MemoryLimits.ELASTIC)
AUTO = spec("auto", name="train")


def run(world: Harness, *, peak: str, seconds: int = 10, **fields: object) -> int:
    """Submit a task of the category `train`, let it run and end well; return its id."""
    (task_id,) = world.submit(spec(**{"mem": "auto", "name": "train", **fields}))  # type: ignore[arg-type]
    world.started(task_id)
    world.advance(f"{seconds}s")
    world.sample("n1")
    world.ended(task_id, peak=peak)
    return task_id


@pytest.mark.parametrize("limits", [SMALL, ELASTIC], ids=["strict", "elastic"])
def test_fifth_run_without_a_size_is_sized_within_30_percent_of_its_need(limits: object) -> None:
    need_bytes = 3 * GIB
    with Harness(limits) as world:  # type: ignore[arg-type]
        world.ready("n1", total="32GiB")
        for _ in range(4):
            run(world, peak="3GiB")
        (fifth,) = world.submit(AUTO)
        placed = world.task(fifth)
        expected = placed.memory_expected_peak_bytes
        assert abs(expected - need_bytes) <= 0.3 * need_bytes
        if limits is SMALL:
            assert abs(placed.memory_size_bytes - need_bytes) <= 0.3 * need_bytes
            assert placed.memory_limit_bytes == placed.memory_size_bytes
        assert "4 runs" in placed.memory_reason


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("train", r"65 % of its expected peak of (\S+) MiB is set aside at first: (\S+) MiB$"),
        ("other", r"; (\S+) MiB is expected to cost least; 65 % of that .*: (\S+) MiB$"),
    ],
    ids=["category", "borrowed"],
)
def test_what_is_set_aside_first_is_the_sum_of_the_reason(name: str, told: str) -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="32GiB")
        for peak in ("300MiB", "310MiB", "305MiB"):
            run(world, peak=peak)
        (task_id,) = world.submit(spec("auto", name=name))
        placed = world.task(task_id)
        found = re.search(told, placed.memory_reason)
        assert found is not None, placed.memory_reason
        assert float(found[1]) * 0.65 == pytest.approx(float(found[2]), abs=0.1)
        assert float(found[2]) == round(placed.memory_size_bytes / MIB, 1)


def test_until_a_run_succeeded_the_guard_goes_by_what_is_believed() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="32GiB")
        bound = replace(spec("3GiB", name="b"), memory_limit_bytes=2 * GIB)
        ids = world.submit(spec("3GiB", name="a"), bound, spec("auto", name="c"))
        expected = [world.task(task_id).memory_expected_peak_bytes for task_id in ids]
        assert expected == [3 * GIB, 2 * GIB, GIB]


def test_a_pilot_tells_the_guard_what_its_siblings_may_need() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="32GiB")
        (pilot,) = world.submit(AUTO)
        world.started(pilot)
        world.advance("5s")
        world.sample("n1", used="6GiB", tasks={pilot: "6GiB"})
        (sibling,) = world.submit(AUTO)
        assert world.task(sibling).memory_expected_peak_bytes > 6 * GIB


def test_what_bounds_a_size_is_told_with_its_number() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="4GiB")
        run(world, peak="3.7GiB")
        large, small = world.submit(AUTO, replace(AUTO, memory_limit_bytes=90 * MIB))
        assert world.task(large).memory_reason.endswith(
            ", but no node could lately give more than 3.8 GiB;"
            " 65 % of its expected peak of 3.8 GiB is set aside at first: 2.5 GiB"
        )
        assert world.task(small).memory_reason.endswith("; no more than its own limit of 90 MiB")
        assert world.task(small).memory_size_bytes == 90 * MIB


def test_burst_of_a_known_category_is_sized_once_for_each_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Harness(replace(SMALL, tasks_open_max=5_000, tasks_running_max=4)) as world:
        world.ready("n1", total="32GiB")
        run(world, peak="1GiB")
        sizing, asked = world.cluster.learning.sizing, []
        real = sizing.size

        def counted(*arguments: object) -> object:
            asked.append(arguments)
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(sizing, "size", counted)
        ids = world.submit(*[AUTO] * 2_000)
        for _ in range(5):
            world.cycle()
        assert len(asked) <= 1
        world.started(ids[0])
        world.ended(ids[0], peak="2GiB")
        assert len(asked) <= 2


def test_waiting_tasks_follow_what_is_learned_meanwhile() -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        run(world, peak="1GiB")
        world.cordon("n1")
        (waiting,) = world.submit(AUTO)
        before = world.cluster.queue.shape(waiting).memory_request_bytes
        for _ in range(3):
            world.cluster.learning.sizing.observe(
                sizing_ask(world.task(waiting)), 6 * GIB, 10 * SECOND_NS
            )
        assert world.cluster.queue.shape(waiting).memory_request_bytes > before


def test_out_of_memory_is_a_lower_bound_at_once() -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        first, second = world.submit(AUTO, AUTO)
        world.started(first)
        world.ended(first, signal=9, oom_kills=1, peak="1GiB")
        assert world.task(first).state is TaskState.ASSIGNED
        assert world.task(first).memory_size_bytes >= 1.5 * GIB
        world.ended(first, peak="1.6GiB")
        assert world.task(second).memory_size_bytes > GIB


def test_each_requeue_for_memory_asks_at_least_half_as_much_more() -> None:
    with Harness() as world:
        world.ready("n1", total="1024GiB")
        (task_id,) = world.submit(AUTO)
        sizes = []
        while not world.task(task_id).ended:
            limit = world.task(task_id).memory_limit_bytes
            assert limit is not None
            sizes.append(limit)
            world.ended(task_id, signal=9, oom_kills=1, peak=limit)
        assert len(sizes) == 1 + world.limits.memory_requeues_max
        assert all(after >= 1.5 * before for before, after in itertools.pairwise(sizes))
        assert world.task(task_id).memory_requeues == world.limits.memory_requeues_max


def test_more_memory_is_waited_for_while_the_larger_node_is_closed() -> None:
    with Harness() as world:
        world.join("large", total="64GiB")
        world.ready("small", total="8GiB")
        (task_id,) = world.submit(spec("1GiB", name="again"))
        world.ended(task_id, signal=9, oom_kills=1, peak="6GiB")
        assert world.states(task_id) == ["PENDING"]
        assert world.cluster.queue.shape(task_id).memory_request_bytes == 9 * GIB
        refusal = world.cluster.refusals.of_line(world.cluster.queue.line(world.task(task_id)))
        assert refusal is not None
        assert refusal.code == "NO_NODE_LARGE_ENOUGH"
        world.sample("large")
        assert world.task(task_id).node_id == "large"
        assert world.task(task_id).memory_size_bytes >= 9 * GIB


def test_more_memory_than_a_node_can_give_beside_others_is_waited_for_a_while() -> None:
    with Harness() as world:
        world.ready("n1", total="16GiB")
        (task_id,) = world.submit(spec("4GiB", name="again"))
        for _ in range(3):
            world.advance("31s")
            world.sample("n1", used="12GiB", tasks={task_id: "4GiB"})
        world.ended(task_id, signal=9, oom_kills=1, peak="6GiB")
        assert world.states(task_id) == ["PENDING"]
        assert world.cluster.queue.shape(task_id).memory_request_bytes == 9 * GIB
        for _ in range(50):  # the others stay: no more than they leave is hoped for
            world.advance("29s")
            world.sample("n1", used="9GiB")
        assert 6 * GIB < world.task(task_id).memory_size_bytes < 7 * GIB


def on_a_large_node(world: Harness) -> int:
    """Have a large and a small node, and a task on the large one; return its id."""
    world.ready("large", total="16GiB")
    world.ready("small", total="8GiB")
    (task_id,) = world.submit(spec("auto", name="again"))
    assert world.task(task_id).node_id == "large"
    return task_id


@pytest.mark.parametrize("closed", ["cordoned", "down", "begun anew"])
@pytest.mark.parametrize("limits", [SMALL, ELASTIC], ids=["strict", "elastic"])
def test_more_than_any_open_node_gives_is_waited_for_a_while(limits: Limits, closed: str) -> None:
    cause = OomCause.OWN_LIMIT if limits is SMALL else OomCause.GUARD
    with Harness(limits) as world:
        task_id = on_a_large_node(world)
        world.cordon("large")
        for _ in range(120):
            world.advance("29s")
            world.sample("large", used="12GiB", tasks={task_id: "12GiB"})
            world.sample("small")
        world.ended(task_id, node="large", signal=9, oom_kills=1, cause=cause, peak="12GiB")
        if closed == "down":
            world.leave("large")
            world.advance("180s")
            world.uncordon("large")
            world.sample("small")
        if closed == "begun anew":
            world.restart()
            world.ready("small", total="8GiB")
        for _ in range(19):
            assert world.states(task_id) == ["PENDING"]
            world.advance("29s")
            world.sample("small")
        code, reason = explain.pending_reason(
            world.cluster, world.scheduler.displayed, world.task(task_id)
        )
        assert code == "NO_NODE_LARGE_ENOUGH"
        told = {
            "cordoned": "cordoned: repair",
            "down": "the node is not connected (DOWN)",
            "begun anew": "cordoned: repair",
        }
        assert reason.endswith(f"; node large could take it, were it open ({told[closed]})")
        for _ in range(30):
            world.advance("29s")
            world.sample("small")
        assert world.task(task_id).node_id == "small", "nobody came"


def test_more_than_any_open_node_gives_is_waited_for_after_an_earlier_end_by_the_guard() -> None:
    with Harness(ELASTIC) as world:
        task_id = on_a_large_node(world)
        how = {"signal": 9, "oom_kills": 1, "cause": OomCause.GUARD}
        world.ended(task_id, peak="1GiB", **how)  # type: ignore[arg-type]
        assert world.task(task_id).node_id == "large"
        world.cordon("large")
        for _ in range(60):
            world.advance("29s")
            world.sample("large", used="12GiB", tasks={task_id: "12GiB"})
            world.sample("small")
        world.ended(task_id, peak="12GiB", **how)  # type: ignore[arg-type]
        assert world.states(task_id) == ["PENDING"]
        while not world.task(task_id).node_id:
            world.advance("29s")
            world.sample("small")
        world.ended(task_id, peak="7GiB", **how)  # type: ignore[arg-type]
        assert world.task(task_id).node_id == "small", "it waits once for what it used"


@pytest.mark.parametrize("limits", [SMALL, ELASTIC], ids=["strict", "elastic"])
def test_what_an_open_node_can_give_to_others_makes_nobody_wait_longer(limits: Limits) -> None:
    cause = OomCause.OWN_LIMIT if limits is SMALL else OomCause.GUARD
    with Harness(limits) as world:
        task_id = on_a_large_node(world)
        world.cordon("large")
        world.advance("29s")
        world.sample("large", used="12GiB", tasks={task_id: "12GiB"})
        world.sample("small")
        world.ended(task_id, node="large", signal=9, oom_kills=1, cause=cause, peak="12GiB")
        for turn in range(60):
            world.advance("29s")
            world.sample("small")
            if world.task(task_id).node_id == "small":
                break
            (other,) = world.submit(spec("auto", name=f"other-{turn}"))
            world.ended(other, node="small", signal=9, oom_kills=1, cause=cause, peak="1GiB")
            world.advance("1s")
            world.sample("small")
            world.ended(other, node="small", peak="1GiB")
        assert world.task(task_id).node_id == "small"
        assert 20 <= turn <= 41


def test_what_must_not_run_again_has_all_of_the_default_as_its_limit() -> None:
    with Harness() as world:
        world.ready("n1", total="16GiB")
        (task_id,) = world.submit(spec("auto", name="once", requeue=False))
        assert world.task(task_id).memory_limit_bytes == GIB
        reason = world.task(task_id).memory_reason
        assert reason.endswith("; 1 GiB is given at once, as it must not run again")
    with Harness(ELASTIC) as world:
        world.ready("n1", total="16GiB")
        (task_id,) = world.submit(spec("auto", name="once", requeue=False))
        assert world.task(task_id).memory_size_bytes == -(-GIB // 3), "it may outgrow it"


def test_more_memory_goes_up_to_the_largest_node_and_ends_there() -> None:
    with Harness() as world:
        world.ready("n1", total="16GiB")
        largest = world.cluster.largest_capacity_bytes()
        (task_id,) = world.submit(spec("1GiB", name="again"))
        world.ended(task_id, signal=9, oom_kills=1, peak="12GiB")
        assert abs(world.task(task_id).memory_size_bytes - largest) <= largest // 32
        world.ended(task_id, signal=9, oom_kills=1, peak=largest)
        assert world.states(task_id) == ["OUT_OF_MEMORY"]


def test_more_memory_is_as_much_as_may_be_hoped_for_and_within_its_own_limit() -> None:
    learning = Learning(SMALL)
    learning.offer(1, 2 * GIB, 15 * GIB)
    need = Need("again", None, None, None, reached_bytes=6 * GIB, failures=1)
    assert learning.decide(need).size_bytes == 9 * GIB
    assert learning.decide(replace(need, limit_bytes=7 * GIB)).size_bytes == 7 * GIB
    assert learning.decide(replace(need, reached_bytes=12 * GIB)).size_bytes == 15 * GIB
    beyond = replace(need, reached_bytes=16 * GIB)
    assert learning.decide(beyond).size_bytes == 2 * GIB, "no node that is known is of any use"
    learning.hope(1, 20 * GIB)
    assert learning.decide(beyond).size_bytes == 20 * GIB
    assert learning.decide(need).size_bytes == 9 * GIB
    learning = Learning(SMALL)
    learning.offer(1, 13 * GIB, 15 * GIB)
    assert learning.decide(replace(need, reached_bytes=12 * GIB)).size_bytes == 13 * GIB


def test_declaration_that_fits_a_node_is_not_waited_for_beside_a_little_foreign_memory() -> None:
    with Harness(ELASTIC) as world:
        world.join("n1", total="16GiB")
        world.sample("n1", used="6GiB")
        (task_id,) = world.submit(spec("12GiB", name="large"))
        assert world.states(task_id) == ["ASSIGNED"]
        assert world.task(task_id).memory_size_bytes == 4 * GIB


def test_declaration_beyond_every_node_stands_beside_what_others_used() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="32GiB")
        run(world, peak="1GiB")
        (task_id,) = world.submit(spec("100GiB", name="of another category"))
        assert world.states(task_id) == ["PENDING"]
        assert world.cluster.queue.shape(task_id).node_min_bytes == 100 * GIB


def test_declaration_goes_to_a_node_that_can_give_it_until_something_is_learned() -> None:
    with Harness(ELASTIC) as world:
        world.ready("large", total="16GiB")
        world.sample("large", used="13GiB")
        world.ready("small", total="8GiB")
        first, second = world.submit(spec("12GiB"), spec("4GiB", name="other"))
        assert world.states(first, second) == ["PENDING", "ASSIGNED"]
        waiting = world.task(first)
        cluster, results = world.cluster, world.scheduler.displayed
        assert results is not None
        code, reason = explain.pending_reason(cluster, results, waiting)
        assert code == "NO_NODE_WITH_MEMORY"
        assert reason.startswith(
            "asks 4 GiB on a node that can give the 12 GiB it declares, the largest promise is"
            " 2.2 GiB on node large ("
        )
        of_small = explain.node_refusals(cluster, results, waiting)[1]
        assert of_small.reason == "asks 12 GiB, the node can give 7.6 GiB when empty"
        assert of_small.requested_bytes == 12 * GIB
        assert explain.sentences(cluster, results, waiting, world.now_ns)[2].startswith(
            "it would get 4 GiB now on a node that can give the 12 GiB it declares, from declared: "
        )
        world.sample("large")
        assert world.task(first).node_id == "large"
        assert world.task(first).memory_size_bytes == 4 * GIB
        world.ended(first, peak="1GiB")
        world.cordon("large")
        (third,) = world.submit(spec("12GiB"))
        assert world.task(third).node_id == "small", "it is known that it needs less"


def test_declaration_beyond_a_small_node_keeps_no_task_off_it() -> None:
    """Of tasks that differ in what they declare alone, each goes where it may."""
    with Harness(ELASTIC) as world:
        world.ready("large", total="16GiB")
        world.ready("small", total="8GiB")
        asked = [spec(f"{gib}GiB", name=f"of {gib}") for gib in (12, 6, 12, 6, 12, 6, 12, 3)]
        placed = [world.task(task_id) for task_id in world.submit(*asked)]
        on_large = [t.node_id == "large" for t in placed if t.spec.name == "of 12" and t.attempt]
        assert on_large == [True] * 3
        assert [t.attempt for t in placed].count(0) == 1
        assert {t.node_id for t in placed} >= {"small"}


@pytest.mark.parametrize("cause", [OomCause.BYSTANDER, OomCause.GUARD])
def test_end_by_no_fault_of_its_own_costs_a_task_nothing(cause: OomCause) -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        (task_id,) = world.submit(spec("1GiB"))
        for count in range(1, 20):
            world.ended(task_id, signal=9, oom_kills=1, cause=cause, peak="900MiB")
            world.advance("1s")
            again = world.task(task_id)
            assert again.state is TaskState.ASSIGNED
            assert (again.memory_spared, again.memory_requeues, again.failures) == (count, 0, 0)
            assert again.memory_size_bytes == GIB
        assert again.guard_kills == (19 if cause is OomCause.GUARD else 0)


def test_program_that_kills_itself_on_a_busy_node_is_not_run_again_without_end() -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        (task_id,) = world.submit(spec("1GiB"))
        for count in range(1, 1 + world.limits.memory_requeues_max):
            world.ended(task_id, signal=9, cause=OomCause.OUTSIDE, peak="900MiB")
            assert world.states(task_id) == ["PENDING"], "a little later"
            world.advance("1s")
            again = world.task(task_id)
            assert again.state is TaskState.ASSIGNED
            assert (again.memory_spared, again.memory_requeues) == (0, count)
            assert again.memory_size_bytes == GIB
        world.ended(task_id, signal=9, cause=OomCause.OUTSIDE, peak="900MiB")
        assert world.states(task_id) == ["OUT_OF_MEMORY"]
        assert world.task(task_id).reason.endswith("; it was run again 5 times")


def test_guard_kill_sets_all_aside_that_is_expected() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="32GiB")
        for _ in range(4):
            run(world, peak="3GiB")
        (task_id,) = world.submit(AUTO)
        assert world.task(task_id).memory_size_bytes < 2 * GIB
        world.ended(task_id, signal=9, cause=OomCause.GUARD, peak="1GiB")
        again = world.task(task_id)
        assert again.state is TaskState.ASSIGNED
        assert again.memory_size_bytes >= 0.9 * 3 * GIB


def test_inputs_tell_tasks_of_a_category_apart() -> None:
    with Harness() as world:
        world.ready("n1", total="64GiB")
        for gib in (1, 2, 4, 1, 2, 4, 1, 2, 4):
            run(world, peak=f"{gib}GiB", input_size=f"{gib * 100}MiB")
        small, large = world.submit(
            spec("auto", name="train", input_size="100MiB"),
            spec("auto", name="train", input_size="400MiB"),
        )
        assert world.task(small).memory_size_bytes < 2 * GIB
        assert world.task(large).memory_size_bytes > 3 * GIB


def test_category_that_is_new_sends_one_ahead_where_limits_are_strict() -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        ids = world.submit(*[AUTO] * 5)
        assert world.states(*ids) == ["ASSIGNED"] + ["PENDING"] * 4
        world.started(ids[0])
        world.advance("1s")
        world.sample("n1", used="600MiB", tasks={ids[0]: "500MiB"})
        assert world.states(*ids) == ["RUNNING"] + ["ASSIGNED"] * 4
        assert all(world.task(i).memory_size_bytes >= 500 * MIB for i in ids[1:])


def test_pilot_that_says_nothing_lets_another_go_ahead() -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        ids = world.submit(*[AUTO] * 3)
        world.ended(ids[0], exit_code=1)
        assert world.states(*ids) == ["FAILED", "ASSIGNED", "PENDING"]


def test_pilot_that_does_not_move_lets_another_go_ahead_after_a_while() -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        ids = world.submit(*[AUTO] * 3)
        world.advance("9s")
        assert world.states(*ids) == ["ASSIGNED", "PENDING", "PENDING"]
        world.advance("1s")
        world.sample("n1")
        assert world.states(*ids) == ["ASSIGNED", "ASSIGNED", "PENDING"]
        world.advance("9s")
        world.sample("n1")
        assert world.states(*ids) == ["ASSIGNED", "ASSIGNED", "PENDING"], "the second is young"


def test_pilot_that_was_measured_on_a_node_that_fell_silent_is_not_waited_for_long() -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        ids = world.submit(*[AUTO] * 2)
        world.started(ids[0])
        world.advance("100ms")
        world.sample("n1", used="100MiB", tasks={ids[0]: "100MiB"})
        world.ready("n2", total="32GiB")
        world.advance("10s")
        world.sample("n2")
        assert world.states(*ids) == ["RUNNING", "PENDING"]
        world.advance("10s")
        world.sample("n2")
        assert world.states(*ids) == ["RUNNING", "ASSIGNED"]


def test_category_that_always_fails_does_not_go_one_by_one() -> None:
    with Harness() as world:
        world.ready("n1", total="64GiB")
        ids = world.submit(*[AUTO] * 4)
        world.started(ids[0])
        world.ended(ids[0], exit_code=1, peak="5MiB")
        assert world.states(*ids) == ["FAILED"] + ["ASSIGNED"] * 3
        # It may have failed before it needed much: that makes no size small.
        assert all(world.task(i).memory_size_bytes == -(-GIB // 3) for i in ids[1:])
        world.ended(ids[1], exit_code=1, peak="3GiB")
        (later,) = world.submit(AUTO)
        assert world.task(later).memory_size_bytes >= 3 * GIB


def test_learning_begins_again_from_the_attempts_of_before() -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        for _ in range(4):
            run(world, peak="3GiB")
        (before,) = world.submit(AUTO)
        world.restart()
        world.ready("n1", total="32GiB")
        (after,) = world.submit(AUTO)
        assert world.task(after).memory_size_bytes == world.task(before).memory_size_bytes


def test_declaration_beyond_every_node_waits_for_a_larger_one_under_elastic_limits() -> None:
    with Harness(ELASTIC) as world:
        world.ready("n1", total="8GiB")
        (task_id,) = world.submit(spec("100GiB"))
        assert world.states(task_id) == ["PENDING"]
        refusal = world.cluster.refusals.of_line(world.cluster.queue.line(world.task(task_id)))
        assert refusal is not None
        assert refusal.code == "NO_NODE_LARGE_ENOUGH"


def test_changed_memory_limits_size_waiting_tasks_anew() -> None:
    strict = need_of(task(1), MemoryLimits.STRICT)
    elastic = need_of(task(1), MemoryLimits.ELASTIC)
    assert strict is None
    assert elastic is not None
    assert elastic.declared_bytes == GIB
    assert need_of(replace(task(1), spec=spec(exact=True)), MemoryLimits.ELASTIC) is None


def test_before_anything_is_known_a_third_of_the_default_is_tried() -> None:
    learning = Learning(SMALL)
    need = need_of(replace(task(1), spec=AUTO), MemoryLimits.STRICT)
    assert need is not None
    decision = learning.decide(need)
    assert (decision.size_bytes, decision.basis) == (-(-GIB // 3), Basis.DEFAULT)
    assert learning.is_guess(need)


def test_bounds_and_the_default_are_those_of_the_limits() -> None:
    limits = replace(SMALL, categories_max=3, memory_request_default_bytes=2 * GIB)
    learning = Learning(limits)
    assert learning.curves.limits.categories_max == learning.sizing.limits.categories_max == 3
    assert learning.curves.limits.rows_max == limits.tasks_running_max
    assert learning.sizing.limits.default_bytes == 2 * GIB


@given(st.integers(0, 1 << 50))
def test_inputs_are_rounded_up_by_at_most_a_sixteenth(count: int) -> None:
    rounded = rounded_up(count)
    assert count <= rounded <= count * (1 + 1 / 16)
    assert bin(rounded).rstrip("0").count("1") <= INPUT_BITS + 1
    assert size(str(count)) == count
