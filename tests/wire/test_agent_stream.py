"""The agents' stream: each message there and back, and each that cannot be is refused by name."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from mass.v1 import agent_pb2, task_pb2, types_pb2
from support.served import Served, hello, sample

from controller.core.limits import GIB, MIB
from controller.core.model import NodeState, TaskState

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
LONG = "x" * 200

BAD_HELLOS: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    ({"protocol_version": 2}, PRECONDITION, "protocol version 2, this controller speaks 1"),
    ({"protocol_version": 0}, PRECONDITION, "protocol version 0"),
    ({"node_id": ""}, INVALID, "hello.node_id '' is not 1 to 63 letters"),
    ({"node_id": "a b"}, INVALID, "hello.node_id 'a b' is not"),
    ({"node_id": "a/../b"}, INVALID, "hello.node_id 'a/../b'"),
    ({"node_id": "x" * 64}, INVALID, "hello.node_id"),
    ({"node_id": "node\n"}, INVALID, "hello.node_id"),
    ({"instance_id": ""}, INVALID, "hello.instance_id '' must be 1 to 128"),
    ({"machine_id": LONG}, INVALID, "hello.machine_id"),
    ({"boot_id": "a\tb"}, INVALID, "hello.boot_id"),
    ({"agent_version": ""}, INVALID, "hello.agent_version"),
    ({"enforcement": ""}, INVALID, "hello.enforcement"),
    ({"memory_total_bytes": 0}, INVALID, "hello.memory_total_bytes is 0; it must be 1 to"),
    ({"memory_total_bytes": -1}, INVALID, "hello.memory_total_bytes is -1"),
    ({"memory_total_bytes": 1 << 60}, INVALID, "hello.memory_total_bytes"),
    ({"memory_capacity_bytes": -5}, INVALID, "hello.memory_capacity_bytes is -5"),
    ({"cpus": 0}, INVALID, "hello.cpus is 0; it must be above 0, at most 4096"),
    ({"cpus": math.nan}, INVALID, "hello.cpus is nan"),
    ({"cpus": math.inf}, INVALID, "hello.cpus is inf"),
    ({"capabilities": ["x"] * 65}, INVALID, "number of hello.capabilities is 65"),
    ({"capabilities": ["psi", LONG]}, INVALID, "hello.capabilities 'xxx"),
    ({"attempts": [agent_pb2.KnownAttempt(task_id=0, attempt=1)]}, INVALID, "task_id is 0"),
    ({"attempts": [agent_pb2.KnownAttempt(task_id=1, attempt=-1)]}, INVALID, "attempt is -1"),
]

BAD_SAMPLES: list[tuple[dict[str, Any], str]] = [
    ({"memory_total_bytes": 0}, "of memory_total_bytes 0"),
    ({"memory_total_bytes": 1 << 60}, "of memory_total_bytes 1152921504606846976"),
    ({"memory_available_bytes": -1}, "sample.memory_available_bytes is -1"),
    ({"memory_available_bytes": 9 * GIB}, "sample.memory_available_bytes is 9663676416"),
    ({"swap_total_bytes": -1, "swap_used_bytes": 0}, "sample.swap_used_bytes is 0 of"),
    ({"swap_total_bytes": GIB, "swap_used_bytes": -1}, "sample.swap_used_bytes is -1"),
    ({"swap_total_bytes": 1, "swap_used_bytes": 2}, "sample.swap_used_bytes is 2"),
    ({"psi_some_percent": 101}, "sample.psi_some_percent is 101; it must be 0 to 100"),
    ({"psi_full_percent": -1}, "sample.psi_full_percent is -1"),
    ({"cpu_percent": math.nan}, "sample.cpu_percent is nan"),
    ({"cpu_percent": math.inf}, "sample.cpu_percent is inf"),
    ({"load1": -0.5}, "sample.load1 is -0.5"),
    ({"load5": 1e300}, "sample.load5 is 1e+300"),
    ({"load15": math.nan}, "sample.load15 is nan"),
    ({"disk_percent": 200}, "sample.disk_percent is 200"),
    ({"oom_kills": -1}, "sample.oom_kills is -1"),
    ({"memory_growth_bytes_per_second": math.nan}, "memory_growth_bytes_per_second is nan"),
    ({"memory_growth_bytes_per_second": -math.inf}, "memory_growth_bytes_per_second is -inf"),
    ({"task_ids": [1]}, "sample has 1 task_ids, 0 task_attempts and 0"),
    ({"task_ids": [1], "task_attempts": [1], "task_memory_used_bytes": [-1]}, "task 1 is -1"),
]

BAD_REPORTS: list[tuple[agent_pb2.Report, str]] = [
    (agent_pb2.Report(task_id=1, attempt=1), "report.sequence is 0"),
    (agent_pb2.Report(sequence=1, attempt=1), "report.task_id is 0"),
    (agent_pb2.Report(sequence=1, task_id=-4, attempt=1), "report.task_id is -4"),
    (agent_pb2.Report(sequence=1, task_id=1), "report.attempt is 0"),
    (agent_pb2.Report(sequence=1, task_id=1, attempt=1), "neither started nor ended"),
    (
        agent_pb2.Report(
            sequence=1, task_id=1, attempt=1, ended=agent_pb2.AttemptEnded(memory_peak_bytes=-1)
        ),
        "report.ended.memory_peak_bytes is -1; it must be 0 to",
    ),
]


async def assert_serves(served: Served) -> None:
    """The controller goes on: another agent joins, gets a task and ends it."""
    stream = await served.join(node_id="good", machine_id="other")
    await stream.write(sample())
    task_id = await submit(served)
    assignment = (await stream.read()).assignments.assignments[0]
    assert (str(assignment.task_id), assignment.attempt) == (task_id, 1)
    ended = agent_pb2.AttemptEnded(exit_code=0)
    await stream.write(reports(agent_pb2.Report(sequence=1, task_id=int(task_id), attempt=1,
                                                ended=ended)))  # fmt: skip
    assert (await stream.read()).acknowledgement.sequence == 1
    got = await served.tasks.GetTask(task_pb2.GetTaskRequest(id=task_id))
    assert got.task.state == types_pb2.TASK_STATE_SUCCEEDED
    await stream.close()


async def submit(served: Served, **fields: Any) -> str:
    """Submit a task and return its id."""
    spec = types_pb2.TaskSpec(command=["true"], memory_request_bytes=64 * MIB, **fields)
    answer = await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec]))
    return str(answer.ids[0])


def reports(*messages: agent_pb2.Report) -> agent_pb2.AgentMessage:
    """Return a batch of reports."""
    return agent_pb2.AgentMessage(reports=agent_pb2.ReportBatch(reports=messages))


@pytest.mark.parametrize(("fields", "code", "words"), BAD_HELLOS)
async def test_bad_hello_is_refused_and_changes_nothing(
    served: Served, fields: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    stream = await served.connect(hello(**fields))
    refusal = await stream.refusal()
    assert refusal.code is code, refusal
    assert words in refusal.message
    assert refusal.domain == "mass"
    assert refusal.reason == ("INVALID_REQUEST" if code is INVALID else "PROTOCOL_MISMATCH")
    assert served.cluster.nodes == {}
    await assert_serves(served)


async def test_first_message_must_be_a_hello(served: Served) -> None:
    stream = await served.connect(sample())
    refusal = await stream.refusal()
    assert (refusal.code, refusal.reason) == (PRECONDITION, "PROTOCOL_MISMATCH")
    assert refusal.message == "the first message is samples, it must be hello"
    empty = await served.connect(agent_pb2.AgentMessage())
    assert (await empty.refusal()).message == "the first message is None, it must be hello"
    silent = await served.connect()
    await silent.close()
    assert "no hello came" in (await silent.refusal()).message
    await assert_serves(served)


async def test_second_hello_and_empty_message_end_the_stream(served: Served) -> None:
    for message in (hello(), agent_pb2.AgentMessage()):
        stream = await served.join()
        await stream.write(message)
        refusal = await stream.refusal()
        assert refusal.code is PRECONDITION
        assert "is not understood here" in refusal.message
    await assert_serves(served)


async def test_message_above_16_mib_ends_its_stream_alone(served: Served) -> None:
    stream = await served.join()
    chunk = agent_pb2.OutputChunk(task_id=1, attempt=1, data=bytes(17 << 20))
    await stream.write(agent_pb2.AgentMessage(output=chunk))
    assert (await stream.refusal()).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await assert_serves(served)


@pytest.mark.parametrize(("fields", "words"), BAD_SAMPLES)
async def test_bad_sample_is_refused_by_its_field(
    served: Served, fields: dict[str, Any], words: str
) -> None:
    stream = await served.join()
    await stream.write(sample(**fields))
    refusal = await stream.refusal()
    assert (refusal.code, refusal.reason) == (INVALID, "INVALID_REQUEST"), refusal
    assert words in refusal.message
    assert served.cluster.nodes["node-1"].state is NodeState.JOINING
    await assert_serves(served)


async def test_samples_out_of_order_are_refused(served: Served) -> None:
    stream = await served.join()
    batch = agent_pb2.SampleBatch(
        samples=[agent_pb2.Sample(taken_at_unix_ns=at) for at in (5, 9, 7)]
    )
    await stream.write(agent_pb2.AgentMessage(samples=batch))
    refusal = await stream.refusal()
    assert refusal.code is INVALID
    assert "not in the order of taken_at_unix_ns" in refusal.message
    await assert_serves(served)


@pytest.mark.parametrize("first", [-(1 << 63), 0])
async def test_samples_with_absurd_times_do_no_harm(served: Served, first: int) -> None:
    stream = await served.join()
    batch = agent_pb2.SampleBatch(
        samples=[
            agent_pb2.Sample(
                taken_at_unix_ns=at, memory_total_bytes=GIB, memory_available_bytes=GIB
            )
            for at in (first, (1 << 63) - 1)
        ]
    )
    await stream.write(agent_pb2.AgentMessage(samples=batch))
    refusal = await stream.refusal()
    assert refusal.code is INVALID, refusal
    assert "taken_at_unix_ns" in refusal.message
    await assert_serves(served)


@pytest.mark.parametrize(("report", "words"), BAD_REPORTS)
async def test_bad_report_is_refused_by_its_field(
    served: Served, report: agent_pb2.Report, words: str
) -> None:
    stream = await served.join()
    await stream.write(reports(report))
    refusal = await stream.refusal()
    assert (refusal.code, refusal.reason) == (INVALID, "INVALID_REQUEST"), refusal
    assert words in refusal.message
    await assert_serves(served)


async def test_reports_about_what_is_not_there_are_acknowledged_and_change_nothing(
    served: Served,
) -> None:
    stream = await served.join()
    await stream.write(sample())
    task_id = int(await submit(served))
    await stream.read()
    strange = Timestamp(seconds=253402300799)
    await stream.write(
        reports(
            agent_pb2.Report(sequence=1, task_id=999, attempt=1, started={"pid": 1}),
            agent_pb2.Report(sequence=2, task_id=task_id, attempt=7, ended={"exit_code": 0}),
        )
    )
    assert (await stream.read()).acknowledgement.sequence == 2
    assert served.cluster.tasks[task_id].state is TaskState.ASSIGNED
    # A clock that is wrong by centuries does not get into the times that people see.
    started = agent_pb2.AttemptStarted(pid=1, started_at=strange)
    await stream.write(
        reports(agent_pb2.Report(sequence=3, task_id=task_id, attempt=1, started=started))
    )
    assert (await stream.read()).acknowledgement.sequence == 3
    task = served.cluster.tasks[task_id]
    assert task.state is TaskState.RUNNING
    assert task.assigned_at_ns <= task.started_at_ns <= served.engine.now_ns()
    await assert_serves_beside(served, stream, task_id)


async def assert_serves_beside(served: Served, stream: Any, task_id: int) -> None:
    """The task ends as usual."""
    ended = agent_pb2.AttemptEnded(exit_code=0, oom_cause=77)  # type: ignore[arg-type]
    await stream.write(
        reports(agent_pb2.Report(sequence=4, task_id=task_id, attempt=1, ended=ended))
    )
    assert (await stream.read()).acknowledgement.sequence == 4
    got = await served.tasks.GetTask(task_pb2.GetTaskRequest(id=str(task_id)))
    assert got.task.state == types_pb2.TASK_STATE_SUCCEEDED


async def test_timestamp_that_cannot_be_is_refused(served: Served) -> None:
    stream = await served.join()
    await stream.write(sample())
    task_id = int(await submit(served))
    await stream.read()
    started = agent_pb2.AttemptStarted(pid=1, started_at=Timestamp(seconds=1 << 62, nanos=-7))
    await stream.write(
        reports(agent_pb2.Report(sequence=1, task_id=task_id, attempt=1, started=started))
    )
    refusal = await stream.refusal()
    assert refusal.code is INVALID, refusal
    assert "report.started.started_at" in refusal.message
    await assert_serves(served)


async def test_output_and_logs_of_nobody_are_dropped(served: Served) -> None:
    stream = await served.join()
    await stream.write(
        agent_pb2.AgentMessage(output=agent_pb2.OutputChunk(task_id=5, attempt=1, data=b"x")),
        agent_pb2.AgentMessage(output=agent_pb2.OutputChunk(task_id=-5, attempt=-1, data=b"x")),
        agent_pb2.AgentMessage(log=agent_pb2.LogChunk(request_id=99, data=b"x")),
        sample(),
    )
    while served.cluster.nodes["node-1"].state is not NodeState.READY:
        await asyncio.sleep(0.001)
    await stream.close()
    assert (await stream.refusal()).code is grpc.StatusCode.OK
    await assert_serves(served)


async def test_goodbye_ends_the_stream_in_peace(served: Served) -> None:
    stream = await served.join()
    await stream.write(agent_pb2.AgentMessage(goodbye=agent_pb2.Goodbye(reason="done")))
    assert (await stream.refusal()).code is grpc.StatusCode.OK
    await assert_serves(served)


async def test_welcome_carries_intervals_lease_and_what_to_forget(served: Served) -> None:
    known = [
        agent_pb2.KnownAttempt(task_id=7, attempt=2),
        agent_pb2.KnownAttempt(task_id=8, attempt=1, ended=True),
    ]
    stream = await served.connect(hello(attempts=known))
    welcome = (await stream.read()).welcome
    assert welcome.protocol_version == 1
    assert welcome.sampling.sample_interval.ToSeconds() == 1
    assert welcome.sampling.heartbeat_interval.ToSeconds() == 10
    assert welcome.attempt_lease.ToSeconds() == 900
    assert welcome.acknowledged_sequence == 0
    # The ended one still reports its end; the other runs for nobody.
    assert [(attempt.task_id, attempt.attempt) for attempt in welcome.forget] == [(7, 2)]
    stream.cancel()


async def test_agent_that_comes_back_hears_again_what_it_missed(served: Served) -> None:
    stream = await served.join()
    await stream.write(sample())
    task_id = int(await submit(served))
    assert (await stream.read()).WhichOneof("body") == "assignments"
    stream.cancel()
    # It never got the assignment: the same process has no such attempt.
    stream = await served.join()
    (assignment,) = (await stream.read()).assignments.assignments
    assert (assignment.task_id, assignment.attempt) == (task_id, 1)
    started = agent_pb2.AttemptStarted(pid=1)
    await stream.write(
        reports(agent_pb2.Report(sequence=1, task_id=task_id, attempt=1, started=started))
    )
    assert (await stream.read()).acknowledgement.sequence == 1
    stream.cancel()
    await served.tasks.CancelTasks(task_pb2.CancelTasksRequest(ids=[str(task_id)]))
    known = [agent_pb2.KnownAttempt(task_id=task_id, attempt=1)]
    stream = await served.connect(hello(attempts=known))
    welcome = (await stream.read()).welcome
    assert (welcome.acknowledged_sequence, list(welcome.forget)) == (1, [])
    stop = (await stream.read()).stop
    assert (stop.task_id, stop.attempt) == (task_id, 1)
    stream.cancel()


async def test_assignment_carries_all_that_was_asked_for(served: Served) -> None:
    stream = await served.join()
    await stream.write(sample())
    spec = types_pb2.TaskSpec(
        command=["echo", "a b"],
        memory_request_bytes=64 * MIB,
        memory_limit_bytes=96 * MIB,
        memory_exact=True,
        cpus=0.5,
        environment={"KEY": "value"},
        working_directory="/tmp",
    )
    spec.time_limit.FromSeconds(90)
    await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec]))
    (assignment,) = (await stream.read()).assignments.assignments
    assert (assignment.task_id, assignment.attempt) == (1, 1)
    assert list(assignment.command) == ["echo", "a b"]
    assert dict(assignment.environment) == {"KEY": "value"}
    assert assignment.working_directory == "/tmp"
    assert assignment.memory_request_bytes == 64 * MIB
    assert assignment.memory_limit_bytes == 96 * MIB
    assert assignment.cpus == 0.5
    assert assignment.time_limit.ToSeconds() == 90
    assert assignment.grace.ToSeconds() == 10
    cancel = task_pb2.CancelTasksRequest(ids=["1"])
    cancel.grace.FromMilliseconds(1_500)
    await served.tasks.CancelTasks(cancel)
    stop = (await stream.read()).stop
    assert (stop.task_id, stop.attempt, stop.grace.ToMilliseconds()) == (1, 1, 1_500)


async def test_log_question_goes_down_and_its_answer_up(served: Served) -> None:
    stream = await served.join()
    await stream.write(sample())
    task_id = await submit(served)
    await stream.read()
    parts = served.tasks.ReadTaskLog(
        task_pb2.ReadTaskLogRequest(id=task_id, stream=types_pb2.OUTPUT_STREAM_STDERR)
    )
    asked = (await stream.read()).read_log
    assert (asked.task_id, asked.attempt, asked.offset_bytes) == (int(task_id), 1, 0)
    assert asked.stream == types_pb2.OUTPUT_STREAM_STDERR
    answer = agent_pb2.LogChunk(request_id=asked.request_id, data=b"hello")
    await stream.write(agent_pb2.AgentMessage(log=answer))
    assert (await parts.read()).data == b"hello"
    again = (await stream.read()).read_log
    assert again.offset_bytes == 5
    await stream.write(agent_pb2.AgentMessage(log=agent_pb2.LogChunk(request_id=again.request_id)))
    assert await parts.read() == grpc.aio.EOF
