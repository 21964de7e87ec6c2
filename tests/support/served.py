"""The controller's gRPC face in this process: an engine over a store in memory, on a free port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from mass.v1 import agent_pb2, agent_pb2_grpc, node_pb2, node_pb2_grpc, task_pb2_grpc
from support.stores import MemoryStore

from allocator.pool import Pool
from controller.core.cluster import Cluster
from controller.core.limits import DEFAULT_LIMITS, GIB
from controller.core.rules import RuleSet
from controller.core.scheduler import Scheduler
from controller.engine import Clock, Engine
from controller.server import Server

LIMITS = replace(DEFAULT_LIMITS, nodes_max=8, tasks_running_max=16)
POOL_BYTES = 16 << 20
STOP_SECONDS = 0.1


class Served:
    """A controller that answers on a port, and a channel to it."""

    def __init__(self, engine: Engine, channel: grpc.aio.Channel) -> None:
        self.engine = engine
        self.cluster = engine.cluster
        self.channel = channel
        self.tasks: Any = task_pb2_grpc.TaskServiceStub(channel)

    async def connect(self, *messages: agent_pb2.AgentMessage) -> Stream:
        """Open an agent's stream and write these messages."""
        stream = Stream(agent_pb2_grpc.AgentServiceStub(self.channel).Connect())
        await stream.write(*messages)
        return stream

    async def join(self, **fields: Any) -> Stream:
        """Open a stream, say a good hello, and read the welcome."""
        stream = await self.connect(hello(**fields))
        assert (await stream.read()).WhichOneof("body") == "welcome"
        return stream


class Stream:
    """One agent's stream."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def write(self, *messages: agent_pb2.AgentMessage) -> None:
        """Send messages."""
        for message in messages:
            await self._call.write(message)

    async def read(self) -> agent_pb2.ControllerMessage:
        """Return the next message."""
        message = await asyncio.wait_for(self._call.read(), 5)
        assert isinstance(message, agent_pb2.ControllerMessage), await self._call.code()
        return message

    async def refusal(self) -> Refusal:
        """Return the status with which the controller ends the stream."""
        while isinstance(await self._read_or_end(), agent_pb2.ControllerMessage):
            pass
        return Refusal(
            await self._call.code(),
            await self._call.details(),
            info_of(await self._call.trailing_metadata()),
        )

    async def _read_or_end(self) -> object:
        try:
            return await asyncio.wait_for(self._call.read(), 5)
        except grpc.aio.AioRpcError:
            return None  # the status says it

    async def close(self) -> None:
        """Say that nothing follows."""
        await self._call.done_writing()

    def cancel(self) -> None:
        """Break the stream."""
        self._call.cancel()


class Refusal:
    """A status with its ErrorInfo."""

    def __init__(
        self, code: grpc.StatusCode, message: str, info: error_details_pb2.ErrorInfo | None
    ) -> None:
        self.code = code
        self.message = message
        self.reason = "" if info is None else info.reason
        self.domain = "" if info is None else info.domain
        self.details = {} if info is None else dict(info.metadata)

    def __repr__(self) -> str:
        return f"{self.code.name} {self.reason}: {self.message}"


def info_of(metadata: Iterable[tuple[str, str | bytes]]) -> error_details_pb2.ErrorInfo | None:
    """Return the ErrorInfo among a call's trailing metadata."""
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status = status_pb2.Status.FromString(value)
            (detail,) = status.details
            info = error_details_pb2.ErrorInfo()
            assert detail.Unpack(info)
            return info
    return None


def hello(**fields: Any) -> agent_pb2.AgentMessage:
    """Return a hello that is welcome, but for the fields given."""
    good = {
        "protocol_version": 1,
        "node_id": "node-1",
        "instance_id": "instance",
        "machine_id": "machine",
        "boot_id": "boot",
        "agent_version": "1",
        "memory_total_bytes": 8 * GIB,
        "cpus": 4,
        "enforcement": "cgroup1",
    }
    return agent_pb2.AgentMessage(hello=agent_pb2.Hello(**{**good, **fields}))


def sample(**fields: Any) -> agent_pb2.AgentMessage:
    """Return a batch of one good sample, but for the fields given."""
    good = {
        "taken_at_unix_ns": 1,
        "memory_total_bytes": 8 * GIB,
        "memory_available_bytes": 7 * GIB,
    }
    return agent_pb2.AgentMessage(
        samples=agent_pb2.SampleBatch(samples=[agent_pb2.Sample(**{**good, **fields})])
    )


async def joined_ready(
    served: Served, *, memory: agent_pb2.AgentMessage | None = None, **fields: Any
) -> Stream:
    """Return the stream of a node that takes tasks; `memory` is its first sample."""
    stream = await served.join(**fields)
    await stream.write(memory or sample())
    nodes: Any = node_pb2_grpc.NodeServiceStub(served.channel)
    request = node_pb2.GetNodeRequest(id=fields.get("node_id", "node-1"))
    async with asyncio.timeout(5):
        # A cycle has seen the sample when it says what the node can promise.
        while (await nodes.GetNode(request)).node.memory_promise_bytes == 0:
            await asyncio.sleep(0.005)
    return stream


@asynccontextmanager
async def serve() -> AsyncIterator[Served]:
    """Serve on a free port until the block ends, and check the cluster then."""
    with Pool(POOL_BYTES) as pool:
        cluster = Cluster(LIMITS, RuleSet(), pool)
        engine = Engine(Scheduler(cluster), MemoryStore(), Clock(), lambda alert: None)
        server = Server(engine)
        port = server.server.add_insecure_port("127.0.0.1:0")
        await server.server.start()
        running = asyncio.create_task(engine.run())
        # Without an engine no call would ever be answered: they are broken off instead.
        ending: list[asyncio.Task[None]] = []
        running.add_done_callback(
            lambda _: ending.append(asyncio.create_task(server.server.stop(None)))
        )
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Served(engine, channel)
        finally:
            engine.stop()
            await server.server.stop(STOP_SECONDS)
            await running
            await asyncio.gather(*ending)
        cluster.check()
        cluster.close()
