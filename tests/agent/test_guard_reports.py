"""What the controller hears of the guard, and what the agent takes from it, over a real stream."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from mass.v1 import agent_pb2, types_pb2
from support.fake_controller import FakeController, Stream, assign, duration, stop
from support.lone_agent import Agent
from support.processes import until

from agent import connection as connection_module
from agent.attempt import GuardStep, GuardStepKind, Key
from agent.outbox import STEPS_MAX

KIB = 1 << 10


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "TICK_SECONDS_MAX", 0.05)
    monkeypatch.setattr(connection_module, "BACKOFF_MAX_SECONDS", 0.1)


def step(kind: GuardStepKind, key: Key | None = None, taken_at_ns: int = 5) -> GuardStep:
    return GuardStep(taken_at_ns, kind, key, 90, 100, 7.0, 0.5, reason="it must be")


def steps(stream: Stream) -> list[agent_pb2.GuardStep]:
    return [step for message in stream.received for step in message.guard_steps.steps]


async def started(agent: Agent, controller: FakeController, *task_ids: int) -> Stream:
    """Return the stream of an agent on which the tasks run."""
    stream = await controller.welcomed()
    stream.send(assign(*task_ids))
    await stream.until_reports(len(task_ids))
    return stream


async def end_of(stream: Stream, task_id: int) -> agent_pb2.AttemptEnded:
    def found() -> agent_pb2.AttemptEnded | None:
        ends = [r.ended for r in stream.reports() if r.task_id == task_id and r.HasField("ended")]
        return ends[0] if ends else None

    return await stream.until(found)


async def test_a_kill_of_the_guard_is_told_as_a_step_and_as_the_cause_of_the_end(
    agent: Agent, controller: FakeController
) -> None:
    stream = await started(agent, controller, 1)
    agent.attempts.on_step(step(GuardStepKind.KILL, (1, 1)))
    (told,) = await stream.until(lambda: steps(stream))
    assert (told.kind, told.task_id, told.attempt) == (agent_pb2.GUARD_STEP_KIND_KILL, 1, 1)
    end = await end_of(stream, 1)
    assert end.oom_cause == types_pb2.OOM_CAUSE_GUARD
    assert (end.guard, end.stopped) == (told, False)


async def test_a_step_brings_a_sample_of_how_the_node_is(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed(
        sampling=agent_pb2.Sampling(
            sample_interval=duration(60), heartbeat_interval=duration(3_600)
        )
    )
    await stream.until_samples(1)
    agent.attempts.on_step(step(GuardStepKind.STOP_INTAKE))
    await stream.until(lambda: stream.samples()[-1].intake_stopped)
    agent.attempts.on_step(step(GuardStepKind.OPEN_INTAKE))
    await stream.until(lambda: len(stream.samples()) == 3)
    assert not stream.samples()[-1].intake_stopped


async def test_a_closed_intake_starts_nothing_until_it_opens_and_what_waits_can_be_stopped(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    agent.attempts.on_step(step(GuardStepKind.STOP_INTAKE))
    stream.send(assign(3, 1, 2), stop(1, 0.0))
    assert (await end_of(stream, 1)).stopped
    assert agent.runner.launches == {}
    agent.attempts.on_step(step(GuardStepKind.OPEN_INTAKE))
    await stream.until_reports(3)
    assert list(agent.runner.launches) == [(3, 1), (2, 1)]


async def test_steps_while_the_controller_is_away_are_told_when_it_is_back_the_newest_win(
    agent: Agent, controller: FakeController, caplog: pytest.LogCaptureFixture
) -> None:
    await started(agent, controller, 1)
    await controller.stop()
    kinds = (GuardStepKind.FREEZE, GuardStepKind.THAW)
    for number in range(STEPS_MAX + 10):
        agent.attempts.on_step(step(kinds[number % 2], (1, 1), number))
    agent.attempts.on_step(step(GuardStepKind.KILL, (1, 1), STEPS_MAX + 10))
    await controller.start()
    stream = await controller.welcomed()
    await stream.until(lambda: len(steps(stream)) == STEPS_MAX)
    told = [each.taken_at_unix_ns for each in steps(stream)]
    assert told == list(range(11, STEPS_MAX + 11))
    assert caplog.text.count("steps of the guard never sent") == 1
    assert "never sent count=11" in caplog.text
    assert (await end_of(stream, 1)).oom_cause == types_pb2.OOM_CAUSE_GUARD


@pytest.mark.parametrize("goes_on", [GuardStepKind.THAW, GuardStepKind.ASK])
async def test_time_in_which_the_guard_holds_a_task_is_not_of_its_time_limit(
    agent: Agent, controller: FakeController, goes_on: GuardStepKind
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1, time_limit=duration(0.5)))
    await stream.until_reports(1)
    agent.attempts.on_step(step(GuardStepKind.FREEZE, (1, 1)))
    await asyncio.sleep(0.6)
    assert agent.runner.signals == []
    agent.attempts.on_step(step(goes_on, (1, 1)))
    assert (await end_of(stream, 1)).timed_out


async def test_a_time_limit_does_not_go_on_after_the_end_of_what_the_guard_held(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    stream.send(assign(1, time_limit=duration(0.2)))
    await stream.until_reports(1)
    agent.attempts.on_step(step(GuardStepKind.FREEZE, (1, 1)))
    stream.send(stop(1, 60))
    await until(lambda: agent.runner.signals == [("terminate", (1, 1))])
    agent.attempts.on_step(step(GuardStepKind.THAW, (1, 1)))
    await asyncio.sleep(0.3)
    agent.runner.end((1, 1), exit_code=0)
    end = await end_of(stream, 1)
    assert (end.stopped, end.timed_out) == (True, False)


async def test_an_end_by_the_guard_survives_the_crash_of_its_agent(
    controller: FakeController, tmp_path: Path
) -> None:
    first = Agent(controller, tmp_path)
    await started(first, controller, 1)
    await controller.stop()
    first.attempts.on_step(step(GuardStepKind.KILL, (1, 1)))
    first.runner.end((1, 1), signal=9)
    await first.crash()
    await controller.start()
    second = Agent(controller, tmp_path)
    end = await end_of(await controller.welcomed(), 1)
    assert end.oom_cause == types_pb2.OOM_CAUSE_GUARD
    assert (end.guard.kind, end.guard.memory_used_bytes) == (agent_pb2.GUARD_STEP_KIND_KILL, 90)
    await second.crash()


async def test_a_signal_from_outside_counts_as_a_memory_killers_only_when_memory_was_short(
    agent: Agent, controller: FakeController
) -> None:
    stream = await started(agent, controller, 1, 2)
    agent.runner.end((1, 1), signal=9)
    assert (await end_of(stream, 1)).oom_cause == types_pb2.OOM_CAUSE_UNSPECIFIED
    agent.attempts.memory_was_short = lambda: True
    agent.runner.end((2, 1), signal=9)
    assert (await end_of(stream, 2)).oom_cause == types_pb2.OOM_CAUSE_OUTSIDE


async def test_the_capacity_of_the_welcome_is_held_and_none_leaves_it_as_it_is(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed(memory_capacity_bytes=512 * KIB)
    await stream.until_samples(1)
    assert agent.runner.capacity_bytes == 512 * KIB
    stream.end()
    await (await controller.welcomed()).until_samples(1)
    assert agent.runner.capacity_bytes == 512 * KIB


async def test_an_elastic_attempt_has_no_limit_but_the_users_own(
    agent: Agent, controller: FakeController
) -> None:
    stream = await controller.welcomed()
    elastic = {"memory_elastic": True, "memory_request_bytes": 7, "oom_group": True, "priority": 2}
    stream.send(assign(1, **elastic), assign(2, memory_limit_bytes=9, **elastic))
    await stream.until_reports(2)
    free, bounded = agent.runner.launches[1, 1], agent.runner.launches[2, 1]
    assert (free.memory_limit_bytes, bounded.memory_limit_bytes) == (None, 9)
    assert (free.memory_elastic, free.memory_request_bytes, free.priority) == (True, 7, 2)
    assert (free.oom_group, free.no_requeue) == (True, False)
    assert free.environment["MASS_MEM_LIMIT_BYTES"] == "0"
