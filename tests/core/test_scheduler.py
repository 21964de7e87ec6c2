"""The cycle: each of its steps is needed, and the same events give the same commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.builders import rule, spec
from support.harness import SMALL, Harness
from support.story import play

from controller.core.commands import SaveAlert, SaveTask, SendAssignment
from controller.core.events import Tick
from controller.core.results import Metrics, Results
from controller.core.scheduler import Scheduler

STORIES = Path(__file__).parent / "stories"


def measure_late(scheduler: Scheduler) -> None:
    """Give each cycle the metrics of the one before, while the nodes are the same."""
    collect, kept = scheduler.collect_metrics, list[Metrics]()

    def late() -> Metrics:
        kept.append(collect())
        return kept[-2] if len(kept) > 1 and kept[-2].count == kept[-1].count else kept[-1]

    scheduler.collect_metrics = late  # type: ignore[method-assign]


def evaluate_late(scheduler: Scheduler) -> None:
    """Give each cycle the results of the one before, while the nodes are the same."""
    evaluate, kept = scheduler.evaluate_rules, list[Results]()

    def late(metrics: Metrics) -> Results:
        kept.append(evaluate(metrics))
        return kept[-2] if len(kept) > 1 and kept[-2].count == kept[-1].count else kept[-1]

    scheduler.evaluate_rules = late  # type: ignore[method-assign]


def nothing_in_place_of(step: str) -> Callable[[Scheduler], None]:
    """Return what takes one of the steps that return nothing out of a scheduler's cycle."""

    def take_out(scheduler: Scheduler) -> None:
        assert callable(getattr(scheduler, step))
        setattr(scheduler, step, lambda argument: None)

    return take_out


TAKEN_OUT: dict[str, tuple[str, Callable[[Scheduler], None]]] = {
    "collect_metrics": ("foreign_memory", measure_late),
    "evaluate_rules": ("rule_blocks_placement", evaluate_late),
    "assign_tasks": ("one_task_placed", nothing_in_place_of("assign_tasks")),
    "trigger_alerts": ("alert_fires_and_resolves", nothing_in_place_of("trigger_alerts")),
    "allocate_memory": ("two_nodes_of_one_machine", nothing_in_place_of("allocate_memory")),
    "display_results": ("memory_refused", nothing_in_place_of("display_results")),
}


@pytest.mark.parametrize("step", TAKEN_OUT)
def test_story_fails_without_a_step_of_the_cycle(step: str) -> None:
    story, take_out = TAKEN_OUT[step]
    written = (STORIES / f"{story}.txt").read_text()

    def wrap(scheduler: Scheduler) -> Scheduler:
        take_out(scheduler)
        return scheduler

    assert play(written) == written
    try:
        played: str | None = play(written, wrap)
    except (AssertionError, KeyError):
        played = None  # without the step a later command of the story has no meaning
    assert played != written


def test_table_of_steps_is_the_cycle() -> None:
    called: list[str] = []
    with Harness() as world:
        for step in TAKEN_OUT:
            real: Any = getattr(world.scheduler, step)

            def noted(*arguments: Any, step: str = step, real: Any = real) -> Any:
                called.append(step)
                return real(*arguments)

            setattr(world.scheduler, step, noted)
        world.cycle()
    assert called == list(TAKEN_OUT)


def test_metrics_of_a_cycle_are_not_changed_by_its_own_assignments() -> None:
    with Harness() as world:
        world.ready("n1", total="8GiB")
        metrics = world.scheduler.collect_metrics()
        world.submit(spec("1GiB"))
        assert metrics.memory.reserved.tolist() == metrics.memory.charged.tolist() == [0]


def test_assignment_is_saved_before_it_is_sent() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(), spec())
        kinds = [type(command) for command in world.commands]
        assert kinds.index(SaveTask) < kinds.index(SendAssignment)
        saved = [c.task for c in world.commands if isinstance(c, SaveTask)]
        assert all(c.task in saved for c in world.commands if isinstance(c, SendAssignment))


def test_tick_asks_for_a_cycle_only_when_it_changed_something() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        world.now_ns += 1_000_000_000
        assert world.scheduler.handle(Tick(world.now_ns)) == ()
        assert not world.scheduler.cycle_wanted
        world.advance("16m")
        assert world.states(1) == ["PENDING"]


def test_rule_with_a_window_looks_back_on_samples() -> None:
    high = rule("High", "avg(mem_percent, '60s') > 50")
    with Harness(rules=(high,)) as world:
        world.ready("n1", total="10GiB")
        for _ in range(3):
            world.now_ns += 1_000_000_000
            assert not [c for c in world.sample("n1", used="1GiB") if isinstance(c, SaveAlert)]
        told = []
        for _ in range(10):
            world.now_ns += 1_000_000_000
            told += [c for c in world.sample("n1", used="9GiB") if isinstance(c, SaveAlert)]
        assert [c.alert.state.value for c in told] == ["FIRING"]


def test_withdrawn_assignment_waits_and_is_placed_when_there_is_room() -> None:
    with Harness() as world:
        world.ready("n1", capacity="4GiB")
        metrics = world.scheduler.collect_metrics
        # What it measured says 4 GiB; the ledger, which has the last word, says 1 GiB.
        before = metrics()
        world.cluster.ledger.set_node(0, 1 << 30)
        world.scheduler.collect_metrics = lambda: before  # type: ignore[method-assign]
        world.submit(spec("2GiB"))
        assert world.states(1) == ["PENDING"]
        refusal = world.cluster.refusals.get(world.cluster.queue.shape(1))
        assert refusal is not None
        assert (refusal.code, refusal.best_promise_bytes) == ("NO_NODE_WITH_MEMORY", 1 << 30)
        world.cluster.ledger.set_node(0, 4 << 30)
        world.cycle()
        assert world.states(1) == ["ASSIGNED"]


def overtaken(world: Harness, nodes: int, big: int) -> None:
    """Have small tasks overtake big ones, each of which wants a whole node, for long enough."""
    for number in range(nodes):
        world.ready(f"n{number}", capacity="4GiB", cpus=64)
    world.submit(*[spec("3GiB")] * nodes)
    for number in range(big):  # of different shapes: each stands in a line of its own
        world.submit(spec((4 << 30) - number))
        world.submit(spec("256MiB"))
    world.now_ns += 31_000_000_000
    for number in range(nodes):
        world.sample(f"n{number}", cycle=False)
    world.cycle()


def test_at_most_a_quarter_of_the_nodes_is_kept_free() -> None:
    with Harness() as world:
        overtaken(world, nodes=8, big=4)
        assert len(world.cluster.overtaken_since_ns) == 4
        assert len(set(world.cluster.kept_slots.values())) == len(world.cluster.kept_slots) == 2


def test_node_that_cannot_take_the_task_any_more_is_not_kept() -> None:
    with Harness() as world:
        overtaken(world, nodes=1, big=1)
        assert list(world.cluster.kept_slots.values()) == [0]
        world.cordon("n0")
        assert world.cluster.kept_slots == {}
        world.uncordon("n0")
        assert list(world.cluster.kept_slots.values()) == [0]
        (small,) = world.submit(spec("128MiB"))
        assert world.states(small) == ["PENDING"]
        # Others take much of the machine for good: it would wait for ever.
        world.sample("n0", used="3.8GiB")
        assert world.cluster.kept_slots == {}
        assert world.states(small) == ["ASSIGNED"], "in the same cycle: no other may come soon"


def test_bound_of_running_tasks_is_kept() -> None:
    assert SMALL.tasks_running_max == 64
    with Harness() as world:
        world.ready("n1", total="1000GiB", cpus=1_000)
        world.submit(*[spec("1MiB")] * 70)
        assert len(world.cluster.reservations) == 64
        assert len(world.cluster.queue) == 6
