"""What goes over the wire about memory: learned sizes, elastic limits, the guard, categories."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from mass.v1 import (
    agent_pb2,
    event_pb2,
    event_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    task_pb2,
    types_pb2,
)
from support.served import Served, hello, joined_ready, sample
from wire.test_agent_stream import reports
from wire.test_api import refused
from wire.test_nodes import until

from controller.core.events import Reconfigured
from controller.core.limits import GIB, MIB
from controller.core.model import MemoryLimits


def memory(served: Served) -> Any:
    return memory_pb2_grpc.MemoryServiceStub(served.channel)


async def submit(served: Served, **fields: Any) -> str:
    spec = types_pb2.TaskSpec(**{"command": ["true"], "name": "train", **fields})
    answer = await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec]))
    return str(answer.ids[0])


async def becomes(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.005)


async def explained(served: Served, task_id: str) -> Any:
    return await served.tasks.ExplainTask(task_pb2.ExplainTaskRequest(id=task_id))


async def be_strict(served: Served) -> None:
    limits = replace(served.cluster.limits, memory_limits=MemoryLimits.STRICT)
    now_ns = served.engine.now_ns()
    await served.engine.ask(Reconfigured(now_ns, served.cluster.rules, limits))


async def test_welcome_says_what_all_attempts_together_may_use(served: Served) -> None:
    stream = await served.connect(hello(memory_capacity_bytes=3 * GIB))
    assert (await stream.read()).welcome.memory_capacity_bytes == 3 * GIB
    other = await served.connect(hello(node_id="b", machine_id="b"))
    capacity = 8 * GIB - max(256 * MIB, int(8 * GIB * 0.05))
    assert (await other.read()).welcome.memory_capacity_bytes == capacity
    stream.cancel()
    other.cancel()


async def test_elastic_assignment_has_no_limit_but_its_users_own(served: Served) -> None:
    stream = await joined_ready(served)
    fields = {"priority": 7, "no_requeue": True, "oom_group": True, "input_bytes": 5}
    await submit(served, memory_request_bytes=2 * GIB, **fields)
    (first,) = (await stream.read()).assignments.assignments
    assert first.memory_elastic
    assert (first.memory_limit_bytes, first.priority) == (0, 7)
    assert (first.no_requeue, first.oom_group) == (True, True)
    await submit(served, memory_request_bytes=GIB, memory_limit_bytes=2 * GIB)
    (second,) = (await stream.read()).assignments.assignments
    assert (second.memory_elastic, second.memory_limit_bytes) == (True, 2 * GIB)
    await submit(served, memory_request_bytes=GIB, memory_exact=True)
    (third,) = (await stream.read()).assignments.assignments
    assert (third.memory_elastic, third.memory_limit_bytes) == (False, GIB)
    stream.cancel()


async def test_category_is_learned_and_told(served: Served) -> None:
    stream = await joined_ready(served)
    await be_strict(served)
    unknown = await refused(memory(served).GetCategory(memory_pb2.GetCategoryRequest(name="train")))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    for sequence in range(1, 5):
        task_id = await submit(served)
        (assignment,) = (await stream.read()).assignments.assignments
        ended = agent_pb2.AttemptEnded(exit_code=0, memory_peak_bytes=2 * GIB)
        ended.started_at.GetCurrentTime()
        ended.ended_at.GetCurrentTime()
        await stream.write(
            reports(
                agent_pb2.Report(sequence=sequence, task_id=int(task_id), attempt=1, ended=ended)
            )
        )
        assert (await stream.read()).acknowledgement.sequence == sequence
    answer = await memory(served).GetCategory(memory_pb2.GetCategoryRequest(name="train"))
    category = answer.category
    assert (category.succeeded, category.failed) == (4, 0)
    assert abs(category.memory_peak_median_bytes - 2 * GIB) <= 2
    assert abs(category.memory_size_bytes - 2 * GIB) <= 0.3 * 2 * GIB
    assert "4 runs" in category.memory_reason
    listed = await memory(served).ListCategories(memory_pb2.ListCategoriesRequest())
    assert list(listed.categories) == [category]
    task_id = await submit(served)
    (assignment,) = (await stream.read()).assignments.assignments
    assert assignment.memory_request_bytes == assignment.memory_limit_bytes
    assert assignment.memory_request_bytes == category.memory_size_bytes
    why = await explained(served, task_id)
    assert why.task.memory_auto
    assert any("4 runs" in sentence for sentence in why.sentences)
    stream.cancel()


async def test_categories_are_listed_in_pages(served: Served) -> None:
    stream = await joined_ready(served)
    for sequence, name in enumerate(("c", "a", "b"), start=1):
        task_id = await submit(served, name=name)
        await stream.read()
        ended = agent_pb2.AttemptEnded(exit_code=1)
        report = agent_pb2.Report(sequence=sequence, task_id=int(task_id), attempt=1, ended=ended)
        await stream.write(reports(report))
        await stream.read()
    request = memory_pb2.ListCategoriesRequest(page_size=2)
    first = await memory(served).ListCategories(request)
    assert [one.name for one in first.categories] == ["a", "b"]
    request.page_token = first.next_page_token
    second = await memory(served).ListCategories(request)
    assert [one.name for one in second.categories] == ["c"]
    assert second.next_page_token == ""
    assert second.categories[0].failed == 1
    stream.cancel()


def step(kind: int, **fields: Any) -> agent_pb2.AgentMessage:
    good = {
        "taken_at_unix_ns": 1_000_000_000,
        "kind": kind,
        "memory_used_bytes": 3 * GIB,
        "memory_limit_bytes": 4 * GIB,
        "memory_growth_bytes_per_second": float(GIB),
        "seconds_to_full": 1.0,
        "reason": "it was\nthe youngest",
    }
    batch = agent_pb2.GuardStepBatch(steps=[agent_pb2.GuardStep(**{**good, **fields})])
    return agent_pb2.AgentMessage(guard_steps=batch)


async def test_steps_of_a_guard_are_told_with_their_numbers(served: Served) -> None:
    stream = await joined_ready(served)
    task_id = await submit(served, memory_request_bytes=GIB)
    await stream.read()
    kill = agent_pb2.GUARD_STEP_KIND_KILL
    await stream.write(step(kill, task_id=int(task_id), attempt=1, task_memory_used_bytes=GIB))
    text = (
        f"KILL at 3 GiB of 4 GiB, growing by 1 GiB/s, full in 1.0 s; task {task_id} attempt 1"
        " uses 1 GiB (it was the youngest)"
    )

    async def told() -> bool:
        sentences = (await explained(served, task_id)).sentences
        return f"00:00:01.000Z  guard: {text}" in sentences

    await becomes(told)
    nodes: Any = node_pb2_grpc.NodeServiceStub(served.channel)
    node = (await nodes.GetNode(node_pb2.GetNodeRequest(id="node-1"))).node
    assert list(node.guard_steps) == [f"1970-01-01T00:00:01Z {text}"]
    events: Any = event_pb2_grpc.EventServiceStub(served.channel)
    call = events.WatchEvents(event_pb2.WatchEventsRequest(last=1))
    (event,) = [answer.event async for answer in call]
    assert (event.kind, event.text) == ("GUARD", f"guard of node node-1: {text}")
    assert event.details["task_memory_used_bytes"] == str(GIB)
    stream.cancel()


BAD_STEPS: list[tuple[dict[str, Any], str]] = [
    ({"kind": 0}, "guard_steps.kind 0 is none"),
    ({"task_id": -1}, "guard_steps.task_id is -1"),
    ({"memory_used_bytes": -1}, "guard_steps.memory_used_bytes is -1"),
    ({"seconds_to_full": float("nan")}, "guard_steps.seconds_to_full is nan"),
]


@pytest.mark.parametrize(("fields", "words"), BAD_STEPS)
async def test_bad_step_of_a_guard_ends_the_stream(
    served: Served, fields: dict[str, Any], words: str
) -> None:
    stream = await served.join()
    await stream.write(step(**{"kind": agent_pb2.GUARD_STEP_KIND_KILL, **fields}))
    refusal = await stream.refusal()
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in refusal.message


async def test_node_whose_guard_stops_intake_gets_no_new_task(served: Served) -> None:
    stream = await joined_ready(served)
    await stream.write(sample(taken_at_unix_ns=2, intake_stopped=True))
    await stream.write(step(agent_pb2.GUARD_STEP_KIND_STOP_INTAKE))
    await until(lambda: bool(served.cluster.table.intake_stopped[0]))
    task_id = await submit(served, memory_request_bytes=GIB)

    async def waits() -> bool:
        why = await explained(served, task_id)
        refusal = why.refusals[0] if why.refusals else task_pb2.NodeRefusal()
        codes = {str(why.task.reason_code), str(refusal.reason_code)}
        return codes == {"INTAKE_STOPPED"}

    await becomes(waits)
    await stream.write(sample(taken_at_unix_ns=3))
    assert (await stream.read()).assignments.assignments[0].task_id == int(task_id)
    stream.cancel()
