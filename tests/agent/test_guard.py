"""The guard's ladder: what it does to whom, when it waits, and what it never does."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.guard import (
    DEFAULT_SETTINGS,
    MIB,
    MILLISECOND_NS,
    SECOND_NS,
    Guard,
    GuardedTask,
    NodeView,
    Step,
    StepKind,
)

LIMIT = 4_000 * MIB
VICTIM = (StepKind.ASK, StepKind.KILL)


def task(number: int, used_mib: int, growth_mib: float = 0.0, **more: object) -> GuardedTask:
    """Return a task; a higher number started later."""
    made = GuardedTask(
        key=(number, 1),
        used_bytes=used_mib * MIB,
        growth_bytes_per_second=growth_mib * MIB,
        started_at_ns=number * SECOND_NS,
        request_bytes=1_000 * MIB,
        expected_peak_bytes=0,
        priority=0,
        no_requeue=False,
        frozen=False,
        paused=False,
        elastic=True,
    )
    return replace(made, **more)  # type: ignore[arg-type]  # the fields are the test's own


def view(*tasks: GuardedTask, at_ms: int = 100_000, **more: object) -> NodeView:
    made = NodeView(
        now_ns=at_ms * MILLISECOND_NS,
        used_bytes=sum(one.used_bytes for one in tasks),
        limit_bytes=LIMIT,
        growth_bytes_per_second=sum(one.growth_bytes_per_second for one in tasks),
        stalled=False,
        psi_full_percent=None,
        tasks=tasks,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def told(steps: tuple[Step, ...]) -> list[tuple[StepKind, int | None]]:
    return [(step.kind, step.key and step.key[0]) for step in steps]


def victims(steps: tuple[Step, ...]) -> list[tuple[int, int] | None]:
    return [step.key for step in steps if step.kind in VICTIM]


def frozen(one: GuardedTask) -> GuardedTask:
    return replace(one, frozen=True, growth_bytes_per_second=0.0)


def test_a_node_with_room_is_left_alone() -> None:
    assert Guard().look(view(task(1, 900, 50), task(2, 500))) == ()


def test_intake_stops_before_anything_is_frozen_and_opens_with_room() -> None:
    guard = Guard()
    steady = [task(1, 1_500, 425), task(2, 1_500, 425), task(3, 700)]
    assert told(guard.look(view(*steady))) == [(StepKind.STOP_INTAKE, None)]
    assert guard.look(view(*steady, at_ms=100_050)) == ()
    assert told(guard.look(view(task(3, 700), at_ms=100_100))) == [(StepKind.OPEN_INTAKE, None)]


def test_the_youngest_grower_is_frozen_first_and_the_oldest_goes_on() -> None:
    steps = Guard().look(view(task(1, 1_400, 300), task(2, 1_200, 900), task(3, 1_300, 900)))
    kinds = told(steps)
    assert kinds[0] == (StepKind.FREEZE, 3)
    assert (StepKind.FREEZE, 1) not in kinds
    assert victims(steps) == []


def test_a_task_that_does_not_grow_is_not_frozen() -> None:
    steps = Guard().look(view(task(1, 2_800, 900), task(2, 1_120)))
    assert (StepKind.FREEZE, 2) not in told(steps)


def test_a_higher_priority_is_frozen_last() -> None:
    steps = Guard().look(view(task(1, 1_900, 900), task(2, 1_980, 900, priority=5)))
    assert told(steps)[0] == (StepKind.FREEZE, 1)


def test_a_frozen_task_goes_on_when_there_is_room() -> None:
    guard = Guard()
    guard.look(view(task(1, 1_400, 300), task(2, 1_200, 900), task(3, 1_300, 900)))
    steps = guard.look(view(frozen(task(2, 1_200)), frozen(task(3, 1_300)), at_ms=100_500))
    assert (StepKind.THAW, 2) in told(steps)
    assert (StepKind.THAW, 3) in told(steps)


def test_a_growth_is_remembered_across_a_pause() -> None:
    """What is measured right after a thaw has the pause in it and says that nothing grows."""
    guard = Guard()
    oldest, late = task(1, 2_000), task(2, 1_900, 900)
    assert (StepKind.FREEZE, 2) in told(guard.look(view(oldest, late, used_bytes=3_930 * MIB)))
    held = view(oldest, frozen(late), at_ms=100_500, used_bytes=3_000 * MIB)
    assert (StepKind.THAW, 2) in told(guard.look(held))
    again = view(oldest, replace(late, growth_bytes_per_second=0.0), at_ms=100_520)
    assert (StepKind.FREEZE, 2) in told(guard.look(replace(again, used_bytes=3_930 * MIB)))
    later = replace(again, now_ns=102_000 * MILLISECOND_NS, used_bytes=3_930 * MIB)
    assert (StepKind.FREEZE, 2) not in told(guard.look(later))


def test_what_its_user_paused_is_neither_frozen_nor_thawed() -> None:
    steps = Guard().look(view(task(1, 1_500, 900), task(2, 1_500), task(3, 930, 900, paused=True)))
    assert (StepKind.FREEZE, 3) not in told(steps)
    assert Guard().look(view(frozen(task(3, 1_000, paused=True)))) == ()


def test_when_nobody_can_go_on_the_cheapest_to_redo_gives_way() -> None:
    guard = Guard()
    full = [task(1, 1_900, 800), task(2, 1_000, 800), task(3, 1_030, 800)]
    steps = guard.look(view(*full))
    assert victims(steps) == [(3, 1)]
    assert "cheapest to redo" in steps[-1].reason or "cheapest to redo" in steps[-2].reason


def test_a_task_that_would_not_run_again_is_the_last_choice() -> None:
    full = [
        task(1, 1_900, 800),
        task(2, 1_000, 800),
        task(3, 1_030, 800, no_requeue=True),
    ]
    assert victims(Guard().look(view(*full))) == [(2, 1)]


def test_a_lower_priority_gives_way_before_a_younger_task() -> None:
    full = [task(1, 1_900, 800, priority=9), task(2, 1_000, 800, priority=1)]
    full.append(task(3, 1_030, 800, priority=9))
    assert victims(Guard().look(view(*full))) == [(2, 1)]


def test_an_elastic_task_gives_way_before_one_that_keeps_to_its_request() -> None:
    full = [task(1, 1_900, 800), task(2, 1_000, 800), task(3, 1_030, 800, elastic=False)]
    assert victims(Guard().look(view(*full))) == [(2, 1)]


def test_a_victim_that_would_give_back_nothing_is_passed_over() -> None:
    full = [task(1, 2_200, 800), task(2, 1_725, 800), task(3, 5, 800)]
    assert victims(Guard().look(view(*full))) == [(2, 1)]


def test_what_the_oldest_may_need_in_all_does_not_cost_a_large_task_its_work() -> None:
    """A declaration can be far too much: the young one gives back what is needed soon."""
    oldest = task(1, 900, 300, expected_peak_bytes=6_000 * MIB)
    full = [oldest, task(2, 2_000, 800), task(50, 1_050, 800)]
    assert victims(Guard().look(view(*full))) == [(50, 1)]
    small = [oldest, task(2, 2_800, 800), task(50, 250, 800)]
    assert victims(Guard().look(view(*small))) == [(2, 1)]


def test_on_a_large_node_a_young_task_is_large_enough_to_give_way() -> None:
    limit_bytes = 1_000_000 * MIB
    tasks = [task(1, 300_000), task(2, 20_000), *(task(number, 2_000) for number in range(3, 343))]
    stalled = view(*tasks, at_ms=400_000, limit_bytes=limit_bytes, stalled=True)
    assert victims(Guard().look(stalled)) == [(342, 1)]
    squeezed = replace(
        stalled,
        stalled=False,
        used_bytes=limit_bytes,
        growth_bytes_per_second=300.0 * MIB,
    )
    assert victims(Guard().look(squeezed)) == [(342, 1)]
    small = replace(squeezed, tasks=(task(1, 300), task(2, 300)))
    assert victims(Guard().look(small)) == []


def test_one_victim_at_a_time() -> None:
    guard = Guard()
    full = [task(number, 1_000, 800) for number in (1, 2, 3, 4)]
    assert victims(guard.look(view(*full))) == [(4, 1)]
    for later_ms in (20, 100, 290):
        assert victims(guard.look(view(*full, at_ms=100_000 + later_ms))) == []


def test_a_victim_that_does_not_go_keeps_no_other_from_being_chosen() -> None:
    """A process in an uninterruptible wait stays for as long as its disk does."""
    guard = Guard()
    tasks = [replace(task(number, 1_000), no_requeue=number == 1) for number in (1, 2, 3, 4)]
    chosen: list[tuple[int, tuple[int, int] | None]] = []
    for at_ms in range(100_000, 220_000, 50):
        steps = guard.look(view(*tasks, at_ms=at_ms, stalled=True))
        chosen += [(at_ms, step.key) for step in steps if step.kind is StepKind.KILL]
    assert chosen == [
        (100_000, (4, 1)),
        (105_000, (3, 1)),
        (110_000, (2, 1)),
        (115_000, (1, 1)),
    ]


def test_a_task_that_ignores_being_asked_is_killed() -> None:
    guard = Guard()
    oldest, slow = task(1, 1_900, 900), task(2, 2_035, 6)
    steps = guard.look(view(oldest, slow))
    assert victims(steps) == [(2, 1)]
    assert (StepKind.ASK, 2) in told(steps)
    stuck = view(frozen(oldest), slow, at_ms=100_400)
    assert victims(guard.look(stuck)) == []
    steps = guard.look(replace(stuck, now_ns=100_500 * MILLISECOND_NS))
    assert told(steps) == [(StepKind.KILL, 2)]
    assert "asked to end" in steps[0].reason


def test_a_stall_ends_a_task_at_once() -> None:
    steps = Guard().look(view(task(1, 2_500), task(2, 1_500), stalled=True))
    assert victims(steps) == [(2, 1)]


def test_waiting_for_memory_counts_as_a_stall_only_at_the_end_of_memory() -> None:
    tasks = (task(1, 2_500), task(2, 1_000))
    assert victims(Guard().look(view(*tasks, psi_full_percent=90.0))) == []
    full = view(*tasks, psi_full_percent=90.0, used_bytes=LIMIT)
    assert victims(Guard().look(full)) == [(2, 1)]


@pytest.mark.parametrize(
    ("others_mib", "growth_mib", "tasks", "gives_way"),
    [
        (1_500, 0, (task(1, 1_500), task(2, 1_000)), []),
        (1_500, 3, (task(1, 1_500), task(2, 1_000)), []),
        (1_400, 300, (task(1, 1_500), task(2, 1_000)), []),
        (1_500, 300, (task(1, 1_500), task(2, 1_000)), [(2, 1)]),
        (1_500, 300, (task(1, 1_500), task(2, 1_000, elastic=False)), [(2, 1)]),
        (500, 300, (task(1, 1_500), task(2, 1_000), task(3, 1_000, elastic=False)), [(2, 1)]),
        # What gives back next to nothing is not ended for it.
        (3_990, 300, (task(1, 5), task(2, 5)), []),
        (2_495, 300, (task(1, 1_500), task(2, 5)), [(1, 1)]),
        # Freezing helps first, or has helped already.
        (1_500, 300, (task(1, 1_500), task(2, 1_000, 100)), []),
        (1_500, 300, (task(1, 1_500), frozen(task(2, 1_000))), []),
        # Many small ones, or one that has no slope yet.
        (1_500, 7, (task(1, 1_500, 3), task(2, 1_000, 3)), []),
        (1_500, 300, (task(1, 1_500), task(2, 1_000, started_at_ns=99_900 * MILLISECOND_NS)), []),
    ],
)
def test_when_others_than_tasks_take_the_last_room_the_cheapest_gives_way(
    others_mib: int,
    growth_mib: int,
    tasks: tuple[GuardedTask, ...],
    gives_way: list[tuple[int, int]],
) -> None:
    guard = Guard()
    used = sum(one.used_bytes for one in tasks) + others_mib * MIB
    now = view(*tasks, used_bytes=used, growth_bytes_per_second=growth_mib * float(MIB))
    assert victims(guard.look(now)) == gives_way
    for later_ms in (20, 290):
        later = replace(now, now_ns=(100_000 + later_ms) * MILLISECOND_NS)
        assert victims(guard.look(later)) == []


def test_the_only_task_at_the_end_of_memory_is_ended_before_the_kernel_does() -> None:
    assert victims(Guard().look(view(task(1, 3_930, 900)))) == [(1, 1)]


def test_a_task_frozen_for_longer_than_it_ran_runs_again_elsewhere() -> None:
    guard = Guard()
    daemon = task(1, 3_700)
    late = task(99, 235, 900)
    assert (StepKind.FREEZE, 99) in told(guard.look(view(daemon, late)))
    waiting = view(daemon, frozen(late), at_ms=129_000)
    assert victims(guard.look(waiting)) == []
    assert victims(guard.look(replace(waiting, now_ns=131 * SECOND_NS))) == [(99, 1)]


@pytest.mark.parametrize(
    ("others", "gives_way"),
    [
        ([task(1, 2_700), task(2, 1_000)], [(2, 1)]),
        ([task(1, 2_700), task(2, 1_000, elastic=False)], [(1, 1)]),
        ([task(1, 3_695), task(2, 5)], [(1, 1)]),
        ([task(1, 2_700), task(2, 1_000, no_requeue=True)], [(1, 1)]),
        ([task(1, 3_700, no_requeue=True)], []),
    ],
)
def test_another_gives_way_to_a_task_frozen_for_too_long_that_would_not_run_again(
    others: list[GuardedTask], gives_way: list[tuple[int, int]]
) -> None:
    guard = Guard()
    late = task(99, 235, 900, no_requeue=True)
    assert (StepKind.FREEZE, 99) in told(guard.look(view(*others, late)))
    waiting = view(*others, frozen(late), at_ms=129_000)
    assert victims(guard.look(waiting)) == []
    assert victims(guard.look(replace(waiting, now_ns=131 * SECOND_NS))) == gives_way


def test_looks_come_faster_towards_the_end_of_memory() -> None:
    guard = Guard()
    calm = guard.next_look_ns(view(task(1, 100)))
    near = guard.next_look_ns(view(task(1, 2_900, 1_500)))
    end = guard.next_look_ns(view(task(1, 3_800, 1_500)))
    assert calm == DEFAULT_SETTINGS.look_max_ns
    assert end == DEFAULT_SETTINGS.look_min_ns
    assert end <= near <= 100 * MILLISECOND_NS


def test_every_step_says_its_numbers() -> None:
    (step, *_) = Guard().look(view(task(1, 1_900, 800), task(2, 2_030, 800)))
    assert (step.used_bytes, step.limit_bytes) == (3_930 * MIB, LIMIT)
    assert step.growth_bytes_per_second == 1_600.0 * MIB
    assert step.seconds_to_full is not None
    assert 0 <= step.seconds_to_full < 0.1
    assert step.task_used_bytes == 2_030 * MIB
    assert "MiB" in step.reason


# ---------------------------------------------------------------- whatever comes

one_task = st.builds(
    task,
    st.integers(1, 6),
    st.integers(0, 1_500),
    st.floats(-500, 2_000),
    expected_peak_bytes=st.sampled_from([0, 500 * MIB, 2_000 * MIB]),
    priority=st.integers(0, 2),
    no_requeue=st.booleans(),
    frozen=st.booleans(),
    paused=st.booleans(),
    elastic=st.booleans(),
)
looks = st.lists(
    st.tuples(
        st.integers(1, 400),  # ms since the last look
        st.lists(one_task, max_size=6, unique_by=lambda one: one.key),
        st.booleans(),  # stalled
        st.integers(0, 1_000),  # MiB used by others
    ),
    min_size=1,
    max_size=12,
)


def views_of(story: list[tuple[int, list[GuardedTask], bool, int]]) -> list[NodeView]:
    made, at_ms = [], 0
    for gap_ms, tasks, stalled, others in story:
        at_ms += gap_ms
        used = sum(one.used_bytes for one in tasks) + others * MIB
        made.append(view(*tasks, at_ms=at_ms, stalled=stalled, used_bytes=used))
    return made


@given(looks)
@settings(max_examples=60, deadline=None)
def test_never_two_victims_within_the_hold(
    story: list[tuple[int, list[GuardedTask], bool, int]],
) -> None:
    guard = Guard()
    chosen: list[tuple[int, tuple[int, int] | None]] = []
    for now in views_of(story):
        found = victims(guard.look(now))
        assert len(found) <= 1
        chosen += [(now.now_ns, key) for key in found]
    for (before_ns, first), (after_ns, second) in pairwise(chosen):
        assert first == second or after_ns - before_ns >= DEFAULT_SETTINGS.hold_ns


@given(looks)
@settings(max_examples=60, deadline=None)
def test_never_a_victim_when_nothing_is_foreseen(
    story: list[tuple[int, list[GuardedTask], bool, int]],
) -> None:
    guard = Guard()
    for now in views_of(story):
        calm = replace(now, stalled=False, limit_bytes=40_000 * MIB)
        assert victims(guard.look(calm)) == []


@given(looks)
@settings(max_examples=60, deadline=None)
def test_never_thaws_into_a_foreseen_end_of_memory(
    story: list[tuple[int, list[GuardedTask], bool, int]],
) -> None:
    guard = Guard()
    for now in views_of(story):
        steps = guard.look(now)
        thawed = {step.key for step in steps if step.kind is StepKind.THAW}
        if not thawed:
            continue
        growth = sum(
            max(0.0, one.growth_bytes_per_second)
            for one in now.tasks
            if not one.frozen and not one.paused
        )
        room = now.limit_bytes - now.used_bytes
        assert growth * DEFAULT_SETTINGS.end_lookahead_ns / SECOND_NS <= max(room, 0) or not growth


@given(looks)
@settings(max_examples=60, deadline=None)
def test_steps_are_for_tasks_they_can_be_done_to(
    story: list[tuple[int, list[GuardedTask], bool, int]],
) -> None:
    guard = Guard()
    for now in views_of(story):
        tasks = {one.key: one for one in now.tasks}
        for step in guard.look(now):
            if step.key is None:
                assert step.kind in (StepKind.STOP_INTAKE, StepKind.OPEN_INTAKE)
                continue
            one = tasks[step.key]
            if step.kind in (StepKind.FREEZE, StepKind.THAW):
                assert not one.paused
                assert one.frozen == (step.kind is StepKind.THAW)


@given(looks)
@settings(max_examples=60, deadline=None)
def test_the_same_views_give_the_same_steps(
    story: list[tuple[int, list[GuardedTask], bool, int]],
) -> None:
    guard, again = Guard(), Guard()
    for now in views_of(story):
        turned = replace(now, tasks=tuple(reversed(now.tasks)))
        assert guard.look(now) == again.look(turned)
        assert guard.next_look_ns(now) == again.next_look_ns(turned)
