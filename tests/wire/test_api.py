"""What programs may ask: each refusal has a status, a reason, and names value and bound."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from mass.v1 import (
    alert_pb2,
    alert_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    rule_pb2,
    rule_pb2_grpc,
    task_pb2,
    types_pb2,
)
from support.served import Refusal, Served, info_of, sample

from controller.core.limits import GIB, MIB

BAD_SPECS: list[tuple[dict[str, Any], str]] = [
    ({"command": []}, "the command is empty"),
    ({"command": [""]}, "the command is empty"),
    ({"command": ["a\0b"]}, "the command has a NUL character"),
    ({"command": ["x" * 140_000]}, "command has 136.7 KiB; the bound is 128 KiB"),
    ({"memory_request_bytes": -1}, "mem is -1 B; it must be 0 B to 1 PiB"),
    ({"memory_request_bytes": 1 << 60}, "mem is 1024 PiB; it must be 0 B to 1 PiB"),
    ({"memory_limit_bytes": -1}, "mem-limit is -1 B"),
    (
        {"memory_request_bytes": 2 * GIB, "memory_limit_bytes": GIB},
        "mem-limit 1 GiB is below mem 2 GiB",
    ),
    ({"cpus": -1}, "cpus is -1; it must be above 0, at most 4096"),
    ({"cpus": math.nan}, "cpus is nan"),
    ({"cpus": 5_000}, "cpus is 5000"),
    ({"priority": 1_000_001}, "priority is 1000001; it must be -1000000 to 1000000"),
    ({"priority": -(1 << 31)}, "priority is -2147483648"),
    ({"retries": -1}, "retries is -1; it must be 0 to 100"),
    ({"retries": 101}, "retries is 101"),
    ({"time_limit": Duration()}, "time_limit is 0 s; it must be above 0, at most 315360000 s"),
    ({"time_limit": Duration(seconds=-5)}, "time_limit is -5 s"),
    ({"time_limit": Duration(seconds=1 << 62)}, "time_limit is 4.61169e+18 s"),
    ({"environment": {"MASS_TASK_ID": "1"}}, "variable 'MASS_TASK_ID' begins with MASS_"),
    ({"environment": {"": "1"}}, "environment variable '' cannot be set"),
    ({"environment": {"A=B": "1"}}, "environment variable 'A=B' cannot be set"),
    ({"environment": {"A": "x" * 140_000}}, "environment has 136.7 KiB; the bound is 128 KiB"),
    ({"name": "x" * 201}, "must be at most 200 printable characters"),
    ({"name": "a\nb"}, "must be at most 200 printable characters"),
    ({"category": "\x1b[31m"}, "category"),
    ({"working_directory": "relative"}, "cwd 'relative' is no absolute path"),
    ({"working_directory": "/a\0b"}, "is no absolute path"),
]

BAD_CALLS: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("GetTask", task_pb2.GetTaskRequest(id="1"), grpc.StatusCode.NOT_FOUND, "no task has the id 1"),
    ("GetTask", task_pb2.GetTaskRequest(id=""), grpc.StatusCode.INVALID_ARGUMENT, "task id ''"),
    ("GetTask", task_pb2.GetTaskRequest(id="-1"), grpc.StatusCode.INVALID_ARGUMENT, "task id '-1'"),
    ("GetTask", task_pb2.GetTaskRequest(id="9" * 30), grpc.StatusCode.INVALID_ARGUMENT, "task id"),
    (
        "GetTask",
        task_pb2.GetTaskRequest(id="0" * 19 + "1" + "9" * 30),
        grpc.StatusCode.INVALID_ARGUMENT,
        "is no integer from 1",
    ),
    ("ExplainTask", task_pb2.ExplainTaskRequest(id="7"), grpc.StatusCode.NOT_FOUND, "the id 7"),
    (
        "ListTasks",
        task_pb2.ListTasksRequest(page_token="abc"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "page_token 'abc' is none of this list's",
    ),
    (
        "ListTasks",
        task_pb2.ListTasksRequest(page_size=-1),
        grpc.StatusCode.INVALID_ARGUMENT,
        "page_size is -1; it must be 0 or more",
    ),
    (
        "ListTasks",
        task_pb2.ListTasksRequest(states=[99]),  # type: ignore[list-item]
        grpc.StatusCode.INVALID_ARGUMENT,
        "states has 99, which is no task state",
    ),
    (
        "ListTasks",
        task_pb2.ListTasksRequest(states=["TASK_STATE_UNSPECIFIED"]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "states has 0, which is no task state",
    ),
    (
        "CancelTasks",
        task_pb2.CancelTasksRequest(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "0 task ids in one call; it takes 1 to 10000",
    ),
    (
        "CancelTasks",
        task_pb2.CancelTasksRequest(ids=["12"]),
        grpc.StatusCode.NOT_FOUND,
        "no task has the id 12",
    ),
    (
        "SubmitTasks",
        task_pb2.SubmitTasksRequest(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "0 tasks in one call; it takes 1 to 10000",
    ),
    (
        "SubmitTasks",
        task_pb2.SubmitTasksRequest(tasks=[types_pb2.TaskSpec(command=["a"])] * 10_001),
        grpc.StatusCode.INVALID_ARGUMENT,
        "10001 tasks in one call; it takes 1 to 10000",
    ),
    (
        "SubmitTasks",
        task_pb2.SubmitTasksRequest(request_id="x" * 65, tasks=[types_pb2.TaskSpec(command=["a"])]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "request_id has 65 characters; the bound is 64",
    ),
    (
        "SubmitTasks",
        task_pb2.SubmitTasksRequest(user="x" * 300, tasks=[types_pb2.TaskSpec(command=["a"])]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "user has more than 200 characters",
    ),
    (
        "SubmitTasks",
        task_pb2.SubmitTasksRequest(
            tasks=[types_pb2.TaskSpec(command=["a"]), types_pb2.TaskSpec()]
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "task 2 of 2: the command is empty",
    ),
]

REASONS = {
    grpc.StatusCode.INVALID_ARGUMENT: "INVALID_REQUEST",
    grpc.StatusCode.NOT_FOUND: "NOT_FOUND",
}


async def refused(call: Any) -> Refusal:
    """Return the status of a call, or of a stream, that must be refused."""
    try:
        if hasattr(call, "__aiter__"):
            async for part in call:
                raise AssertionError(f"nothing was refused, but {part} came")
        else:
            raise AssertionError(f"nothing was refused, but {await call} returned")
    except grpc.aio.AioRpcError as error:
        metadata: Any = error.trailing_metadata() or ()
        return Refusal(error.code(), error.details() or "", info_of(metadata))
    raise AssertionError("nothing was refused, and nothing came")


async def assert_serves(served: Served) -> None:
    """The controller accepts a good task, as its first."""
    spec = types_pb2.TaskSpec(command=["true"])
    answer = await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec]))
    assert list(answer.ids) == ["1"]


@pytest.mark.parametrize(("fields", "words"), BAD_SPECS)
async def test_bad_task_is_refused_by_its_field(
    served: Served, fields: dict[str, Any], words: str
) -> None:
    spec = types_pb2.TaskSpec(**{"command": ["true"], **fields})
    refusal = await refused(served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec])))
    assert (refusal.code, refusal.reason, refusal.domain) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        "mass",
    )
    assert words in refusal.message
    await assert_serves(served)


@pytest.mark.parametrize(("method", "request_", "code", "words"), BAD_CALLS)
async def test_bad_call_is_refused_with_its_reason(
    served: Served, method: str, request_: Any, code: grpc.StatusCode, words: str
) -> None:
    refusal = await refused(getattr(served.tasks, method)(request_))
    assert (refusal.code, refusal.reason, refusal.domain) == (code, REASONS[code], "mass"), refusal
    assert words in refusal.message
    await assert_serves(served)


async def test_streams_of_unknown_tasks_and_attempts_are_refused(served: Served) -> None:
    tasks = served.tasks
    assert (await refused(tasks.WatchTasks(task_pb2.WatchTasksRequest(ids=["3"])))).details == {
        "task": "3"
    }
    refusal = await refused(tasks.ReadTaskLog(task_pb2.ReadTaskLogRequest(id="3")))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    await assert_serves(served)
    request = task_pb2.ReadTaskLogRequest(id="1", attempt=4)
    assert (
        "attempt is 4; task 1 has had 0 attempts"
        in (await refused(tasks.ReadTaskLog(request))).message
    )
    request = task_pb2.ReadTaskLogRequest(id="1", tail_bytes=-1)
    assert (
        "tail_bytes is -1; it must be 0 to 65536"
        in (await refused(tasks.ReadTaskLog(request))).message
    )
    cancel = task_pb2.CancelTasksRequest(ids=["1"], grace=Duration(seconds=4_000))
    assert (
        "grace is 4000 s; it must be 0 to 3600 s"
        in (await refused(tasks.CancelTasks(cancel))).message
    )
    answer = await tasks.CancelTasks(task_pb2.CancelTasksRequest(ids=["1", "1"]))
    assert [task.state for task in answer.tasks] == [types_pb2.TASK_STATE_CANCELLED]


async def test_unknown_node_and_bad_pages_are_refused(served: Served) -> None:
    nodes: Any = node_pb2_grpc.NodeServiceStub(served.channel)
    refusal = await refused(nodes.GetNode(node_pb2.GetNodeRequest(id="nobody")))
    assert (refusal.code, refusal.details) == (grpc.StatusCode.NOT_FOUND, {"node": "nobody"})
    refusal = await refused(nodes.CordonNode(node_pb2.CordonNodeRequest(id="nobody")))
    assert refusal.message == "no node is called 'nobody'"
    request = node_pb2.CordonNodeRequest(id="nobody", reason="x" * 501)
    assert (
        "reason has 501 characters; the bound is 500"
        in (await refused(nodes.CordonNode(request))).message
    )
    rules: Any = rule_pb2_grpc.RuleServiceStub(served.channel)
    for token in ("x", "-1", "1" * 20):
        request_rules = rule_pb2.ListRulesRequest(page_token=token)
        refusal = await refused(rules.ListRules(request_rules))
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"page_token '{token}' is none of this list's" in refusal.message
    await assert_serves(served)


async def test_open_tasks_beyond_the_bound_are_refused_whole(served: Served) -> None:
    served.cluster.limits = replace(served.cluster.limits, tasks_open_max=10)
    spec = types_pb2.TaskSpec(command=["true"])
    await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec] * 9))
    refusal = await refused(
        served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec, spec]))
    )
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (refusal.code, refusal.reason) == (code, "LIMIT_REACHED")
    assert refusal.message == "2 more tasks would make 11 open tasks; the bound is 10"
    assert refusal.details == {"open_tasks": "9", "tasks_open_max": "10"}
    answer = await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec]))
    assert list(answer.ids) == ["10"]


async def test_defaults_are_filled_in_and_shown(served: Served) -> None:
    specs = [
        types_pb2.TaskSpec(command=["/usr/bin/sort", "-n"]),
        types_pb2.TaskSpec(command=["a"], memory_limit_bytes=256 * MIB, name="the name"),
    ]
    await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=specs, user="ada"))
    first = (await served.tasks.GetTask(task_pb2.GetTaskRequest(id="1"))).task
    assert (first.spec.name, first.spec.category, first.spec.cpus) == ("sort", "sort", 1.0)
    assert first.spec.memory_request_bytes == GIB
    assert (first.user, first.state) == ("ada", types_pb2.TASK_STATE_PENDING)
    second = (await served.tasks.GetTask(task_pb2.GetTaskRequest(id="2"))).task
    assert (second.spec.name, second.spec.category) == ("the name", "the name")
    assert second.spec.memory_request_bytes == second.spec.memory_limit_bytes == 256 * MIB


async def test_task_is_shown_only_once_it_is_saved(served: Served) -> None:
    store: Any = served.engine.store
    spec = types_pb2.TaskSpec(command=["true"])
    store.gate.clear()
    submitted = asyncio.ensure_future(
        served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec]))
    )
    while 1 not in served.cluster.tasks:
        await asyncio.sleep(0.001)
    calls = [
        asyncio.ensure_future(call)
        for call in (
            served.tasks.GetTask(task_pb2.GetTaskRequest(id="1")),
            served.tasks.ListTasks(task_pb2.ListTasksRequest()),
            served.tasks.ExplainTask(task_pb2.ExplainTaskRequest(id="1")),
        )
    ]
    done, _ = await asyncio.wait(calls, timeout=0.1)
    assert done == set()
    store.gate.set()
    assert list((await submitted).ids) == ["1"]
    assert [type(await call).__name__ for call in calls] == [
        "GetTaskResponse",
        "ListTasksResponse",
        "ExplainTaskResponse",
    ]


async def test_pages_hold_every_task_once_newest_first(served: Served) -> None:
    spec = types_pb2.TaskSpec(command=["true"])
    await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec] * 25))
    ids: list[str] = []
    request = task_pb2.ListTasksRequest(page_size=10)
    for length in (10, 10, 5):
        page = await served.tasks.ListTasks(request)
        assert len(page.tasks) == length
        ids += [task.id for task in page.tasks]
        request.page_token = page.next_page_token
    assert request.page_token == ""
    assert ids == [str(number) for number in range(25, 0, -1)]


async def test_page_of_large_tasks_is_shorter_and_goes_on(served: Served) -> None:
    spec = types_pb2.TaskSpec(command=["true", "y" * 120_000], environment={"A": "x" * 120_000})
    await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec] * 20))
    ids: list[str] = []
    request = task_pb2.ListTasksRequest(page_size=1_000)
    while not ids or request.page_token:
        page = await served.tasks.ListTasks(request)
        ids += [task.id for task in page.tasks]
        request.page_token = page.next_page_token
    assert ids == [str(number) for number in range(20, 0, -1)]


async def test_watch_tells_each_change_until_all_have_ended(served: Served) -> None:
    spec = types_pb2.TaskSpec(command=["true"], memory_request_bytes=64 * MIB)
    await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec]))
    watch = served.tasks.WatchTasks(task_pb2.WatchTasksRequest(ids=["1"]))
    states = [(await watch.read()).task.state]
    stream = await served.join()
    await stream.write(sample())
    states.append((await watch.read()).task.state)
    await served.tasks.CancelTasks(task_pb2.CancelTasksRequest(ids=["1"]))
    states.append((await watch.read()).task.state)
    assert states == [
        types_pb2.TASK_STATE_PENDING,
        types_pb2.TASK_STATE_ASSIGNED,
        types_pb2.TASK_STATE_STOPPING,
    ]
    watch.cancel()
    ended = served.tasks.WatchTasks(task_pb2.WatchTasksRequest(ids=["1"]))
    assert (await asyncio.wait_for(ended.read(), 5)).task.id == "1"
    ended.cancel()


async def test_pool_rules_and_alerts_are_shown(served: Served) -> None:
    memory: Any = memory_pb2_grpc.MemoryServiceStub(served.channel)
    pool = (await memory.GetPool(memory_pb2.GetPoolRequest())).pool
    assert 0 < pool.used_bytes <= pool.peak_bytes <= pool.capacity_bytes
    assert pool.wrong_frees == pool.failures == 0
    rules: Any = rule_pb2_grpc.RuleServiceStub(served.channel)
    assert list((await rules.ListRules(rule_pb2.ListRulesRequest())).rules) == []
    alerts: Any = alert_pb2_grpc.AlertServiceStub(served.channel)
    assert list((await alerts.ListAlerts(alert_pb2.ListAlertsRequest())).alerts) == []
