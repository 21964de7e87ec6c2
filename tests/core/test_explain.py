"""Every task can be explained, with the numbers that were used."""

from __future__ import annotations

from support.builders import spec
from support.harness import SMALL, Harness

from controller.core import explain
from controller.core.events import GuardActed
from controller.core.explain import REFUSALS_SHOWN_MAX, NodeRefusal
from controller.core.model import GuardStep, GuardStepKind, TaskAction
from controller.views import task_view


def why(world: Harness, task_id: int) -> list[str]:
    displayed = world.scheduler.displayed
    return explain.sentences(world.cluster, displayed, world.task(task_id), world.now_ns)


def refusals(world: Harness, task_id: int) -> list[NodeRefusal]:
    displayed = world.scheduler.displayed
    return explain.node_refusals(world.cluster, displayed, world.task(task_id))


def test_refusal_has_request_promise_foreign_and_reserved() -> None:
    with Harness() as world:
        world.ready("n1", total="10GiB", capacity="8GiB")
        world.submit(spec("3GiB"))
        world.sample("n1", used="4GiB", tasks={1: "1GiB"})
        world.submit(spec("6GiB"))
        (found,) = refusals(world, 2)
        gib = 1 << 30
        assert found.code == "MEMORY"
        assert (found.requested_bytes, found.foreign_used_bytes) == (6 * gib, 3 * gib)
        assert found.reserved_bytes == 3 * gib
        assert found.promise_bytes == 10 * gib - gib // 2 - 3 * gib - 3 * gib


def test_terms_add_up_after_later_assignments() -> None:
    """The sums are those of the cycle, though the ledger has gone on since."""
    with Harness() as world:
        world.ready("n1", total="10GiB")
        world.submit(spec("2GiB"), spec("9GiB"))
        assert why(world, 2)[0] == (
            "task 2 is PENDING: asks 9 GiB, the largest promise is 7.5 GiB on node n1"
            " (own share: capacity 9.5 GiB - tasks 2 GiB; foreign_used 0 B)"
        )
        first = why(world, 2)
        world.cluster.release(1)
        assert why(world, 2) == first
        world.cluster.reserve(world.cluster.tasks[1], 0)


def test_sizes_that_read_alike_are_told_apart() -> None:
    with Harness() as world:
        world.ready("n1", total="10GiB", capacity="8GiB")
        world.submit(spec((8 << 30) + 1), spec("1MiB"), spec("8GiB"))
        asked = "asks 8 GiB (8,589,934,593 bytes)"
        largest = "the largest ready node can give 8 GiB (8,589,934,592 bytes) when empty"
        assert why(world, 1)[0] == f"task 1 is PENDING: {asked}, {largest}"
        assert refusals(world, 1)[0].reason.startswith(asked)
        assert (
            "asks 8 GiB (8,589,934,592 bytes), the largest promise is 8 GiB (8,588"
            in why(world, 3)[0]
        )


def test_task_that_no_cycle_has_seen_waits_for_one() -> None:
    with Harness() as world:
        world.submit(spec())
        world.scheduler.displayed = None
        assert why(world, 1)[0] == "task 1 is PENDING"
        assert refusals(world, 1) == []


def test_nodes_that_came_after_the_cycle_are_left_out() -> None:
    with Harness() as world:
        world.ready("n1", capacity="1GiB")
        world.submit(spec("2GiB"))
        shown = world.scheduler.displayed
        world.join("n2")
        world.scheduler.displayed = shown
        assert [found.node_id for found in refusals(world, 1)] == ["n1"]


def test_refusals_shown_are_bounded() -> None:
    limits = type(SMALL)(nodes_max=120, tasks_running_max=4)
    with Harness(limits) as world:
        for number in range(110):
            world.join(f"n{number}")
        world.submit(spec())
        assert len(refusals(world, 1)) == REFUSALS_SHOWN_MAX


def test_requeued_task_says_why_it_was_queued_again() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(retries=1))
        world.cordon("n1", "new disk")
        world.ended(1, exit_code=3)
        assert why(world, 1)[2] == (
            "it was queued again: attempt 1 exited with code 3; retry 1 of 1"
        )
        assert [(r.code, r.reason) for r in refusals(world, 1)] == [
            ("CORDONED", "cordoned: new disk")
        ]


def test_peak_of_an_earlier_attempt_is_never_below_what_is_used() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec("2GiB", retries=1))
        world.ended(1, exit_code=3, peak="200MiB")
        world.started(1)
        for used in (100 << 20, 900 << 20):
            world.sample("n1", tasks={1: used})
            view = task_view(world.cluster, world.scheduler.displayed, world.task(1))
            assert (view.memory_used_bytes, view.memory_peak_bytes) == (used, max(used, 200 << 20))


def test_newest_steps_of_the_guard_are_told_with_their_times() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        numbers = (0, 0, 0.0, None, None, 0, "")
        for second in range(7):
            at_ns = (86_400 + 3_723 + second) * 1_000_000_000 + 45_000_000
            step = GuardStep(at_ns, GuardStepKind.ASK, 1, 1, *numbers)
            world.turn(GuardActed(world.now_ns, "n1", (step,)))
        told = [line for line in why(world, 1) if "guard" in line]
        assert told[0] == "guard: 2 earlier steps: mass events --last 0"
        assert [line[:20] for line in told[1:]] == [f"01:02:0{n}.045Z  guard" for n in range(5, 10)]


def test_held_and_paused_tasks_name_the_command_that_lets_them_go() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(hold=True))
        assert why(world, 1) == [
            "task 1 is HELD: held by its user",
            "'mass task release 1' lets it be placed",
        ]
        world.control(TaskAction.RELEASE, 1)
        world.started(1)
        world.control(TaskAction.PAUSE, 1)
        assert why(world, 1)[:2] == [
            "task 1 is PAUSED: paused by its user",
            "'mass task resume 1' lets it go on",
        ]
        world.control(TaskAction.RESUME, 1)
        assert not any("mass task" in line for line in why(world, 1))


def test_ended_and_placed_tasks_have_no_refusals() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        assert refusals(world, 1) == []
        world.ended(1, peak="512MiB")
        assert refusals(world, 1) == []
        assert why(world, 1) == [
            "task 1 is SUCCEEDED",
            "attempt 1 ran on node n1: peak 512 MiB, request 1 GiB, limit 1 GiB",
        ]
