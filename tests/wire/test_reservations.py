"""Memory that programs set aside: each call, each refusal, repetition, expiry."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from mass.v1 import memory_pb2, memory_pb2_grpc, node_pb2, node_pb2_grpc, task_pb2, types_pb2
from support.served import Served, joined_ready, sample
from wire.test_api import refused
from wire.test_control import submit
from wire.test_nodes import until

from controller.core.limits import GIB, MILLISECOND_NS

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
MINUTE = Duration(seconds=60)


def memory_of(served: Served) -> Any:
    return memory_pb2_grpc.MemoryServiceStub(served.channel)


async def create(served: Served, **fields: Any) -> memory_pb2.Reservation:
    request = memory_pb2.CreateReservationRequest(**{"memory_bytes": GIB, "ttl": MINUTE, **fields})
    answer = await memory_of(served).CreateReservation(request)
    assert isinstance(answer.reservation, memory_pb2.Reservation)
    return answer.reservation


async def listed(served: Served, page_size: int = 0) -> list[str]:
    request = memory_pb2.ListReservationsRequest(page_size=page_size)
    ids: list[str] = []
    while True:
        page = await memory_of(served).ListReservations(request)
        ids += [reservation.id for reservation in page.reservations]
        request.page_token = page.next_page_token
        if not request.page_token:
            return ids


async def two_nodes(served: Served) -> None:
    """Let a node with 6.6 GiB and one with 1.8 GiB left join."""
    await joined_ready(served, node_id="large")
    await joined_ready(
        served, node_id="small", machine_id="other", memory_total_bytes=2 * GIB,
        memory=sample(memory_total_bytes=2 * GIB, memory_available_bytes=2 * GIB),
    )  # fmt: skip


async def test_reservation_lies_on_the_node_that_was_named(served: Served) -> None:
    await two_nodes(served)
    made = await create(served, node_id="small", purpose="a database", user="ada")
    assert (made.id, made.node_id, made.memory_bytes) == ("1", "small", GIB)
    assert (made.purpose, made.user) == ("a database", "ada")
    assert made.expires_at.ToNanoseconds() - made.created_at.ToNanoseconds() == 60 * 10**9
    nodes: Any = node_pb2_grpc.NodeServiceStub(served.channel)
    await until(lambda: served.engine.scheduler.displayed is not None)
    shown = (await nodes.GetNode(node_pb2.GetNodeRequest(id="small"))).node
    assert shown.memory_reserved_bytes == GIB
    page = await memory_of(served).ListReservations(memory_pb2.ListReservationsRequest())
    assert list(page.reservations) == [made]


async def test_reservation_lies_where_most_memory_is_left(served: Served) -> None:
    await two_nodes(served)
    made = [await create(served, memory_bytes=6 * GIB), await create(served)]
    assert [reservation.node_id for reservation in made] == ["large", "small"]


async def test_reservation_keeps_tasks_out_until_it_is_released(served: Served) -> None:
    await joined_ready(served)
    made = await create(served, memory_bytes=6 * GIB)
    (task_id,) = await submit(served, memory_request_bytes=2 * GIB)
    task = (await served.tasks.GetTask(task_pb2.GetTaskRequest(id=task_id))).task
    assert (task.state, task.reason_code) == (
        types_pb2.TASK_STATE_PENDING,
        "NO_NODE_WITH_MEMORY",
    )
    await memory_of(served).ReleaseReservation(memory_pb2.ReleaseReservationRequest(id=made.id))
    task = (await served.tasks.GetTask(task_pb2.GetTaskRequest(id=task_id))).task
    assert task.state == types_pb2.TASK_STATE_ASSIGNED
    assert await listed(served) == []


async def test_reservation_ends_by_itself_unless_it_is_renewed(served: Served) -> None:
    limits = served.cluster.limits
    served.cluster.limits = replace(limits, reservation_ttl_min_ns=MILLISECOND_NS)
    await joined_ready(served)
    short = Duration(nanos=50 * MILLISECOND_NS)
    renewed, left = await create(served, ttl=short), await create(served, ttl=short)
    request = memory_pb2.RenewReservationRequest(id=renewed.id, ttl=MINUTE)
    answer = await memory_of(served).RenewReservation(request)
    assert answer.reservation.expires_at.seconds >= renewed.expires_at.seconds + 59
    assert answer.reservation.created_at == renewed.created_at
    await until(lambda: int(left.id) not in served.cluster.memory_reservations)
    assert await listed(served) == [renewed.id]
    disk = served.engine.store.disk  # type: ignore[attr-defined]
    await until(lambda: list(disk.reservations) == [int(renewed.id)])
    request.id = left.id
    refusal = await refused(memory_of(served).RenewReservation(request))
    assert (refusal.code, refusal.details) == (
        grpc.StatusCode.NOT_FOUND,
        {"reservation": left.id},
    )
    assert refusal.message == f"no reservation has the id {left.id}, or it has expired"


async def test_repeated_request_id_gets_the_same_reservation(served: Served) -> None:
    await joined_ready(served)
    first = await create(served, request_id="once", memory_bytes=4 * GIB)
    assert await create(served, request_id="once", memory_bytes=4 * GIB) == first
    assert (await create(served, request_id="twice")).id == "2"
    assert (await create(served)).id == "3"
    assert await listed(served) == ["1", "2", "3"]


async def test_reservation_is_listed_only_once_it_is_saved(served: Served) -> None:
    await joined_ready(served)
    store: Any = served.engine.store
    store.gate.clear()
    asked = asyncio.ensure_future(create(served))
    await until(lambda: 1 in served.cluster.memory_reservations)
    shown = asyncio.ensure_future(listed(served))
    done, _ = await asyncio.wait([shown], timeout=0.1)
    store.gate.set()  # first, for the controller does not end without it
    assert done == set()
    assert [(await asked).id] == await shown


async def test_pages_hold_every_reservation_once(served: Served) -> None:
    await joined_ready(served)
    for _ in range(5):
        await create(served, memory_bytes=1)
    assert await listed(served, page_size=2) == ["1", "2", "3", "4", "5"]
    request = memory_pb2.ListReservationsRequest(page_token="x")
    refusal = await refused(memory_of(served).ListReservations(request))
    assert refusal.message == "page_token 'x' is none of this list's"


async def test_reservation_without_room_is_refused_with_its_numbers(served: Served) -> None:
    refusal = await refused(create(served))
    assert (refusal.code, refusal.reason) == (EXHAUSTED, "NO_NODE_WITH_MEMORY")
    assert refusal.message == "no node is ready (0 known)"
    await two_nodes(served)
    refusal = await refused(create(served, memory_bytes=7 * GIB))
    assert (refusal.code, refusal.reason) == (EXHAUSTED, "NO_NODE_WITH_MEMORY")
    assert refusal.message == (
        "the reservation asks 7 GiB, node large, the one with the most memory left, can promise"
        " 6.6 GiB"
    )
    assert refusal.details["node"] == "large"
    assert refusal.details["requested_bytes"] == str(7 * GIB)
    assert 6 * GIB < int(refusal.details["promise_bytes"]) < 7 * GIB
    refusal = await refused(create(served, memory_bytes=3 * GIB, node_id="small"))
    assert refusal.message == "the reservation asks 3 GiB, node small can promise 1.8 GiB"
    assert await listed(served) == []


async def test_reservations_have_a_bound(served: Served) -> None:
    served.cluster.limits = replace(served.cluster.limits, reservations_max=2)
    await joined_ready(served)
    made = await create(served, request_id="first")
    await create(served)
    refusal = await refused(create(served))
    assert (refusal.code, refusal.reason) == (EXHAUSTED, "LIMIT_REACHED")
    assert refusal.message == "2 reservations are there, which is the bound"
    assert await create(served, request_id="first") == made


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"memory_bytes": 0}, "INVALID_ARGUMENT", "mem is 0 B; it must be 1 B to 1 PiB"),
        ({"memory_bytes": -1}, "INVALID_ARGUMENT", "mem is -1 B"),
        ({"memory_bytes": 1 << 51}, "INVALID_ARGUMENT", "mem is 2 PiB; it must be 1 B to 1 PiB"),
        ({"ttl": Duration()}, "INVALID_ARGUMENT", "ttl is 0 s; it must be 1 to 604800 s"),
        ({"ttl": Duration(nanos=500_000_000)}, "INVALID_ARGUMENT", "ttl is 0.5 s; it must be"),
        ({"ttl": Duration(seconds=604_801)}, "INVALID_ARGUMENT", "ttl is 604801 s"),
        ({"ttl": Duration(seconds=-(1 << 62))}, "INVALID_ARGUMENT", "ttl is -4.61169e+18 s"),
        ({"request_id": "x" * 65}, "INVALID_ARGUMENT", "request_id has 65 characters; the bound"),
        ({"purpose": "x" * 201}, "INVALID_ARGUMENT", "purpose has 201 characters; the bound is"),
        ({"user": "x" * 201}, "INVALID_ARGUMENT", "user has 201 characters; the bound is 200"),
        ({"node_id": "nobody"}, "NOT_FOUND", "no node is called 'nobody'"),
    ],
)
async def test_reservation_that_cannot_be_is_refused(
    served: Served, fields: dict[str, Any], code: str, words: str
) -> None:
    await joined_ready(served)
    refusal = await refused(create(served, **fields))
    assert refusal.code.name == code
    assert words in refusal.message
    assert await listed(served) == []


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        ("", "INVALID_ARGUMENT", "reservation id '' is no integer from 1"),
        ("1_2", "INVALID_ARGUMENT", "reservation id '1_2' is no integer from 1"),
        ("9", "NOT_FOUND", "no reservation has the id 9, or it has expired"),
    ],
)
async def test_unknown_reservation_is_refused(
    served: Served, number: str, code: str, message: str
) -> None:
    memory = memory_of(served)
    for call in (
        memory.RenewReservation(memory_pb2.RenewReservationRequest(id=number, ttl=MINUTE)),
        memory.ReleaseReservation(memory_pb2.ReleaseReservationRequest(id=number)),
    ):
        refusal = await refused(call)
        assert (refusal.code.name, refusal.message) == (code, message)


async def test_reservation_on_a_closed_or_gone_node_is_refused(served: Served) -> None:
    await joined_ready(served)
    nodes: Any = node_pb2_grpc.NodeServiceStub(served.channel)
    await nodes.CordonNode(node_pb2.CordonNodeRequest(id="node-1"))
    refusal = await refused(create(served))
    assert refusal.message == "no node is ready (1 known)"
    # Named, it may be kept for something while tasks are kept off.
    assert (await create(served, node_id="node-1")).node_id == "node-1"
