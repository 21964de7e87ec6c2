"""What the controller may say, and what the agent's words look like on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from mass.v1 import agent_pb2, types_pb2
from support.fake_controller import assign, duration, welcome

from agent import wire
from agent.attempt import (
    Assigned,
    Ended,
    GuardStep,
    GuardStepKind,
    Key,
    OomCause,
    Outcome,
    Report,
    Started,
    StopAsked,
)
from agent.memory import MemoryReading
from agent.sampler import Sample

SECOND_NS = 1_000_000_000


def decode(**fields: Any) -> Assigned:
    return wire.decode_assignment(assign(3, **fields).assignments.assignments[0])


def test_an_assignment_is_read_whole() -> None:
    event = decode(
        attempt=2,
        command=["a", "b"],
        environment={"K": "v"},
        working_directory="/w",
        memory_limit_bytes=5,
        memory_request_bytes=4,
        cpus=0.5,
        time_limit=duration(1.5),
        grace=duration(2),
        memory_elastic=True,
        memory_expected_peak_bytes=6,
        priority=-3,
        no_requeue=True,
        oom_group=True,
    )
    assert event.error == ""
    assignment = event.assignment
    assert assignment.key == (3, 2)
    assert (assignment.command, assignment.environment) == (("a", "b"), {"K": "v"})
    assert (assignment.memory_limit_bytes, assignment.memory_request_bytes) == (5, 4)
    assert (assignment.time_limit_ns, assignment.grace_ns) == (1_500_000_000, 2 * SECOND_NS)
    assert (assignment.memory_elastic, assignment.memory_expected_peak_bytes) == (True, 6)
    assert (assignment.priority, assignment.no_requeue, assignment.oom_group) == (-3, True, True)


def test_no_limit_and_no_time_limit_are_none() -> None:
    assignment = decode().assignment
    assert assignment.memory_limit_bytes is None
    assert assignment.time_limit_ns is None
    assert (assignment.memory_elastic, assignment.oom_group) == (False, False)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"command": []}, "the assignment has no command"),
        ({"command": [""]}, "the assignment has no command"),
        ({"working_directory": "w"}, "working directory 'w', it must be absolute"),
        ({"memory_limit_bytes": -1}, "a negative size of memory"),
        ({"memory_expected_peak_bytes": -1}, "a negative size of memory"),
        ({"cpus": -1.0}, "-1.0 cpus"),
        ({"cpus": float("nan")}, "nan cpus"),
        ({"grace": Duration(seconds=-1)}, "a grace of -1 s"),
        ({"time_limit": Duration()}, "a time limit of 0 s"),
    ],
)
def test_an_impossible_assignment_ends_only_itself(fields: dict[str, Any], error: str) -> None:
    event = decode(**fields)
    assert error in event.error
    assert event.key == (3, 1)


@pytest.mark.parametrize(("task_id", "attempt"), [(0, 1), (-1, 1), (1, 0)])
def test_an_attempt_without_a_name_ends_the_stream(task_id: int, attempt: int) -> None:
    with pytest.raises(wire.WireError, match="both count from 1"):
        wire.decode_stop(agent_pb2.Stop(task_id=task_id, attempt=attempt))


def test_a_stop_without_grace_is_sigkill_at_once() -> None:
    assert wire.decode_stop(agent_pb2.Stop(task_id=1, attempt=2)) == StopAsked((1, 2), 0)


def test_a_welcome_is_read_whole() -> None:
    message = welcome(
        acknowledged_sequence=4, forget=[agent_pb2.KnownAttempt(task_id=1, attempt=2)]
    )
    decoded = wire.decode_welcome(message.welcome)
    assert decoded.event.acknowledged_sequence == 4
    assert decoded.event.forget == ((1, 2),)
    assert decoded.sampling == wire.Sampling(50_000_000, 10 * SECOND_NS)
    assert decoded.attempt_lease_ns == 900 * SECOND_NS
    assert decoded.memory_capacity_bytes is None
    capacity = welcome(memory_capacity_bytes=5).welcome
    assert wire.decode_welcome(capacity).memory_capacity_bytes == 5


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"protocol_version": 2}, "protocol 2"),
        ({"attempt_lease": Duration()}, "attempt_lease is 0 ns"),
        ({"memory_capacity_bytes": -1}, "memory_capacity_bytes is -1"),
        ({"sampling": agent_pb2.Sampling()}, "a sampling interval is 0 ns"),
        (
            {
                "sampling": agent_pb2.Sampling(
                    sample_interval=duration(1), heartbeat_interval=duration(3_601)
                )
            },
            "a sampling interval is 3601000000000 ns",
        ),
    ],
)
def test_an_impossible_welcome_is_refused(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(wire.WireError, match=error):
        wire.decode_welcome(welcome(**fields).welcome)


def test_a_sample_says_what_was_measured_and_nothing_else() -> None:
    sample = Sample(
        taken_at_unix_ns=9,
        memory=MemoryReading(100, 40, 10, 0),
        load1=0.0,
        oom_kills=2,
        tasks={(1, 2): 30, (3, 1): 0},
    )
    (message,) = wire.encode_samples([sample]).samples.samples
    assert (message.memory_total_bytes, message.memory_available_bytes) == (100, 40)
    assert message.HasField("swap_used_bytes")
    assert message.HasField("load1")
    assert not message.HasField("load5")
    assert not message.HasField("cpu_percent")
    assert list(message.task_ids) == [1, 3]
    assert list(message.task_attempts) == [2, 1]
    assert list(message.task_memory_used_bytes) == [30, 0]
    assert not message.intake_stopped


def test_a_sample_says_that_the_intake_is_stopped() -> None:
    sample = Sample(9, MemoryReading(100, 40, 10, 0), intake_stopped=True)
    assert wire.encode_samples([sample]).samples.samples[0].intake_stopped


STEP = GuardStep(7, GuardStepKind.KILL, (1, 2), 95, 100, 2.5, 0.5, 12.0, 40, "r" * 9_999)


def test_a_step_of_the_guard_carries_its_numbers() -> None:
    (step,) = wire.encode_guard_steps([STEP]).guard_steps.steps
    assert (step.taken_at_unix_ns, step.kind) == (7, agent_pb2.GUARD_STEP_KIND_KILL)
    assert (step.task_id, step.attempt, step.task_memory_used_bytes) == (1, 2, 40)
    assert (step.memory_used_bytes, step.memory_limit_bytes) == (95, 100)
    assert (step.memory_growth_bytes_per_second, step.seconds_to_full) == (2.5, 0.5)
    assert step.psi_full_percent == 12.0
    assert len(step.reason) == wire.REASON_LENGTH_MAX


def test_a_step_about_the_node_names_no_task_and_invents_no_number() -> None:
    quiet = GuardStep(7, GuardStepKind.OPEN_INTAKE, None, 5, 100)
    (step,) = wire.encode_guard_steps([quiet]).guard_steps.steps
    assert (step.task_id, step.attempt) == (0, 0)
    assert not step.HasField("seconds_to_full")
    assert not step.HasField("psi_full_percent")


def test_every_step_of_the_guard_has_its_word_on_the_wire() -> None:
    for kind in GuardStepKind:
        assert agent_pb2.GuardStepKind.Value(f"GUARD_STEP_KIND_{kind.name}") == kind.value


def test_an_end_by_the_guard_carries_its_step() -> None:
    outcome = Outcome(signal=9, started_at_ns=1, ended_at_ns=2)
    ended = Ended(outcome, OomCause.GUARD, timed_out=False, stopped=False, guard=STEP)
    end = wire.encode_report(Report(4, (1, 2), ended), tail).ended
    assert (end.guard.kind, end.guard.taken_at_unix_ns) == (agent_pb2.GUARD_STEP_KIND_KILL, 7)
    plain = Ended(outcome, OomCause.OWN_LIMIT, timed_out=False, stopped=False)
    assert not wire.encode_report(Report(4, (1, 2), plain), tail).ended.HasField("guard")


def tail(key: Key, stream: int) -> bytes:
    return f"{key} {stream}".encode()


def test_an_end_carries_both_tails_and_how_it_ended() -> None:
    outcome = Outcome(
        signal=9,
        memory_peak_bytes=7,
        oom_kill_count=2,
        started_at_ns=1_000_000_001,
        ended_at_ns=2_000_000_002,
    )
    event = Ended(outcome, OomCause.OWN_LIMIT, timed_out=False, stopped=True, agent_stopped=True)
    message = wire.encode_report(Report(4, (1, 2), event), tail)
    assert (message.sequence, message.task_id, message.attempt) == (4, 1, 2)
    end = message.ended
    assert not end.HasField("exit_code")
    assert (end.signal, end.memory_peak_bytes, end.oom_kill_count) == (9, 7, 2)
    assert end.oom_cause == types_pb2.OOM_CAUSE_OWN_LIMIT
    assert (end.started_at.ToNanoseconds(), end.ended_at.ToNanoseconds()) == (
        1_000_000_001,
        2_000_000_002,
    )
    assert (end.stdout_tail, end.stderr_tail) == (b"(1, 2) 1", b"(1, 2) 2")
    assert (end.stopped, end.agent_stopped, end.timed_out) == (True, True, False)


def test_an_attempt_that_never_ran_has_no_start_and_no_output() -> None:
    outcome = Outcome(start_error="x" * 9_999, ended_at_ns=5)
    event = Ended(outcome, OomCause.UNSPECIFIED, timed_out=False, stopped=False)
    end = wire.encode_report(Report(1, (1, 1), event), tail).ended
    assert not end.HasField("started_at")
    assert len(end.start_error) == wire.ERROR_LENGTH_MAX
    assert end.stdout_tail == b""


def test_a_start_says_pid_and_time() -> None:
    message = wire.encode_report(Report(1, (1, 1), Started(77, 3_000_000_004)), tail)
    assert message.started.pid == 77
    assert message.started.started_at.ToNanoseconds() == 3_000_000_004


def test_every_cause_of_memory_has_its_word_on_the_wire() -> None:
    for cause in OomCause:
        assert types_pb2.OomCause.Value(f"OOM_CAUSE_{cause.name}") == cause.value
