"""EventService: the events of an engine that really saves, over a channel."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from mass.v1 import event_pb2, event_pb2_grpc, node_pb2, node_pb2_grpc, task_pb2, types_pb2
from support.served import Served, hello, info_of, sample


def service(served: Served) -> Any:
    return event_pb2_grpc.EventServiceStub(served.channel)


async def kept(served: Served, last: int = 0) -> list[str]:
    call = service(served).WatchEvents(event_pb2.WatchEventsRequest(last=last))
    return [answer.event.text async for answer in call]


async def submit(served: Served) -> None:
    spec = types_pb2.TaskSpec(command=["true"], memory_request_bytes=1 << 20)
    await served.tasks.SubmitTasks(task_pb2.SubmitTasksRequest(tasks=[spec]))


async def test_life_of_a_node_and_a_task_is_told_in_order(served: Served) -> None:
    stream = await served.join()
    await submit(served)
    await stream.write(sample())
    assert (await stream.read()).WhichOneof("body") == "assignments"
    nodes: Any = node_pb2_grpc.NodeServiceStub(served.channel)
    await nodes.CordonNode(node_pb2.CordonNodeRequest(id="node-1", user="ada"))
    assert await kept(served) == [
        "node node-1 has connected",
        "task 1 (true) waits",
        "task 1 (true) goes to node-1",
        "node node-1 is ready",
        "node node-1 is cordoned by ada",
    ]
    assert await kept(served, last=1) == ["node node-1 is cordoned by ada"]
    stream.cancel()


async def test_event_is_told_only_once_it_is_saved(served: Served) -> None:
    call = service(served).WatchEvents(event_pb2.WatchEventsRequest(follow=True))
    store: Any = served.engine.store
    store.gate.clear()
    answer = asyncio.create_task(submit(served))
    reading = asyncio.create_task(call.read())
    await asyncio.sleep(0.05)
    assert served.cluster.tasks
    assert not reading.done()
    assert await kept(served) == []
    store.gate.set()
    assert (await asyncio.wait_for(reading, 5)).event.text == "task 1 (true) waits"
    await answer
    call.cancel()


async def test_follower_is_told_to_come_back_when_the_controller_ends(served: Served) -> None:
    await submit(served)
    call = service(served).WatchEvents(event_pb2.WatchEventsRequest(follow=True))
    assert (await call.read()).event.sequence == 1
    served.engine.stop()
    try:
        answer = await asyncio.wait_for(call.read(), 5)
    except grpc.aio.AioRpcError:
        answer = grpc.aio.EOF
    assert answer is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(await call.trailing_metadata()) is None, "a reason would end the client"


async def test_negative_count_is_refused(served: Served) -> None:
    call = service(served).WatchEvents(event_pb2.WatchEventsRequest(last=-1))
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await call.details() == "last is -1; it must be 0 (all) or above"


async def test_refused_hello_leaves_no_event(served: Served) -> None:
    stream = await served.connect(hello(protocol_version=99))
    assert (await stream.refusal()).reason == "PROTOCOL_MISMATCH"
    assert await kept(served) == []
