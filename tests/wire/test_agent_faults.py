"""Agents whose streams break at bad moments, and what is too large to be said at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest
from support.builders import spec
from support.served import Served, hello
from support.stores import MemoryStore

from agent.connection import MESSAGE_BYTES_MAX
from controller.core.limits import DEFAULT_LIMITS, KIB
from controller.core.model import Task, TaskState
from controller.service import agents
from controller.wire import assignments

SECONDS_MAX = 5.0


def test_many_large_tasks_fit_into_what_an_agent_takes() -> None:
    large = replace(spec("1MiB"), environment={"A": "x" * 120 * KIB})
    tasks = [Task(number, large, "ada", TaskState.ASSIGNED, 1) for number in range(1, 201)]
    messages = assignments(tasks, DEFAULT_LIMITS)
    batches = [message.assignments.assignments for message in messages]
    assert [one.task_id for batch in batches for one in batch] == list(range(1, 201))
    assert max(message.ByteSize() for message in messages) < MESSAGE_BYTES_MAX
    assert len(assignments(tasks[:10], DEFAULT_LIMITS)) == 1


async def test_stream_that_breaks_while_its_hello_is_saved_does_not_stay_open(
    served: Served,
) -> None:
    (await served.join()).cancel()
    record, store = served.cluster.nodes["node-1"], served.engine.store
    assert isinstance(store, MemoryStore)
    async with asyncio.timeout(SECONDS_MAX):
        while record.stream is not None:
            await asyncio.sleep(0.001)
        store.gate.clear()
        second = await served.connect(hello())
        while record.stream is None:
            await asyncio.sleep(0.001)
        second.cancel()
        await asyncio.sleep(0.05)  # the controller hears of it
        store.gate.set()
        while record.stream is not None:
            await asyncio.sleep(0.001)


async def test_late_hello_is_an_agent_that_may_come_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "HELLO_S", 0.05)
    refusal = await (await served.connect()).refusal()
    assert refusal.code is grpc.StatusCode.UNAVAILABLE, refusal
    assert "no hello came within" in refusal.message
