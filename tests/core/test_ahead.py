"""Tasks that always end soon are sent ahead of free CPUs, and never stand in anyone's way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.builders import spec
from support.harness import SMALL, Harness

from controller.core import explain
from controller.core.commands import SendAssignment, SendStop
from controller.core.limits import MILLISECOND_NS
from controller.core.model import KnownAttempt, TaskState

PER_CPU = SMALL.ahead_per_cpu
BRIEF = replace(spec("64MiB", name="blink"), category="blink", cpus=1.0)
LONG = replace(spec("64MiB", name="train"), category="train", cpus=1.0)


def learn(world: Harness, category: str = "blink", runs: int = SMALL.brief_runs_min) -> None:
    """Let tasks of a category run for 10 ms each."""
    for _ in range(runs):
        (task_id,) = world.submit(replace(BRIEF, category=category))
        world.started(task_id)
        world.advance("10ms")
        world.ended(task_id, peak="1MiB", started_at_ns=world.now_ns - 10 * MILLISECOND_NS)


def node_of_brief_tasks(world: Harness, cpus: float) -> None:
    """Let a node join whose agent holds what is sent ahead, and learn that the tasks are brief."""
    world.ready("n1", cpus=cpus, holds_ahead=True)
    learn(world)


def come_back(world: Harness, ids: tuple[int, ...]) -> None:
    """Let the node's agent connect again with these first attempts."""
    known = tuple(KnownAttempt(task_id, 1, ended=False) for task_id in ids)
    world.ready("n1", cpus=1.0, holds_ahead=True, attempts=known)


def counts(world: Harness, ids: tuple[int, ...]) -> tuple[int, int, int]:
    """Return how many are assigned, sent ahead, and left waiting."""
    tasks = [world.task(task_id) for task_id in ids]
    placed = [task for task in tasks if task.state is TaskState.ASSIGNED]
    ahead = sum(task.is_ahead for task in placed)
    return len(placed) - ahead, ahead, len(tasks) - len(placed)


@pytest.fixture
def world() -> Harness:
    return Harness()


def test_brief_tasks_are_sent_ahead_up_to_a_bound_and_the_others_wait(world: Harness) -> None:
    with world:
        node_of_brief_tasks(world, cpus=2.0)
        ids = world.submit(*[BRIEF] * 30)
        assert counts(world, ids) == (2, 2 * PER_CPU, 28 - 2 * PER_CPU)
        sent = [c for c in world.commands if isinstance(c, SendAssignment)]
        assert [c.task.is_ahead for c in sent] == [False] * 2 + [True] * 2 * PER_CPU
        assert "until CPUs are free" in world.task(ids[2]).reason
        why = explain.sentences(
            world.cluster, world.scheduler.displayed, world.task(ids[2]), world.now_ns
        )
        assert why[:2] == [
            f"task {ids[2]} is ASSIGNED: waits on its node until CPUs are free: it was sent ahead"
            " of time",
            f"reason code AHEAD; node n1 has given its 2 CPUs to 2 tasks, {2 * PER_CPU} tasks sent"
            " ahead wait there",
        ]
        world.started(ids[0])
        world.ended(ids[0], peak="1MiB")
        assert counts(world, ids[1:]) == (1, 2 * PER_CPU + 1, 27 - 2 * PER_CPU)
        world.started(ids[2])
        assert not world.task(ids[2]).is_ahead


@pytest.mark.parametrize(
    "case", ["unknown", "too few", "long", "not again", "old agent", "beside a long one"]
)
def test_nothing_is_sent_ahead(world: Harness, case: str) -> None:
    with world:
        world.ready("n1", cpus=2.0, holds_ahead=case != "old agent")
        wanted = BRIEF
        if case != "unknown":
            learn(world, runs=SMALL.brief_runs_min - (case == "too few"))
        if case == "long":
            (task_id,) = world.submit(BRIEF)
            world.started(task_id)
            world.advance("200ms")
            started = world.now_ns - 200 * MILLISECOND_NS
            world.ended(task_id, peak="1MiB", started_at_ns=started)
        if case == "not again":
            wanted = replace(BRIEF, requeue=False)
        taken = 0
        if case == "beside a long one":
            world.submit(LONG)
            taken = 1
        ids = world.submit(*[wanted] * 5)
        assert counts(world, ids) == (2 - taken, 0, 3 + taken)


def test_a_free_cpu_elsewhere_comes_first(world: Harness) -> None:
    with world:
        world.ready("n1", cpus=2.0, holds_ahead=True)
        world.ready("n2", cpus=2.0, holds_ahead=True)
        learn(world)
        ids = world.submit(*[BRIEF] * 6)
        assert counts(world, ids) == (4, 2, 0)
        ahead = [world.task(i).node_id for i in ids if world.task(i).is_ahead]
        assert sorted(ahead) == ["n1", "n2"]


def test_nothing_is_sent_ahead_of_a_task_that_waits_for_cpus(world: Harness) -> None:
    with world:
        node_of_brief_tasks(world, cpus=2.0)
        first = world.submit(BRIEF, BRIEF)
        (waiting,) = world.submit(LONG)
        later = world.submit(*[BRIEF] * 4)
        assert counts(world, later) == (0, 0, 4)
        world.ended(first[0], peak="1MiB")
        assert world.task(waiting).state is TaskState.ASSIGNED
        assert counts(world, later) == (0, 0, 4)


def test_task_larger_than_a_node_is_not_sent_ahead_to_it(world: Harness) -> None:
    with world:
        node_of_brief_tasks(world, cpus=2.0)
        ids = world.submit(replace(BRIEF, cpus=4.0))
        assert counts(world, ids) == (0, 0, 1)


def test_one_that_no_node_can_ever_take_keeps_nobody_back(world: Harness) -> None:
    with world:
        node_of_brief_tasks(world, cpus=2.0)
        world.submit(replace(LONG, cpus=64.0))
        ids = world.submit(*[BRIEF] * 4)
        assert counts(world, ids) == (2, 2, 0)


def test_what_has_waited_too_long_is_called_back_and_runs_elsewhere(world: Harness) -> None:
    with world:
        node_of_brief_tasks(world, cpus=1.0)
        running, held, also = world.submit(*[BRIEF] * 3)
        world.started(running)  # and goes on, for once
        assert [c for c in world.advance("1900ms") if isinstance(c, SendStop)] == []
        world.ready("n2", cpus=1.0, holds_ahead=True)
        stops = [c for c in world.advance("200ms") if isinstance(c, SendStop)]
        assert [(c.task_id, c.only_held) for c in stops] == [(held, True), (also, True)]
        world.ended(held, stopped=True, unstarted=True)
        task = world.task(held)
        assert (task.state, task.node_id, task.attempt) == (TaskState.ASSIGNED, "n2", 2)
        assert not task.is_ahead
        assert world.cluster.nodes["n1"].leaving_until_ns == 0
        world.started(also)  # its turn came meanwhile: the call was too late
        world.ended(also, peak="1MiB")
        assert world.states(also) == ["SUCCEEDED"]
        world.cordon("n2")
        world.advance("31s")
        world.sample("n1")
        (later,) = world.submit(BRIEF)
        assert world.states(later) == ["PENDING"]  # nothing goes ahead behind what was not brief
        world.ended(running, peak="1MiB", started_at_ns=world.now_ns - 10 * MILLISECOND_NS)
        assert world.task(later).node_id == "n1"


def test_agent_that_ends_what_it_held_unasked_is_leaving(world: Harness) -> None:
    with world:
        node_of_brief_tasks(world, cpus=1.0)
        _, held = world.submit(BRIEF, BRIEF)
        world.ended(held, stopped=True, unstarted=True)
        assert world.states(held) == ["PENDING"]
        assert world.cluster.nodes["n1"].leaving_until_ns > world.now_ns


def test_what_is_held_does_not_count_as_running_in_rules(world: Harness) -> None:
    with world:
        node_of_brief_tasks(world, cpus=2.0)
        world.submit(*[BRIEF] * 10)
        metrics = world.scheduler.collect_metrics()
        assert metrics.column("tasks_running").tolist() == [2.0]


def test_call_back_before_a_restart_closes_no_node(world: Harness) -> None:
    with world:
        node_of_brief_tasks(world, cpus=1.0)
        running, held = world.submit(BRIEF, BRIEF)
        world.started(running)
        world.advance("2s")
        world.restart()
        come_back(world, (running, held))
        world.ended(held, stopped=True, unstarted=True)
        assert world.cluster.nodes["n1"].leaving_until_ns == 0


def test_held_task_is_cancelled_like_any(world: Harness) -> None:
    with world:
        node_of_brief_tasks(world, cpus=1.0)
        _, held = world.submit(BRIEF, BRIEF)
        world.cancel(held)
        world.ended(held, stopped=True, unstarted=True)
        assert world.states(held) == ["CANCELLED"]


def test_restarted_controller_sends_nothing_ahead_behind_what_it_does_not_know() -> None:
    with Harness() as world:
        node_of_brief_tasks(world, cpus=1.0)
        ids = world.submit(*[BRIEF] * 3)
        world.restart()
        come_back(world, ids)
        assert counts(world, ids) == (1, 2, 0)


@pytest.mark.parametrize(
    "bound", [{"tasks_running_max": 8}, {"user_tasks_max": 8}], ids=["of all", "of a user"]
)
def test_what_is_held_leaves_half_of_what_is_left_of_a_bound(bound: dict[str, int]) -> None:
    with Harness(replace(SMALL, **bound)) as world:  # type: ignore[arg-type]
        world.ready("n1", cpus=1.0, holds_ahead=True, labels={"brief": ""})
        learn(world)
        world.submit(*[replace(BRIEF, constraint="brief")] * 20)
        for _ in range(5):
            world.cycle()
        world.ready("n2", cpus=8.0)
        long = world.submit(*[replace(LONG, constraint="not brief")] * 3)
        assert world.states(*long) == ["ASSIGNED"] * 3
