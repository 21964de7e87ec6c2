"""What every way of enforcement must do, run over each that works on this machine.

cgroup v2 runs here where the machine has it; everywhere else in a virtual machine (tests/vm).
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest
from support.groups import (
    DEAD,
    NODE,
    Program,
    dead_life,
    directory,
    empty,
    make,
    node_kill_count,
    outer_group,
    programs,
    until,
    why_not,
)
from support.processes import MIB, is_running

from agent.enforce import Enforcement, EnforcementError, LimitRefused, OomFacts

OWN = OomFacts(1, own_limit=True, node_full=False)
KERNEL = (["cgroup2"] if not why_not("cgroup2") else []) + ["cgroup1"]


def told(facts: OomFacts) -> OomFacts:
    """Return the facts with what the kernel may count twice as one."""
    return OomFacts(min(facts.kills, 1), facts.own_limit, facts.node_full)


def readable(descriptor: int | None) -> bool:
    assert descriptor is not None
    return bool(select.select([descriptor], [], [], 0)[0])


@pytest.fixture(params=[*KERNEL, "watchdog"])
def way(request: pytest.FixtureRequest) -> str:
    if reason := why_not(request.param):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(params=KERNEL)
def kernel_way(request: pytest.FixtureRequest) -> str:
    if reason := why_not(request.param):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def enforcement(way: str) -> Iterator[Enforcement]:
    made = make(way)
    yield made
    made.close()


@pytest.fixture
def kernel(kernel_way: str) -> Iterator[Enforcement]:
    made = make(kernel_way)
    yield made
    made.close()


def test_own_limit_takes_the_biggest_process_and_no_other(enforcement: Enforcement) -> None:
    group, other = enforcement.prepare(), enforcement.prepare()
    enforcement.set_limit(group, 80 * MIB)
    enforcement.set_capacity(400 * MIB)
    with programs(enforcement, group, group, other) as (small, big, bystander):
        bystander.grow(90)
        small.grow(1)
        assert enforcement.oom_facts(group) == OomFacts(0, own_limit=False, node_full=False)
        big.ask(100)
        until(lambda: not big.runs, enforcement)
        until(lambda: enforcement.oom_kills(group) > 0, enforcement)
        assert told(enforcement.oom_facts(group)) == OWN
        assert enforcement.oom_facts(other).kills == 0
        assert small.runs
        assert bystander.runs
        small.grow(2)
        enforcement.finish_oom_groups()
        assert small.runs


def test_own_limit_takes_the_whole_group_where_that_is_wanted(enforcement: Enforcement) -> None:
    group = enforcement.prepare()
    enforcement.set_limit(group, 80 * MIB)
    enforcement.set_oom_group(group, True)
    with programs(enforcement, group, group) as (small, big):
        small.grow(1)
        assert enforcement.finish_oom_groups() == ()
        big.ask(100)
        until(lambda: not big.runs, enforcement)

        def both_ended() -> bool:
            enforcement.finish_oom_groups()
            return not small.runs

        until(both_ended, enforcement)
        assert told(enforcement.oom_facts(group)) == OWN


def test_limit_of_a_running_group_is_raised(enforcement: Enforcement) -> None:
    group = enforcement.prepare()
    enforcement.set_limit(group, 60 * MIB)
    with programs(enforcement, group) as (task,):
        task.grow(30)
        enforcement.set_limit(group, 160 * MIB)
        task.grow(90)
        assert enforcement.oom_kills(group) == 0
        task.ask(100)
        until(lambda: not task.runs, enforcement)
        assert enforcement.oom_kills(group) > 0


def test_limit_below_what_is_used_is_refused_and_the_old_one_stays(kernel: Enforcement) -> None:
    group = kernel.prepare()
    kernel.set_limit(group, 100 * MIB)
    with programs(kernel, group) as (task,):
        task.grow(60)
        with pytest.raises(LimitRefused, match=rf"uses \d{{8}} bytes.*lowered to {30 * MIB}"):
            kernel.set_limit(group, 30 * MIB)
        task.grow(10)
        task.ask(50)
        until(lambda: not task.runs, kernel)
        assert told(kernel.oom_facts(group)) == OWN


def test_usage_is_what_a_task_cannot_give_back(enforcement: Enforcement) -> None:
    group, other = enforcement.prepare(), enforcement.prepare()
    with programs(enforcement, group, other) as (task, idle):
        idle.grow(10)
        task.grow(50)
        until(lambda: enforcement.usage(group) >= 50 * MIB, enforcement)
        until(lambda: enforcement.usage(other) >= 10 * MIB, enforcement)
        used_bytes, idle_bytes = enforcement.usages([group, other])
        assert used_bytes < 53 * MIB
        assert idle_bytes < 13 * MIB
        node_bytes = enforcement.node_memory().used_bytes
        assert used_bytes + idle_bytes <= node_bytes <= (used_bytes + idle_bytes) * 1.1
        assert idle.runs


def test_peak_outlives_what_was_given_back(enforcement: Enforcement) -> None:
    group = enforcement.prepare()
    enforcement.set_limit(group, 200 * MIB)
    with programs(enforcement, group, group) as (small, big):
        big.grow(60)
        until(lambda: enforcement.usage(group) > 60 * MIB, enforcement)
        big.end()
        until(lambda: enforcement.usage(group) < 40 * MIB, enforcement)
        assert 60 * MIB < enforcement.peak(group) < 100 * MIB
        assert small.runs


def test_peak_of_a_group_killed_for_its_limit_is_the_limit(kernel: Enforcement) -> None:
    group = kernel.prepare()
    kernel.set_limit(group, 60 * MIB)
    with programs(kernel, group) as (task,):
        task.ask(100)
        until(lambda: not task.runs, kernel)
        assert 59 * MIB < kernel.peak(group) <= 60 * MIB


def test_full_node_stalls_without_a_kill_and_goes_on_when_memory_is_freed(
    kernel: Enforcement,
) -> None:
    group, other = kernel.prepare(), kernel.prepare()
    assert kernel.set_capacity(160 * MIB) == 160 * MIB
    kernel.clear_stall()
    with programs(kernel, group, other) as (first, second):
        first.grow(90)
        assert not kernel.node_memory().stalled
        second.ask(95)
        until(lambda: readable(kernel.stall_fd()), kernel)
        until(lambda: kernel.node_memory().stalled, kernel)
        memory = kernel.node_memory()
        assert memory.limit_bytes is not None
        assert memory.limit_bytes * 0.9 < memory.used_bytes <= 160 * MIB
        kernel.clear_stall()
        for _ in range(50):  # half a second: as long as an agent could be busy
            assert not second.answered(95)
            kernel.node_memory()
            time.sleep(0.01)
        assert first.runs
        empty(kernel, group)
        until(lambda: second.answered(95), kernel)
        until(lambda: not kernel.node_memory().stalled, kernel)
        assert node_kill_count(group) == kernel.oom_kills(group) == kernel.oom_kills(other) == 0
        kernel.clear_stall()
        second.ask(70)
        until(lambda: readable(kernel.stall_fd()), kernel)


def test_task_that_stalls_is_killed_at_once(kernel: Enforcement) -> None:
    group, other = kernel.prepare(), kernel.prepare()
    kernel.set_capacity(120 * MIB)
    with programs(kernel, group, other) as (first, second):
        first.grow(40)
        second.ask(100)
        until(lambda: kernel.node_memory().stalled, kernel)
        empty(kernel, other)
        until(lambda: not second.runs, kernel)
        first.grow(20)
        assert kernel.oom_facts(other).kills == node_kill_count(other) == 0


@pytest.mark.parametrize(("stalled", "frozen"), [(True, False), (False, True), (True, True)])
def test_stalled_or_frozen_leftover_of_a_dead_agent_is_swept(
    kernel_way: str, kernel: Enforcement, stalled: bool, frozen: bool
) -> None:
    dead = dead_life(kernel_way)
    group = dead.prepare()
    task = Program(dead, group)
    if stalled:
        dead.set_capacity(80 * MIB)
        task.ask(100)
        until(lambda: dead.node_memory().stalled, dead)
    dead.freeze(group, frozen)
    assert task.runs
    (name,) = kernel.sweep()
    assert name.endswith(str(DEAD))
    assert NODE in name
    until(lambda: not task.runs, kernel)
    task.end()
    dead.remove(group)
    dead.close()
    assert not directory(group).parent.exists()


@pytest.mark.parametrize("capacity_bytes", [80 * MIB, None])
def test_capacity_that_the_kernel_refuses_is_told_in_words(
    kernel_way: str, capacity_bytes: int | None
) -> None:
    gone = dead_life(kernel_way)
    gone.close()
    with pytest.raises(EnforcementError, match=f"capacity {capacity_bytes} refused: No such file"):
        gone.set_capacity(capacity_bytes)


def test_capacity_is_changed_while_tasks_run(kernel: Enforcement) -> None:
    group = kernel.prepare()
    kernel.set_capacity(100 * MIB)
    with programs(kernel, group) as (task,):
        task.ask(120)
        until(lambda: kernel.node_memory().stalled, kernel)
        assert kernel.set_capacity(300 * MIB) == 300 * MIB
        until(lambda: task.answered(120), kernel)
        assert not kernel.node_memory().stalled
        in_force = kernel.set_capacity(60 * MIB)
        assert in_force is not None
        assert 120 * MIB < in_force < 160 * MIB
        task.ask(90)
        until(lambda: kernel.node_memory().stalled, kernel)
        assert task.runs
        assert kernel.set_capacity(None) is None
        until(lambda: task.answered(90), kernel)
        memory = kernel.node_memory()
        assert (memory.limit_bytes, memory.stalled) == (None, False)
        assert memory.used_bytes > 210 * MIB
        assert node_kill_count(group) == 0


def test_kill_for_memory_further_up_makes_a_bystander(kernel_way: str) -> None:
    with outer_group(kernel_way, 140) as outer:
        kernel = make(kernel_way, parent=outer)
        try:
            group, other = kernel.prepare(), kernel.prepare()
            kernel.set_limit(group, 400 * MIB)
            kernel.set_limit(other, 60 * MIB)
            with programs(kernel, group, other) as (victim, own):
                own.ask(80)
                until(lambda: kernel.oom_kills(other) > 0, kernel)
                victim.grow(80)
                victim.ask(70)
                until(lambda: kernel.oom_kills(group) > 0, kernel)
                until(lambda: not victim.runs, kernel)
                assert not own.runs
                assert told(kernel.oom_facts(group)) == OomFacts(1, False, node_full=True)
                assert told(kernel.oom_facts(other)) == OWN
        finally:
            kernel.close()


def test_own_limit_is_told_from_a_stall_at_the_same_time(kernel: Enforcement) -> None:
    group, stalled = kernel.prepare(), kernel.prepare()
    kernel.set_capacity(160 * MIB)
    kernel.set_limit(group, 60 * MIB)
    with programs(kernel, group, stalled) as (task, waiting):
        task.grow(30)
        waiting.ask(130)
        until(lambda: kernel.node_memory().stalled, kernel)
        kernel.set_capacity(400 * MIB)
        until(lambda: waiting.answered(130), kernel)
        assert kernel.oom_facts(group).kills == 0
        task.ask(50)
        until(lambda: kernel.oom_kills(group) > 0, kernel)
        assert told(kernel.oom_facts(group)) == OWN


def test_paused_group_stands_still_and_goes_on(enforcement: Enforcement) -> None:
    group, other = enforcement.prepare(), enforcement.prepare()
    with programs(enforcement, group, other) as (task, free):
        enforcement.freeze(group, True)
        task.ask(5)
        for size_mib in range(1, 5):
            free.grow(size_mib)
        assert not task.answered(5)
        enforcement.freeze(group, False)
        until(lambda: task.answered(5), enforcement)


def test_paused_group_is_killed(enforcement: Enforcement) -> None:
    group = enforcement.prepare()
    with programs(enforcement, group) as (task,):
        enforcement.freeze(group, True)
        empty(enforcement, group)
        until(lambda: not task.runs, enforcement)


def test_group_that_is_not_empty_is_not_removed(enforcement: Enforcement) -> None:
    group = enforcement.prepare()
    with programs(enforcement, group) as (task,):
        with pytest.raises(EnforcementError, match=r"cannot remove group|still holds processes"):
            enforcement.remove(group)
        assert enforcement.kill(group) == 1
        until(lambda: not task.runs, enforcement)
        assert not is_running(task.process.pid)


def test_way_says_what_it_can(enforcement: Enforcement, way: str) -> None:
    words = enforcement.describe()
    assert enforcement.name == way
    assert words["node_group"] == words["kernel_limit"] == (way != "watchdog")
    assert words["stall_event"] is (enforcement.stall_fd() is not None)
    assert words["caveat"]
    percent = enforcement.psi_full_percent()
    assert percent is None or 0 <= percent <= 100
