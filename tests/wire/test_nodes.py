"""Nodes that are emptied and forgotten, asked for by programs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from mass.v1 import agent_pb2, memory_pb2, memory_pb2_grpc, node_pb2, node_pb2_grpc, types_pb2
from support.served import Served, joined_ready
from wire.test_api import refused
from wire.test_control import running, submit

from controller.core.limits import GIB, MILLISECOND_NS
from controller.core.model import TaskState

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def nodes_of(served: Served) -> Any:
    return node_pb2_grpc.NodeServiceStub(served.channel)


async def scheduling(served: Served) -> types_pb2.Node:
    answer = await nodes_of(served).GetNode(node_pb2.GetNodeRequest(id="node-1"))
    assert isinstance(answer.node, types_pb2.Node)
    return answer.node


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def gone(served: Served, name: str = "node-1") -> None:
    """Wait until the controller has seen the end of the node's stream."""
    await until(lambda: served.cluster.nodes[name].stream is None)


async def test_node_without_tasks_is_drained_at_once(served: Served) -> None:
    await joined_ready(served)
    request = node_pb2.DrainNodeRequest(id="node-1", reason="new disk", user="ada")
    node = (await nodes_of(served).DrainNode(request)).node
    assert node.scheduling == types_pb2.SCHEDULING_DRAINED
    assert (node.scheduling_reason, node.scheduling_by) == ("new disk", "ada")
    assert not node.HasField("drain_deadline")
    uncordon = node_pb2.UncordonNodeRequest(id="node-1")
    node = (await nodes_of(served).UncordonNode(uncordon)).node
    assert (node.scheduling, node.scheduling_reason) == (types_pb2.SCHEDULING_ENABLED, "")


async def test_node_tells_how_it_holds_tasks_and_what_that_can(served: Served) -> None:
    await joined_ready(served, enforcement="cgroup2", capabilities=["psi", "freeze"])
    node = await scheduling(served)
    assert (node.enforcement, list(node.capabilities)) == ("cgroup2", ["psi", "freeze"])


async def test_drain_waits_for_tasks_and_ends_them_at_its_deadline(served: Served) -> None:
    stream = await joined_ready(served)
    (task_id,) = await submit(served)
    await running(served, stream, task_id)
    request = node_pb2.DrainNodeRequest(id="node-1")
    node = (await nodes_of(served).DrainNode(request)).node
    assert node.scheduling == types_pb2.SCHEDULING_DRAINING
    # Asked for again, with a deadline that is over at the next tick.
    request.deadline.FromNanoseconds(MILLISECOND_NS)
    node = (await nodes_of(served).DrainNode(request)).node
    assert node.HasField("drain_deadline")
    stop = (await stream.read()).stop
    assert (stop.task_id, stop.attempt, stop.grace.seconds) == (1, 1, 10)
    ended = agent_pb2.AttemptEnded(signal=15, stopped=True)
    report = agent_pb2.Report(sequence=2, task_id=1, attempt=1, ended=ended)
    await stream.write(agent_pb2.AgentMessage(reports=agent_pb2.ReportBatch(reports=[report])))
    assert (await stream.read()).acknowledgement.sequence == 2
    task = served.cluster.tasks[1]
    assert (task.state.value, task.reason_code) == ("PENDING", "REQUEUED")
    assert (await scheduling(served)).scheduling == types_pb2.SCHEDULING_DRAINED


async def test_task_whose_agent_was_stopped_says_so(served: Served) -> None:
    stream = await joined_ready(served)
    (task_id,) = await submit(served)
    await running(served, stream, task_id)
    ended = agent_pb2.AttemptEnded(signal=15, stopped=True, agent_stopped=True)
    report = agent_pb2.Report(sequence=2, task_id=1, attempt=1, ended=ended)
    await stream.write(agent_pb2.AgentMessage(reports=agent_pb2.ReportBatch(reports=[report])))
    assert (await stream.read()).acknowledgement.sequence == 2
    why = "attempt 1 was lost: the agent of node node-1 was stopped"
    assert served.cluster.tasks[1].reason == why


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"id": "nobody"}, "NOT_FOUND", "no node is called 'nobody'"),
        ({"id": "node-1", "reason": "x" * 501}, "INVALID_ARGUMENT", "reason has 501 characters"),
        ({"id": "node-1", "user": "x" * 201}, "INVALID_ARGUMENT", "user has 201 characters"),
        (
            {"id": "node-1", "deadline": Duration()},
            "INVALID_ARGUMENT",
            "deadline is 0 s; it must be above 0, at most 315360000 s",
        ),
        (
            {"id": "node-1", "deadline": Duration(seconds=1 << 62)},
            "INVALID_ARGUMENT",
            "deadline is 4.61169e+18 s",
        ),
    ],
)
async def test_drain_that_cannot_be_is_refused(
    served: Served, fields: dict[str, Any], code: str, words: str
) -> None:
    await joined_ready(served)
    refusal = await refused(nodes_of(served).DrainNode(node_pb2.DrainNodeRequest(**fields)))
    assert refusal.code.name == code
    assert words in refusal.message
    assert (await scheduling(served)).scheduling == types_pb2.SCHEDULING_ENABLED


async def test_user_of_a_cordon_has_a_bound(served: Served) -> None:
    await joined_ready(served)
    for method, request in (
        ("CordonNode", node_pb2.CordonNodeRequest(id="node-1", user="x" * 201)),
        ("UncordonNode", node_pb2.UncordonNodeRequest(id="node-1", user="x" * 201)),
    ):
        refusal = await refused(getattr(nodes_of(served), method)(request))
        assert refusal.message == "user has 201 characters; the bound is 200"


async def test_node_is_forgotten_when_it_is_gone_and_has_nothing(served: Served) -> None:
    memory: Any = memory_pb2_grpc.MemoryServiceStub(served.channel)
    forget = node_pb2.ForgetNodeRequest(id="node-1")
    refusal = await refused(nodes_of(served).ForgetNode(forget))
    assert (refusal.code, refusal.details) == (grpc.StatusCode.NOT_FOUND, {"node": "node-1"})
    stream = await joined_ready(served)
    refusal = await refused(nodes_of(served).ForgetNode(forget))
    assert (refusal.code, refusal.reason) == (PRECONDITION, "CONFLICT")
    assert refusal.message == "node 'node-1' is connected; stop its agent first"
    (task_id,) = await submit(served)
    await running(served, stream, task_id)
    create = memory_pb2.CreateReservationRequest(memory_bytes=GIB, ttl=Duration(seconds=60))
    reservation = (await memory.CreateReservation(create)).reservation
    await nodes_of(served).DrainNode(node_pb2.DrainNodeRequest(id="node-1"))
    stream.cancel()
    await gone(served)
    refusal = await refused(nodes_of(served).ForgetNode(forget))
    assert refusal.message == (
        "node 'node-1' still has 1 task; wait until it is given up, or cancel it"
    )
    # Another agent comes without the attempt, whose task is queued again.
    stream = await joined_ready(served, instance_id="another")
    await until(lambda: served.cluster.tasks[1].state is TaskState.PENDING)
    assert (await scheduling(served)).scheduling == types_pb2.SCHEDULING_DRAINED
    stream.cancel()
    await gone(served)
    refusal = await refused(nodes_of(served).ForgetNode(forget))
    assert refusal.message == "node 'node-1' still has the reservation 1"
    await memory.ReleaseReservation(memory_pb2.ReleaseReservationRequest(id=reservation.id))
    await nodes_of(served).ForgetNode(forget)
    assert list((await nodes_of(served).ListNodes(node_pb2.ListNodesRequest())).nodes) == []
    assert served.engine.store.disk.nodes == {}  # type: ignore[attr-defined]
    await joined_ready(served)  # a new one of that name


async def test_place_of_a_forgotten_node_is_free_for_another(served: Served) -> None:
    served.cluster.limits = replace(served.cluster.limits, nodes_max=1)
    for name in ("a", "b"):
        stream = await joined_ready(served, node_id=name, machine_id=name)
        stream.cancel()
        await gone(served, name)
        await nodes_of(served).ForgetNode(node_pb2.ForgetNodeRequest(id=name))
