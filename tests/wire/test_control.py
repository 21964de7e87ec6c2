"""What users do to tasks beside cancelling: plans, holds, pauses, priorities, and lists of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from mass.v1 import agent_pb2, task_pb2, types_pb2
from support.served import Served, Stream, joined_ready, sample
from wire.test_api import refused

from controller.core.events import TasksCancelled
from controller.core.limits import GIB, MIB
from controller.core.model import TaskState


def words(state: int) -> str:
    return str(types_pb2.TaskState.Name(state)).removeprefix("TASK_STATE_")


async def submit(served: Served, count: int = 1, user: str = "", **fields: Any) -> list[str]:
    spec = types_pb2.TaskSpec(**{"command": ["true"], "memory_request_bytes": 64 * MIB, **fields})
    request = task_pb2.SubmitTasksRequest(tasks=[spec] * count, user=user)
    return list((await served.tasks.SubmitTasks(request)).ids)


async def control(
    served: Served, action: str, *ids: str, priority: int = 0
) -> list[tuple[str, str]]:
    """Return the tasks' states, each with why the action does not apply."""
    answer = await served.tasks.ControlTasks(
        task_pb2.ControlTasksRequest(ids=ids, action=f"TASK_ACTION_{action}", priority=priority)
    )
    return [
        (words(task.state), why) for task, why in zip(answer.tasks, answer.refused, strict=True)
    ]


async def plan(served: Served, **fields: Any) -> task_pb2.PlanTaskResponse:
    spec = types_pb2.TaskSpec(**{"command": ["true"], **fields})
    answer = await served.tasks.PlanTask(task_pb2.PlanTaskRequest(task=spec))
    assert isinstance(answer, task_pb2.PlanTaskResponse)
    return answer


async def listed(served: Served, **fields: Any) -> list[str]:
    """Return the ids of all pages, two a page."""
    request = task_pb2.ListTasksRequest(page_size=2, **fields)
    ids: list[str] = []
    while not ids or request.page_token:
        page = await served.tasks.ListTasks(request)
        assert len(page.tasks) <= 2
        if not page.tasks:
            return ids
        ids += [task.id for task in page.tasks]
        request.page_token = page.next_page_token
    return ids


async def running(served: Served, stream: Stream, task_id: str) -> None:
    """Read the assignment of a task and report that it runs."""
    assignment = (await stream.read()).assignments.assignments[0]
    assert str(assignment.task_id) == task_id
    report = agent_pb2.Report(
        sequence=1, task_id=int(task_id), attempt=1, started=agent_pb2.AttemptStarted(pid=7)
    )
    await stream.write(agent_pb2.AgentMessage(reports=agent_pb2.ReportBatch(reports=[report])))
    assert (await stream.read()).acknowledgement.sequence == 1


# Plans.


async def test_plan_names_the_node_and_why_not_the_others_and_queues_nothing(
    served: Served,
) -> None:
    await joined_ready(served, node_id="large")
    await joined_ready(
        served, node_id="small", machine_id="other", memory_total_bytes=2 * GIB,
        memory=sample(memory_total_bytes=2 * GIB, memory_available_bytes=2 * GIB),
    )  # fmt: skip
    answer = await plan(served, memory_request_bytes=4 * GIB, memory_exact=True)
    assert (answer.node_id, answer.reason_code) == ("large", "")
    assert answer.reason.startswith("it can promise 6.6 GiB (")
    assert answer.reason.endswith("); it would get 4 GiB, as declared")
    ((node_id, code),) = [(one.node_id, one.reason_code) for one in answer.refusals]
    assert (node_id, code) == ("small", "TOO_SMALL")
    answer = await plan(served)
    assert "); it would get 341.3 MiB now, from default: nothing is declared" in answer.reason
    assert [(r.node_id, r.reason_code) for r in answer.refusals] == [("small", "LESS_SUITED")]
    assert (await plan(served, preference="PREFERENCE_PACK")).node_id == "small"
    assert await listed(served) == []
    assert await submit(served) == ["1"]


async def test_plan_says_why_a_task_would_wait(served: Served) -> None:
    await submit(served, hold=True)  # a cycle has run behind it
    answer = await plan(served)
    assert (answer.node_id, answer.reason_code) == ("", "NO_NODE_READY")
    await joined_ready(served)
    for fields, code, text in (
        ({"memory_request_bytes": 100 * GIB}, "NO_NODE_LARGE_ENOUGH", "asks 100 GiB"),
        (
            {"memory_request_bytes": 7 * GIB, "memory_exact": True},
            "NO_NODE_WITH_MEMORY",
            "the largest promise is 6.6",
        ),
        ({"cpus": 5}, "NO_NODE_WITH_THAT_MANY_CPUS", "asks 5 CPUs"),
        ({"gpus": 1}, "NO_NODE_WITH_THAT_MANY_GPUS", "asks 1 GPU"),
        ({"constraint": "disk=ssd"}, "NO_NODE_MATCHES", "disk=ssd"),
    ):
        answer = await plan(served, **fields)
        assert (answer.node_id, answer.reason_code) == ("", code)
        assert text in answer.reason
        assert [one.node_id for one in answer.refusals] == ["node-1"]


async def test_plan_says_what_comes_before_the_node(served: Served) -> None:
    await joined_ready(served)
    (first,) = await submit(served, hold=True)
    waits = [types_pb2.Dependency(task_id=first)]
    answer = await plan(served, after=waits)
    assert answer.node_id == "node-1"
    assert answer.reason.endswith(", once all that it waits for has ended")
    # A key is of a task beside it in a call that is not made.
    answer = await plan(served, after=[types_pb2.Dependency(key="prepare")], key="train")
    assert answer.reason.endswith(", once all that it waits for has ended")
    assert (await plan(served, hold=True)).reason.endswith(", once it is released")


async def test_plan_of_a_task_that_cannot_be_is_refused(served: Served) -> None:
    request = task_pb2.PlanTaskRequest(task=types_pb2.TaskSpec(command=["a"], cpus=-1))
    refusal = await refused(served.tasks.PlanTask(request))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    refusal = await refused(served.tasks.PlanTask(task_pb2.PlanTaskRequest()))
    assert refusal.message == "the command is empty"


# Control.


async def test_held_tasks_are_not_placed_until_they_are_released(served: Served) -> None:
    ids = await submit(served, 2)
    assert await control(served, "HOLD", *ids) == [("HELD", ""), ("HELD", "")]
    assert await control(served, "HOLD", "1") == [("HELD", "")]
    task = (await served.tasks.GetTask(task_pb2.GetTaskRequest(id="1"))).task
    assert (task.reason_code, task.reason) == ("HELD", "held by its user")
    stream = await joined_ready(served)
    assert await control(served, "RELEASE", "2") == [("ASSIGNED", "")]
    assignments = (await stream.read()).assignments.assignments
    assert [one.task_id for one in assignments] == [2]
    assert await control(served, "RELEASE", "1", "2") == [
        ("ASSIGNED", ""),
        ("ASSIGNED", "task 2 is ASSIGNED; only HELD ones can be released"),
    ]


async def test_paused_task_is_frozen_and_goes_on_when_it_is_resumed(served: Served) -> None:
    (task_id,) = await submit(served)
    assert await control(served, "PAUSE", task_id) == [
        ("PENDING", "task 1 is PENDING; only RUNNING ones can be paused")
    ]
    stream = await joined_ready(served)
    await running(served, stream, task_id)
    assert await control(served, "PAUSE", task_id) == [("PAUSED", "")]
    freeze = (await stream.read()).freeze
    assert (freeze.task_id, freeze.attempt, freeze.paused) == (1, 1, True)
    assert await control(served, "HOLD", task_id) == [
        ("PAUSED", "task 1 is PAUSED; only PENDING ones can be held")
    ]
    assert await control(served, "RESUME", task_id) == [("RUNNING", "")]
    assert not (await stream.read()).freeze.paused
    assert await control(served, "RESUME", task_id) == [("RUNNING", "")]


async def test_priority_decides_who_goes_first(served: Served) -> None:
    await submit(served, 2, memory_request_bytes=5 * GIB, memory_exact=True)
    assert await control(served, "PRIORITY", "2", priority=7) == [("PENDING", "")]
    task = (await served.tasks.GetTask(task_pb2.GetTaskRequest(id="2"))).task
    assert task.spec.priority == 7
    stream = await joined_ready(served)
    assert [t.task_id for t in (await stream.read()).assignments.assignments] == [2]


async def test_action_reaches_every_element_of_an_array_and_names_ended_ones(
    served: Served,
) -> None:
    array = types_pb2.ArraySpec(indexes="3,5,9")
    assert await submit(served, array=array) == ["1"]
    await served.tasks.CancelTasks(task_pb2.CancelTasksRequest(ids=["1_5"]))
    assert await control(served, "HOLD", "1") == [
        ("HELD", ""),
        ("CANCELLED", "task 1_5 has ended"),
        ("HELD", ""),
    ]
    assert await control(served, "PRIORITY", "1_5", priority=1) == [
        ("CANCELLED", "task 1_5 has ended")
    ]
    assert await control(served, "RELEASE", "1_9", "1_9") == [("PENDING", "")]


async def test_task_is_not_run_when_what_it_waits_for_fails_while_that_is_looked_up(
    served: Served,
) -> None:
    stream = await joined_ready(served)
    await submit(served, array=types_pb2.ArraySpec(indexes="1-2"), hold=True)
    await control(served, "RELEASE", "2")
    await running(served, stream, "2")
    end = agent_pb2.Report(
        sequence=2, task_id=2, attempt=1, ended=agent_pb2.AttemptEnded(exit_code=0)
    )
    await stream.write(agent_pb2.AgentMessage(reports=agent_pb2.ReportBatch(reports=[end])))
    assert (await stream.read()).acknowledgement.sequence == 2

    store: Any = served.engine.store
    store.gate.clear()
    before = asyncio.ensure_future(submit(served, hold=True))
    while 4 not in served.cluster.tasks:
        await asyncio.sleep(0.001)
    served.engine.post(TasksCancelled(served.engine.now_ns(), (3,), 0))  # for the next turn
    waits = [types_pb2.Dependency(task_id="1", kind=types_pb2.DEPENDENCY_KIND_OK)]
    late = asyncio.ensure_future(submit(served, after=waits))
    await asyncio.wait([late], timeout=0.1)
    store.gate.set()
    assert await before == ["4"]
    (task_id,) = await late
    task = (await served.tasks.GetTask(task_pb2.GetTaskRequest(id=task_id))).task
    assert (words(task.state), task.reason_code) == ("CANCELLED", "DEPENDENCY_NEVER_MET")


async def test_task_may_wait_for_many_of_which_some_end_during_each_look_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await submit(served, count=50, hold=True)
    left, look_up = iter(ids), served.engine.store.ended_states

    async def slow(thing_ids: Collection[int]) -> dict[int, frozenset[TaskState]]:
        found = await look_up(thing_ids)
        await served.engine.ask(TasksCancelled(served.engine.now_ns(), (int(next(left)),), 0))
        return found

    monkeypatch.setattr(served.engine.store, "ended_states", slow)
    waits = [types_pb2.Dependency(task_id=i, kind=types_pb2.DEPENDENCY_KIND_ANY) for i in ids]
    assert await submit(served, after=waits) == ["51"]


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"ids": ["1"]}, "INVALID_ARGUMENT", "action 0 is none that is known"),
        ({"ids": ["1"], "action": 77}, "INVALID_ARGUMENT", "action 77 is none that is known"),
        (
            {"ids": ["1"], "action": "TASK_ACTION_PRIORITY", "priority": 1_000_001},
            "INVALID_ARGUMENT",
            "priority is 1000001; it must be -1000000 to 1000000",
        ),
        (
            {"action": "TASK_ACTION_HOLD"},
            "INVALID_ARGUMENT",
            "0 task ids in one call; it takes 1 to 10000",
        ),
        (
            {"ids": ["x"], "action": "TASK_ACTION_HOLD"},
            "INVALID_ARGUMENT",
            "task id 'x' is no integer from 1",
        ),
        (
            {"ids": ["1", "2"], "action": "TASK_ACTION_HOLD"},
            "NOT_FOUND",
            "no task has the id 2",
        ),
        (
            {"ids": ["1_4"], "action": "TASK_ACTION_HOLD"},
            "NOT_FOUND",
            "no task has the id 1_4",
        ),
    ],
)
async def test_control_that_cannot_be_is_refused_whole(
    served: Served, fields: dict[str, Any], code: str, message: str
) -> None:
    await submit(served)
    refusal = await refused(served.tasks.ControlTasks(task_pb2.ControlTasksRequest(**fields)))
    assert (refusal.code.name, refusal.message) == (code, message)
    task = (await served.tasks.GetTask(task_pb2.GetTaskRequest(id="1"))).task
    assert task.state == types_pb2.TASK_STATE_PENDING


# Lists.


async def test_list_keeps_to_all_of_its_filters_on_every_page(served: Served) -> None:
    await submit(served, 3, "ada", name="train")  # 1 to 3
    await submit(served, 1, "bob", name="train")  # 4
    await submit(served, 1, "ada", array=types_pb2.ArraySpec(indexes="0-4"))  # 5; 6 to 10
    await submit(served, 2, "ada", name="train", hold=True)  # 11 and 12
    await served.tasks.CancelTasks(task_pb2.CancelTasksRequest(ids=["2", "7"]))
    assert await listed(served) == [str(n) for n in range(12, 0, -1) if n != 5]
    assert await listed(served, name="train") == ["12", "11", "4", "3", "2", "1"]
    assert await listed(served, user="bob") == ["4"]
    assert await listed(served, name="train", user="ada") == ["12", "11", "3", "2", "1"]
    assert await listed(served, array_id="5") == ["10", "9", "8", "7", "6"]
    assert await listed(served, array_id="5", states=["TASK_STATE_CANCELLED"]) == ["7"]
    states = ["TASK_STATE_CANCELLED", "TASK_STATE_HELD"]
    assert await listed(served, states=states) == ["12", "11", "7", "2"]
    assert await listed(served, states=states, name="train", user="ada") == ["12", "11", "2"]
    assert await listed(served, name="nobody") == []
    assert await listed(served, array_id="1") == []


async def test_list_begins_at_the_instant_that_is_asked_for(served: Served) -> None:
    ids = []
    for _ in range(3):
        ids += await submit(served)
    second = (await served.tasks.GetTask(task_pb2.GetTaskRequest(id=ids[1]))).task.submitted_at
    assert await listed(served, since=second) == ["3", "2"]
    later = Timestamp()
    later.FromNanoseconds(second.ToNanoseconds() + 3_600 * 10**9)
    assert await listed(served, since=later) == []
    # Instants that no store can hold are before or after everything.
    assert await listed(served, since=Timestamp(seconds=-(1 << 62))) == ["3", "2", "1"]
    assert await listed(served, since=Timestamp(seconds=1 << 62)) == []
    refusal = await refused(served.tasks.ListTasks(task_pb2.ListTasksRequest(array_id="1_2")))
    assert refusal.message == "task id '1_2' is no integer from 1"
