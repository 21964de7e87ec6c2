"""A controller that the agent's tests play by hand, and a runner without processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from mass.v1 import agent_pb2

from agent.attempt import Key
from agent.runner import Exit, Launch, StartError

WAIT_SECONDS_MAX = 5.0
T = TypeVar("T")


def duration(seconds: float) -> Duration:
    """Return a wire duration."""
    result = Duration()
    result.FromNanoseconds(round(seconds * 1e9))
    return result


def welcome(**changes: object) -> agent_pb2.ControllerMessage:
    """Return a welcome that asks for a sample each 50 ms."""
    fields: dict[str, object] = {
        "protocol_version": 1,
        "sampling": agent_pb2.Sampling(
            sample_interval=duration(0.05), heartbeat_interval=duration(10)
        ),
        "attempt_lease": duration(900),
    }
    fields.update(changes)
    return agent_pb2.ControllerMessage(welcome=agent_pb2.Welcome(**fields))  # type: ignore[arg-type]


def assign(*task_ids: int, attempt: int = 1, **changes: object) -> agent_pb2.ControllerMessage:
    """Return a batch of assignments of `true`."""
    fields: dict[str, object] = {"command": ["true"], "cpus": 1.0, "grace": duration(0.05)}
    fields.update(changes)
    return agent_pb2.ControllerMessage(
        assignments=agent_pb2.AssignmentBatch(
            assignments=[
                agent_pb2.Assignment(task_id=task_id, attempt=attempt, **fields)  # type: ignore[arg-type]
                for task_id in task_ids
            ]
        )
    )


def acknowledge(sequence: int) -> agent_pb2.ControllerMessage:
    """Return an acknowledgement."""
    return agent_pb2.ControllerMessage(acknowledgement=agent_pb2.Acknowledgement(sequence=sequence))


def stop(task_id: int, grace_seconds: float, attempt: int = 1) -> agent_pb2.ControllerMessage:
    """Return a stop."""
    return agent_pb2.ControllerMessage(
        stop=agent_pb2.Stop(task_id=task_id, attempt=attempt, grace=duration(grace_seconds))
    )


class Stream:
    """One stream of an agent, as the controller sees it."""

    def __init__(self) -> None:
        self.received: list[agent_pb2.AgentMessage] = []
        self._changed = asyncio.Condition()
        self._outgoing: asyncio.Queue[agent_pb2.ControllerMessage | None] = asyncio.Queue()
        self.status: tuple[grpc.StatusCode, str] | None = None

    async def take(self, message: agent_pb2.AgentMessage) -> None:
        """Note a message of the agent."""
        async with self._changed:
            self.received.append(message)
            self._changed.notify_all()

    async def outgoing(self) -> AsyncIterator[agent_pb2.ControllerMessage]:
        """Yield what the test sends, until it ends the stream."""
        while (message := await self._outgoing.get()) is not None:
            yield message

    def send(self, *messages: agent_pb2.ControllerMessage) -> None:
        """Send messages down."""
        for message in messages:
            self._outgoing.put_nowait(message)

    def end(self, code: grpc.StatusCode | None = None, sentence: str = "") -> None:
        """End the stream, with a status or in good order."""
        if code is not None:
            self.status = (code, sentence)
        self._outgoing.put_nowait(None)

    async def until(self, found: Callable[[], T | None]) -> T:
        """Return the first true value of `found`, asked again after each message."""
        async with self._changed, asyncio.timeout(WAIT_SECONDS_MAX):
            while not (value := found()):
                await self._changed.wait()
            return value

    def hello(self) -> agent_pb2.Hello:
        """Return the hello of this stream."""
        return self.received[0].hello

    def reports(self) -> list[agent_pb2.Report]:
        """Return all reports so far."""
        return [report for message in self.received for report in message.reports.reports]

    def samples(self) -> list[agent_pb2.Sample]:
        """Return all samples so far."""
        return [sample for message in self.received for sample in message.samples.samples]

    async def until_reports(self, count: int) -> list[agent_pb2.Report]:
        """Return all reports once there are so many."""
        return await self.until(lambda: r if len(r := self.reports()) >= count else None)

    async def until_samples(self, count: int) -> list[agent_pb2.Sample]:
        """Return all samples once there are so many."""
        return await self.until(lambda: s if len(s := self.samples()) >= count else None)


class FakeController:
    """Serves AgentService on the loopback; each stream waits for the test to speak."""

    def __init__(self) -> None:
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """Return what to give to --controller."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Serve, on the port of before when there was one."""
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        handler = grpc.stream_stream_rpc_method_handler(
            self._connect,
            request_deserializer=agent_pb2.AgentMessage.FromString,
            response_serializer=agent_pb2.ControllerMessage.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("mass.v1.AgentService", {"Connect": handler}),)
        )
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Vanish: every stream breaks."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def stream(self) -> Stream:
        """Return the next stream that has said hello."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            stream = await self._streams.get()
        await stream.until(lambda: bool(stream.received))
        return stream

    async def welcomed(self, **changes: object) -> Stream:
        """Return the next stream, already welcomed."""
        stream = await self.stream()
        stream.send(welcome(**changes))
        return stream

    async def _connect(
        self,
        requests: AsyncIterator[agent_pb2.AgentMessage],
        context: grpc.aio.ServicerContext[agent_pb2.AgentMessage, agent_pb2.ControllerMessage],
    ) -> AsyncIterator[agent_pb2.ControllerMessage]:
        stream = Stream()
        self._streams.put_nowait(stream)

        async def receive() -> None:
            async for request in requests:
                await stream.take(request)

        receiving = asyncio.create_task(receive())
        try:
            async for message in stream.outgoing():
                yield message
        finally:
            receiving.cancel()
            await asyncio.wait({receiving})
        if stream.status is not None:
            await context.abort(*stream.status)


class FakeRunner:
    """Starts nothing: the test says when an attempt ends and what it uses."""

    def __init__(self, on_exit: Callable[[Exit], None]) -> None:
        self._on_exit = on_exit
        self.launches: dict[Key, Launch] = {}
        self.signals: list[tuple[str, Key]] = []
        self.used: dict[Key, int] = {}
        self.refuse: str | None = None
        self.refusals: list[StartError] = []  # of the next starts
        self.hold: asyncio.Event | None = None
        self.usage_reads = 0
        self.capacity_bytes: int | None = None

    async def open(self) -> None:
        """Nothing to make ready."""

    async def close(self) -> None:
        """End what still runs."""
        for key in tuple(self.used):
            self.end(key, signal=9)

    async def start(self, launch: Launch) -> int:
        """Start, wait while held, or refuse, as the test has said."""
        if self.hold is not None:
            await self.hold.wait()
        if self.refuse is not None:
            raise StartError("exec", 2, self.refuse)
        if self.refusals:
            raise self.refusals.pop(0)
        self.launches[launch.key] = launch
        self.used[launch.key] = 1 << 20
        return 4_000 + len(self.launches)

    def freeze(self, key: Key, paused: bool) -> None:
        self.signals.append(("pause" if paused else "resume", key))

    def terminate(self, key: Key) -> None:
        """Note the signal."""
        self.signals.append(("terminate", key))

    def kill(self, key: Key) -> None:
        """Note the signal; the process is gone in the next turn of the loop."""
        self.signals.append(("kill", key))
        if key in self.used:
            asyncio.get_running_loop().call_soon(lambda: self.end(key, signal=9))

    def usage(self) -> dict[Key, int]:
        """Return what the test has set."""
        self.usage_reads += 1
        return dict(self.used)

    def running(self) -> frozenset[Key]:
        """Return the attempts that the test has not ended."""
        return frozenset(self.used)

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Note the capacity."""
        self.capacity_bytes = capacity_bytes

    def end(
        self,
        key: Key,
        exit_code: int | None = None,
        signal: int | None = None,
        oom_kills: int = 0,
        own_limit: bool = True,
    ) -> None:
        """End an attempt; once only."""
        if self.used.pop(key, None) is not None:
            self._on_exit(
                Exit(
                    key, exit_code, signal, 5 << 20, oom_kills, 1_000, 2_000, None,
                    own_limit=oom_kills > 0 and own_limit,
                    node_full=oom_kills > 0 and not own_limit,
                )
            )  # fmt: skip
