"""What the controller may say, and what the agent's words look like on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from mass.v1 import agent_pb2, types_pb2
from support.fake_controller import assign, duration, welcome

from agent import wire
from agent.attempt import Assigned, Ended, Key, OomCause, Outcome, Report, Started, StopAsked
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
    )
    assert event.error == ""
    assignment = event.assignment
    assert assignment.key == (3, 2)
    assert (assignment.command, assignment.environment) == (("a", "b"), {"K": "v"})
    assert (assignment.memory_limit_bytes, assignment.memory_request_bytes) == (5, 4)
    assert (assignment.time_limit_ns, assignment.grace_ns) == (1_500_000_000, 2 * SECOND_NS)


def test_no_limit_and_no_time_limit_are_none() -> None:
    assignment = decode().assignment
    assert assignment.memory_limit_bytes is None
    assert assignment.time_limit_ns is None


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"command": []}, "the assignment has no command"),
        ({"command": [""]}, "the assignment has no command"),
        ({"working_directory": "w"}, "working directory 'w', it must be absolute"),
        ({"memory_limit_bytes": -1}, "a negative size of memory"),
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


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"protocol_version": 2}, "protocol 2"),
        ({"attempt_lease": Duration()}, "attempt_lease is 0 ns"),
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
    event = Ended(outcome, OomCause.OWN_LIMIT, timed_out=False, stopped=True)
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
    assert (end.stopped, end.timed_out) == (True, False)


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
