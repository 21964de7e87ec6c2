"""What happens to tasks, beside what the stories tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.builders import spec, task
from support.harness import SMALL, START_NS, Harness

from controller.core.commands import Reply, SaveAttempt, SaveOutput, SendAcknowledgement
from controller.core.ends import KEPT_MAX, EndsLately
from controller.core.errors import LimitReached, OutcomeUnknown
from controller.core.events import AttemptEnded, TasksSubmitted
from controller.core.model import Dependency, DependencyKind, OomCause, OutputStream, TaskState
from controller.core.task_events import judge


def end(**changes: object) -> AttemptEnded:
    """Return the report of a good end, changed."""
    good = AttemptEnded(
        at_ns=9,
        node_id="n1",
        sequence=1,
        task_id=1,
        attempt=1,
        exit_code=0,
        signal=None,
        memory_peak_bytes=1 << 30,
        oom_kill_count=0,
        oom_cause=OomCause.NONE,
        started_at_ns=5,
        ended_at_ns=8,
        timed_out=False,
        stopped=False,
        start_error="",
    )
    return replace(good, **changes)  # type: ignore[arg-type]


NO_EXIT = {"exit_code": None}
NOT_STARTED = {
    "start_error": "exec: Cannot allocate memory",
    "oom_cause": OomCause.BYSTANDER,
    **NO_EXIT,
}


@pytest.mark.parametrize(
    ("changes", "cancelled", "state", "code"),
    [
        ({}, False, "SUCCEEDED", ""),
        ({"exit_code": 1}, False, "FAILED", "EXIT_CODE"),
        ({"exit_code": 137}, False, "FAILED", "EXIT_CODE"),
        ({"signal": 9, **NO_EXIT}, False, "FAILED", "SIGNAL"),
        ({"signal": 99, **NO_EXIT}, False, "FAILED", "SIGNAL"),
        (NO_EXIT, False, "FAILED", "EXIT_CODE"),
        ({"oom_kill_count": 1, "signal": 9, **NO_EXIT}, False, "OUT_OF_MEMORY", "OOM_OWN_LIMIT"),
        ({"oom_cause": OomCause.BYSTANDER}, False, "OUT_OF_MEMORY", "OOM_BYSTANDER"),
        ({"oom_cause": OomCause.CHILD_ONLY}, False, "OUT_OF_MEMORY", "OOM_CHILD_ONLY"),
        ({"timed_out": True, "signal": 15, **NO_EXIT}, False, "TIMED_OUT", "TIME_LIMIT"),
        ({"stopped": True, "signal": 15, **NO_EXIT}, False, "LOST", "NODE_LOST"),
        ({"start_error": "no file", **NO_EXIT}, False, "FAILED", "START_ERROR"),
        ({"start_error": "leaving", "stopped": True, **NO_EXIT}, False, "LOST", "NODE_LOST"),
        (NOT_STARTED, False, "OUT_OF_MEMORY", "OOM_BYSTANDER"),
        ({"stopped": True, **NOT_STARTED}, False, "LOST", "NODE_LOST"),
        (NOT_STARTED, True, "CANCELLED", "CANCELLED"),
        ({"stopped": True, "signal": 15, **NO_EXIT}, True, "CANCELLED", "CANCELLED"),
        ({"stopped": True, "oom_kill_count": 1}, True, "CANCELLED", "CANCELLED"),
        ({"start_error": "no file", **NO_EXIT}, True, "CANCELLED", "CANCELLED"),
        ({"start_error": "leaving", "stopped": True}, True, "CANCELLED", "CANCELLED"),
        ({}, True, "SUCCEEDED", ""),
        ({"exit_code": 2}, True, "FAILED", "EXIT_CODE"),
    ],
)
def test_end_of_an_attempt_is_judged_by_what_the_agent_saw(
    changes: dict[str, object], cancelled: bool, state: str, code: str
) -> None:
    placed = replace(task(1), state=TaskState.RUNNING, attempt=1, cancelled=cancelled)
    found, found_code, reason = judge(placed, end(**changes))
    assert (found.value, found_code) == (state, code)
    assert bool(reason) == (state != "SUCCEEDED")


def test_refused_submit_leaves_nothing_behind() -> None:
    with Harness(replace(SMALL, tasks_open_max=3)) as world:
        world.submit(spec(), spec())
        with pytest.raises(LimitReached, match="2 more tasks would make 4 open tasks"):
            world.submit(spec(), spec(), request_id="again")
        assert world.submit(spec(), request_id="again") == (3,)


def test_submissions_kept_are_bounded_and_the_oldest_goes_first() -> None:
    with Harness(replace(SMALL, submissions_kept=2)) as world:
        for name in ("a", "b", "c"):
            world.submit(spec(), request_id=name)
        assert list(world.cluster.submissions) == ["b", "c"]
        assert world.submit(spec(), request_id="b") == (2,)
        assert world.submit(spec(), request_id="a") == (4,)


def test_answer_of_a_repeated_submit_asks_for_nothing_else() -> None:
    with Harness() as world:
        first = TasksSubmitted(START_NS, "call", "ada", (spec(),))
        world.turn(first)
        assert list(world.scheduler.handle(first)) == [Reply((1,))]


def test_array_that_has_ended_since_it_was_looked_up_is_to_be_looked_up_again() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(array="1-2"))
        world.ended(2)
        seen = {1: frozenset({TaskState.SUCCEEDED})}
        world.ended(3, exit_code=1)
        waiting = spec(after=(Dependency(1, DependencyKind.OK),))
        with pytest.raises(OutcomeUnknown):
            world.submit(waiting, outcomes=seen, unfinished=(1,))
        (late,) = world.submit(waiting)
        assert world.states(late) == ["CANCELLED"]


@pytest.mark.parametrize("kind", DependencyKind)
def test_what_ended_since_the_look_up_counts_as_if_it_had_been_looked_up(
    kind: DependencyKind,
) -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(array="1-2"), spec())
        world.ended(2)
        seen = {1: frozenset({TaskState.SUCCEEDED})}
        count = world.cluster.ends.count
        world.ended(3, exit_code=1)
        world.ended(4)
        waiting = [spec(after=(Dependency(thing_id, kind),)) for thing_id in (1, 4)]
        late = world.submit(*waiting, outcomes=seen, unfinished=(1, 4), ends_seen=count)
        looked_up = world.submit(*waiting)
        assert world.states(*late) == world.states(*looked_up)


def test_ends_are_told_as_long_as_all_since_then_are_kept() -> None:
    ends = EndsLately()
    ends.note(1, TaskState.FAILED)
    for thing_id in range(KEPT_MAX):
        ends.note(thing_id % 2 + 2, TaskState.SUCCEEDED)
    assert ends.since(ends.count) == {}
    well = frozenset({TaskState.SUCCEEDED})
    assert ends.since(ends.count - 1) == {3: well}
    assert ends.since(1) == {2: well, 3: well}
    assert ends.since(0) is None, "how 1 ended is not kept any more"


def test_instants_of_a_wrong_clock_are_brought_into_what_can_be_true() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(), spec(), spec())
        world.now_ns += 5_000_000_000
        world.ended(1, ended_at_ns=1 << 80)
        world.ended(2, ended_at_ns=-(1 << 80))
        world.ended(3, ended_at_ns=START_NS + 7)
        ends = [world.task(i).ended_at_ns for i in (1, 2, 3)]
        assert ends == [world.now_ns, START_NS, START_NS + 7]
        assert all(a.started_at_ns <= a.ended_at_ns for a in world.saved.attempts.values())


def test_each_attempt_keeps_its_own_peak_and_the_task_the_largest() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(retries=1))
        world.ended(1, exit_code=1, peak="3GiB")
        world.ended(1, exit_code=1, peak="2GiB")
        peaks = [world.saved.attempts[1, n].memory_peak_bytes >> 30 for n in (1, 2)]
        assert peaks == [3, 2]
        assert world.task(1).memory_peak_bytes == 3 << 30


def test_task_that_waits_again_has_neither_node_nor_limit() -> None:
    with Harness() as world:
        world.ready("n1", capacity="1GiB")
        world.submit(spec("1GiB", limit="2GiB", retries=1))
        world.cordon("n1")
        world.ended(1, exit_code=1)
        again = world.task(1)
        assert (again.state, again.attempt) == (TaskState.PENDING, 1)
        assert (again.node_id, again.instance_id, again.memory_limit_bytes) == ("", "", None)


def test_task_that_could_not_start_for_want_of_memory_runs_again_uncounted() -> None:
    with Harness(replace(SMALL, memory_spared_delay_ns=5_000_000_000)) as world:
        world.ready("n1")
        world.submit(spec("1GiB", limit="2GiB"))
        world.ended(1, start_error="exec: Cannot allocate memory", cause=OomCause.BYSTANDER)
        again = world.task(1)
        assert (again.state, again.failures, again.memory_requeues) == (TaskState.PENDING, 0, 0)
        assert again.not_before_ns == world.now_ns + 5_000_000_000
        world.advance("6s")
        assert (world.task(1).attempt, world.task(1).node_id) == (2, "n1")


def test_lost_attempt_is_kept_without_the_end_of_an_earlier_one() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(retries=1))
        world.ended(1, exit_code=7, peak="1GiB")
        world.advance("16m")
        lost = world.saved.attempts[1, 2]
        assert (lost.outcome, lost.exit_code, lost.memory_peak_bytes) == (TaskState.LOST, None, 0)
        assert lost.ended_at_ns == world.now_ns


def test_tail_of_an_end_is_saved_and_the_kept_one_given_back() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        world.cluster.append_tail(1, 1, OutputStream.STDOUT, b"early")
        assert world.cluster.tails.bytes_used() > 0
        world.ended(1, stdout=b"late")
        outputs = [c for c in world.commands if isinstance(c, SaveOutput)]
        assert outputs == [SaveOutput(1, 1, OutputStream.STDOUT, b"late")]
        assert world.cluster.tails.bytes_used() == 0


def test_output_of_another_attempt_is_not_kept() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        world.cluster.append_tail(1, 2, OutputStream.STDOUT, b"x")
        world.cluster.append_tail(5, 1, OutputStream.STDOUT, b"x")
        assert len(world.cluster.tails) == 0


def test_acknowledgements_never_go_back() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        late = end(node_id="n1", sequence=5)
        assert SendAcknowledgement("n1", 5) in world.turn(late)
        again = world.turn(replace(late, sequence=3))
        assert again == [SendAcknowledgement("n1", 5)]
        assert not [c for c in again if isinstance(c, SaveAttempt)]


def test_failure_while_memory_was_refused_is_repeated_a_few_times_and_then_a_failure() -> None:
    with Harness() as world:
        world.ready("n1", total="32GiB")
        (task_id,) = world.submit(spec("1GiB"))
        for count in range(1, SMALL.memory_requeues_max + 1):
            world.ended(task_id, exit_code=3, cause=OomCause.BYSTANDER)
            assert world.task(task_id).memory_requeues == count
            world.advance("2s")
        world.ended(task_id, exit_code=3, cause=OomCause.BYSTANDER)
        task = world.task(task_id)
        assert task.state is TaskState.FAILED
        assert task.reason == "exited with code 3; it was run again 5 times"
