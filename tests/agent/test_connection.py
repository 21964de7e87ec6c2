"""One agent against a controller played by hand, over a real stream on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from mass.v1 import agent_pb2, types_pb2
from support.fake_controller import (
    FakeController,
    Stream,
    acknowledge,
    assign,
    duration,
    stop,
    welcome,
)
from support.lone_agent import Agent
from support.processes import until

from agent import attempts as attempts_module
from agent import connection as connection_module
from agent.attempt import GuardStep, GuardStepKind
from agent.connection import AgentRefused
from agent.runner import Launch, StartError


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "TICK_SECONDS_MAX", 0.05)
    monkeypatch.setattr(connection_module, "OUTPUT_INTERVAL_NS", 50_000_000)


async def settle() -> None:
    """Let messages of the loopback arrive where nothing tells that they have."""
    await asyncio.sleep(0.1)


def ended(stream: Stream, task_id: int) -> agent_pb2.AttemptEnded | None:
    """Return the end of a task that the stream has brought."""
    for report in stream.reports():
        if report.task_id == task_id and report.HasField("ended"):
            return report.ended
    return None


async def test_the_hello_comes_first_and_then_a_sample(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    (sample, *_) = await stream.until_samples(1)
    hello = stream.hello()
    assert (hello.protocol_version, hello.node_id, hello.enforcement) == (1, "n1", "fake")
    assert 0 < sample.memory_available_bytes <= sample.memory_total_bytes
    assert stream.received[1].HasField("samples")


async def test_a_task_is_started_reported_acknowledged_and_forgotten(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1, environment={"A": "b"}, memory_limit_bytes=1 << 30))
    (started,) = await stream.until_reports(1)
    assert (started.sequence, started.started.pid) == (1, 4_001)
    launch = agent.runner.launches[1, 1]
    assert launch.memory_limit_bytes == 1 << 30
    assert launch.working_directory == str(agent.work_dir / "tasks" / "1" / "1")
    assert {"PATH": "/bin", "A": "b", "MASS_TASK_ID": "1", "MASS_NODE": "n1"}.items() <= (
        launch.environment.items()
    )
    assert "SECRET" not in launch.environment
    Path(launch.stdout_path).write_bytes(b"out")
    agent.runner.end((1, 1), exit_code=3)
    (_, end) = await stream.until_reports(2)
    assert (end.ended.exit_code, end.ended.stdout_tail, end.ended.stderr_tail) == (3, b"out", b"")
    assert (agent.work_dir / "reports" / "ends").stat().st_size > 0
    stream.send(acknowledge(2))
    await until(lambda: agent.attempts.lifecycle.known() == ())
    assert (agent.work_dir / "reports" / "ends").stat().st_size == 0


async def test_several_assignments_are_started_at_the_same_time(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    agent.runner.hold = asyncio.Event()
    stream.send(assign(1, 2, 3))
    await settle()
    assert stream.reports() == []
    agent.runner.hold.set()
    reports = await stream.until_reports(3)
    assert [report.sequence for report in reports] == [1, 2, 3]


async def test_a_sample_without_the_task_precedes_its_end(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1))
    await stream.until(lambda: any(1 in sample.task_ids for sample in stream.samples()))
    agent.runner.end((1, 1), exit_code=0)
    await stream.until(lambda: ended(stream, 1))
    position = next(
        index
        for index, message in enumerate(stream.received)
        if any(report.HasField("ended") for report in message.reports.reports)
    )
    before = stream.received[position - 1]
    assert before.HasField("samples")
    assert list(before.samples.samples[-1].task_ids) == []


async def test_unacknowledged_reports_are_sent_again_after_a_reconnect(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1, 2))
    await stream.until_reports(2)
    agent.runner.end((1, 1), exit_code=0)
    await stream.until_reports(3)
    await controller.stop()
    await controller.start()
    again = await controller.stream()
    known = {(k.task_id, k.attempt): k.ended for k in again.hello().attempts}
    assert known == {(1, 1): True, (2, 1): False}
    again.send(welcome(acknowledged_sequence=1))
    reports = await again.until_reports(2)
    assert [report.sequence for report in reports] == [2, 3]


async def test_an_end_survives_the_crash_of_its_agent(
    controller: FakeController, tmp_path: Path
) -> None:
    first = Agent(controller, tmp_path)
    stream = await controller.welcomed()
    stream.send(assign(5))
    await stream.until_reports(1)
    first.runner.end((5, 1), exit_code=7)
    await stream.until_reports(2)
    await first.crash()
    second = Agent(controller, tmp_path)
    stream = await controller.welcomed()
    assert [(k.task_id, k.ended) for k in stream.hello().attempts] == [(5, True)]
    (report,) = await stream.until_reports(1)
    assert (report.sequence, report.ended.exit_code) == (1, 7)
    stream.send(acknowledge(1))
    await until(lambda: second.attempts.lifecycle.known() == ())
    await second.crash()
    assert (tmp_path / "reports" / "ends").stat().st_size == 0


async def test_a_stop_terminates_and_kills_after_its_grace(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1))
    await stream.until_reports(1)
    stream.send(stop(1, 0.05))
    end = await stream.until(lambda: ended(stream, 1))
    assert agent.runner.signals == [("terminate", (1, 1)), ("kill", (1, 1))]
    assert (end.signal, end.stopped, end.timed_out) == (9, True, False)


async def test_a_time_limit_ends_the_task_as_timed_out(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1, time_limit=duration(0.05)))
    end = await stream.until(lambda: ended(stream, 1))
    assert agent.runner.signals == [("terminate", (1, 1)), ("kill", (1, 1))]
    assert (end.stopped, end.timed_out) == (False, True)


async def test_a_start_error_is_the_end_of_the_attempt(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    agent.runner.refuse = "exec /no/such: No such file or directory"
    stream.send(assign(1))
    end = await stream.until(lambda: ended(stream, 1))
    assert end.start_error == "exec /no/such: No such file or directory"
    assert not end.HasField("started_at")


def lacking(code: int) -> StartError:
    return StartError("exec", code, f"exec true: {os.strerror(code)}", lacked_memory=True)


async def test_a_start_that_lacks_memory_is_tried_again(
    agent: Agent, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "START_PAUSES_SECONDS", (0.0, 0.0))
    stream = await controller.welcomed()
    agent.runner.refusals = [lacking(errno.ENOMEM), lacking(errno.ENOBUFS)]
    stream.send(assign(1))
    (report,) = await stream.until_reports(1)
    assert report.HasField("started")


@pytest.mark.parametrize(("code", "tries"), [(errno.ENOMEM, 3), (errno.ETIMEDOUT, 1)])
async def test_a_start_that_lacks_memory_for_long_is_told_as_no_fault_of_the_task(
    agent: Agent,
    controller: FakeController,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    tries: int,
) -> None:
    monkeypatch.setattr(attempts_module, "START_PAUSES_SECONDS", (0.0, 0.0))
    stream = await controller.welcomed()
    agent.runner.refusals = [lacking(code) for _ in range(10)]
    stream.send(assign(1))
    end = await stream.until(lambda: ended(stream, 1))
    assert end.start_error == f"exec true: {os.strerror(code)}"
    assert end.oom_cause == types_pb2.OOM_CAUSE_BYSTANDER
    assert len(agent.runner.refusals) == 10 - tries


async def test_a_start_that_is_to_be_stopped_is_not_tried_again(
    agent: Agent, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "START_PAUSES_SECONDS", (0.1,))
    stream = await controller.welcomed()
    agent.runner.refusals = [lacking(errno.ENOMEM)]
    stream.send(assign(1))
    await until(lambda: not agent.runner.refusals)
    stream.send(stop(1, 0.05))
    end = await stream.until(lambda: ended(stream, 1))
    assert (end.stopped, end.HasField("started_at")) == (True, False)
    assert agent.runner.launches == {}


async def test_a_memory_kill_is_told_with_its_cause_and_counted_where_it_is_the_nodes(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1), assign(2))
    await stream.until_reports(2)
    agent.runner.end((1, 1), signal=9, oom_kills=1)
    end = await stream.until(lambda: ended(stream, 1))
    assert end.oom_cause == types_pb2.OOM_CAUSE_OWN_LIMIT
    agent.runner.end((2, 1), signal=9, oom_kills=2, own_limit=False)
    end = await stream.until(lambda: ended(stream, 2))
    assert end.oom_cause == types_pb2.OOM_CAUSE_BYSTANDER
    # Both are told of by now, so that a kill at a limit would be counted as well.
    await stream.until(lambda: stream.samples() and stream.samples()[-1].oom_kills)
    assert stream.samples()[-1].oom_kills == 2


async def test_attempts_are_killed_when_the_lease_is_lost(
    agent: Agent, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "BACKOFF_MAX_SECONDS", 0.1)
    stream = await controller.welcomed(attempt_lease=duration(60))
    stream.send(assign(1))
    await stream.until_reports(1)
    await controller.stop()
    await settle()
    assert agent.runner.signals == []
    agent.boot_ns += 61 * 10**9
    async with asyncio.timeout(5):
        while not agent.runner.signals:
            await asyncio.sleep(0.01)
    await controller.start()
    stream = await controller.welcomed()
    end = await stream.until(lambda: ended(stream, 1))
    assert end.stopped


async def test_attempts_are_killed_when_the_machine_slept_longer_than_the_lease(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed(attempt_lease=duration(60))
    stream.send(assign(1))
    await stream.until_reports(1)
    agent.boot_ns += 61 * 10**9
    end = await stream.until(lambda: ended(stream, 1))
    assert end.stopped


async def test_an_attempt_that_waits_for_the_intake_is_ended_when_the_lease_is_lost(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed(attempt_lease=duration(60))
    agent.attempts.on_step(GuardStep(1, GuardStepKind.STOP_INTAKE, None, 90, 100))
    stream.send(assign(1))
    await until(lambda: agent.attempts.lifecycle.known() == (((1, 1), False),))
    agent.boot_ns += 61 * 10**9
    end = await stream.until(lambda: ended(stream, 1))
    assert end.stopped
    agent.attempts.on_step(GuardStep(2, GuardStepKind.OPEN_INTAKE, None, 50, 100))
    await settle()
    assert agent.runner.launches == {}


async def test_an_open_stream_keeps_the_lease(agent: Agent, controller: FakeController) -> None:
    stream = await controller.welcomed(attempt_lease=duration(60))
    stream.send(assign(1))
    await stream.until_reports(1)
    for _ in range(8):
        agent.boot_ns += 20 * 10**9
        await asyncio.sleep(0.07)
    assert agent.runner.signals == []


async def test_a_peer_that_answers_no_ping_is_noticed_as_the_lease_counts_on() -> None:
    options = dict(connection_module.CHANNEL_OPTIONS)
    noticed_ms = options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"]
    assert noticed_ms * 1_000_000 == connection_module.KEEPALIVE_NS
    hundredth = [(name, value // 100 if name.endswith("_ms") else value)
                 for name, value in options.items()]  # fmt: skip

    gone = asyncio.Event()

    async def be_mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\4\0\0\0\0\0" + b"\0\0\0\4\1\0\0\0\0")  # SETTINGS, and ACK
        with contextlib.suppress(ConnectionError):
            while await reader.read(4_096):
                pass  # a process that hangs, while its machine goes on taking what comes
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(be_mute, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    async with server, grpc.aio.insecure_channel(address, hundredth) as channel:
        call: Any = channel.stream_stream(connection_module.CONNECT)()
        await call.write(b"hello")
        async with asyncio.timeout(5):
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
    await asyncio.wait_for(gone.wait(), 5)


async def test_what_the_welcome_forgets_is_killed_without_a_report(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1))
    await stream.until_reports(1)
    stream.end()
    await controller.welcomed(
        acknowledged_sequence=1, forget=[agent_pb2.KnownAttempt(task_id=1, attempt=1)]
    )
    await until(lambda: agent.attempts.lifecycle.known() == ())
    assert agent.runner.signals == [("kill", (1, 1))]


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT]
)
async def test_a_controller_that_can_never_take_the_agent_ends_it(
    agent: Agent, controller: FakeController, code: grpc.StatusCode
) -> None:
    stream = await controller.stream()
    stream.end(code, "the agent speaks protocol 1, the controller 2")
    async with asyncio.timeout(5):
        with pytest.raises(AgentRefused, match="the agent speaks protocol 1"):
            await agent.running


async def test_another_protocol_in_the_welcome_ends_the_agent(
    agent: Agent, controller: FakeController
) -> None:
    await controller.welcomed(protocol_version=2)
    async with asyncio.timeout(5):
        with pytest.raises(AgentRefused, match="the controller speaks protocol 2"):
            await agent.running


async def test_a_welcome_agent_outlives_a_refused_message(
    agent: Agent, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "BACKOFF_MAX_SECONDS", 0.05)
    stream = await controller.welcomed()
    await stream.until_samples(1)
    stream.end(grpc.StatusCode.INVALID_ARGUMENT, "a sample cannot be")
    await (await controller.welcomed()).until_samples(1)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT]
)
async def test_a_welcome_agent_outlives_a_refused_hello_with_its_tasks(
    agent: Agent,
    controller: FakeController,
    monkeypatch: pytest.MonkeyPatch,
    code: grpc.StatusCode,
) -> None:
    monkeypatch.setattr(connection_module, "BACKOFF_MAX_SECONDS", 0.05)
    stream = await controller.welcomed()
    stream.send(assign(1))
    await stream.until_reports(1)
    stream.end(grpc.StatusCode.UNAVAILABLE, "the controller is shutting down")
    (await controller.stream()).end(code, "this cannot be")
    await controller.welcomed(protocol_version=2)
    stream = await controller.welcomed()
    assert [(known.task_id, known.ended) for known in stream.hello().attempts] == [(1, False)]
    assert agent.runner.signals == []


async def test_a_start_that_fails_unforeseen_is_an_end_too(
    agent: Agent, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(launch: Launch) -> int:
        raise UnicodeEncodeError("latin-1", launch.argv[0], 0, 1, "ordinal not in range(256)")

    monkeypatch.setattr(agent.runner, "start", start)
    stream = await controller.welcomed()
    stream.send(assign(1))
    (report,) = await stream.until_reports(1)
    assert "ordinal not in range" in report.ended.start_error


async def test_a_name_that_is_taken_is_asked_for_slowly(
    agent: Agent,
    controller: FakeController,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(connection_module, "BACKOFF_MAX_SECONDS", 0.2)
    (await controller.stream()).end(grpc.StatusCode.ALREADY_EXISTS, "node n1 is taken")
    began = asyncio.get_running_loop().time()
    await controller.welcomed()
    assert asyncio.get_running_loop().time() - began >= 0.15
    assert "node n1 is taken" in caplog.text


async def test_an_absent_controller_is_tried_again_until_it_comes(
    controller: FakeController, tmp_path: Path
) -> None:
    await controller.stop()
    agent = Agent(controller, tmp_path)
    await asyncio.sleep(0.3)
    assert not agent.running.done()
    await controller.start()
    await (await controller.welcomed()).until_samples(1)
    await agent.crash()


async def test_nonsense_ends_the_stream_and_not_the_agent(
    agent: Agent, controller: FakeController
) -> None:
    for message in (assign(0), acknowledge(99), welcome()):
        stream = await controller.welcomed()
        await stream.until_samples(1)
        stream.send(message)
    await controller.welcomed()
    assert not agent.running.done()


async def test_new_output_is_streamed_by_offset(agent: Agent, controller: FakeController) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1))
    await stream.until_reports(1)
    path = Path(agent.runner.launches[1, 1].stderr_path)
    path.write_bytes(b"one")

    def chunks() -> list[agent_pb2.OutputChunk]:
        return [message.output for message in stream.received if message.HasField("output")]

    await stream.until(lambda: len(chunks()) == 1)
    with path.open("ab") as file:
        file.write(b"two")
    await stream.until(lambda: len(chunks()) == 2)
    assert [(c.stream, c.offset_bytes, c.data) for c in chunks()] == [
        (types_pb2.OUTPUT_STREAM_STDERR, 0, b"one"),
        (types_pb2.OUTPUT_STREAM_STDERR, 3, b"two"),
    ]


async def test_a_log_request_is_answered_from_the_file_also_after_the_end(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1))
    await stream.until_reports(1)
    Path(agent.runner.launches[1, 1].stdout_path).write_bytes(b"0123456789")
    agent.runner.end((1, 1), exit_code=0)
    await stream.until(lambda: ended(stream, 1))
    for number, (task_id, offset, length) in enumerate([(1, 2, 3), (1, -1, 0), (9, 0, 0)], 1):
        stream.send(
            agent_pb2.ControllerMessage(
                read_log=agent_pb2.ReadLog(
                    request_id=number,
                    task_id=task_id,
                    attempt=1,
                    stream=types_pb2.OUTPUT_STREAM_STDOUT,
                    offset_bytes=offset,
                    length_bytes=length,
                )
            )
        )

    def answers() -> list[agent_pb2.LogChunk]:
        return [message.log for message in stream.received if message.HasField("log")]

    await stream.until(lambda: len(answers()) == 3)
    part, whole, missing = answers()
    assert (part.offset_bytes, part.data, part.end) == (2, b"234", False)
    assert (whole.offset_bytes, whole.data, whole.end) == (0, b"0123456789", True)
    assert missing.error == "this node keeps no output of task 9 attempt 1"


async def test_leaving_stops_tasks_delivers_their_ends_and_says_goodbye_last(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1))
    await stream.until_reports(1)
    leaving = asyncio.create_task(agent.connection.leave("told to end", 50_000_000, 5.0))
    await stream.until(lambda: ended(stream, 1))
    stream.send(acknowledge(2))
    await stream.until(lambda: stream.received[-1].HasField("goodbye"))
    stream.end()
    async with asyncio.timeout(5):
        await leaving
    assert agent.runner.signals == [("terminate", (1, 1)), ("kill", (1, 1))]
    assert (agent.work_dir / "reports" / "ends").stat().st_size == 0


async def test_leaving_without_a_controller_keeps_the_ends_on_disk(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1))
    await stream.until_reports(1)
    await controller.stop()
    await settle()
    async with asyncio.timeout(5):
        await agent.connection.leave("told to end", 50_000_000, 5.0)
    assert (agent.work_dir / "reports" / "ends").read_bytes().startswith(b"[1, 1, ")


async def test_what_is_of_another_cluster_is_ended_and_never_told_to_this_one(
    agent: Agent, controller: FakeController, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection_module, "BACKOFF_MAX_SECONDS", 0.05)
    stream = await controller.welcomed(cluster_id="old")
    stream.send(assign(1, 2))
    await stream.until_reports(2)
    stdout = Path(agent.runner.launches[1, 1].stdout_path)
    stdout.write_text("old")
    agent.runner.end((1, 1), exit_code=7)
    await stream.until_reports(3)
    stream.end()
    first = await controller.welcomed(cluster_id="new")
    hello = first.hello()
    assert (hello.cluster_id, len(hello.attempts)) == ("old", 2)
    following = await controller.welcomed(cluster_id="new")
    while following.hello().attempts:  # until the last process is gone
        following = await controller.welcomed(cluster_id="new")
    assert agent.runner.signals == [("kill", (2, 1))]
    following.send(assign(1))
    (report,) = await following.until_reports(1)
    assert (report.task_id, report.HasField("started")) == (1, True)
    assert first.reports() == []
    assert (tmp_path / "reports" / "cluster").read_text() == "new"
    assert agent.runner.launches[1, 1].stdout_path == str(stdout)
    assert not stdout.exists()
    assert [path.read_text() for path in tmp_path.glob("tasks-*/1/1/stdout")] == ["old"]
