"""What a flow asks its runner to do, and the two runners: one blocks, one awaits.

A flow is a generator that yields effects and gets their answers back, so that each method of the
client has one body. The rule: a flow never waits, and a runner never decides. Whatever goes wrong
while an effect is carried out is thrown into the flow, which so gets to close its stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from mass.errors import MassClientError
from mass.v1 import task_pb2_grpc

CALL_SECONDS = 30.0
MESSAGE_RECEIVED_BYTES_MAX = 64 << 20
MESSAGE_SENT_BYTES_MAX = 16 << 20  # more is not accepted by the controller
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", MESSAGE_RECEIVED_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_SENT_BYTES_MAX),
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """Call a unary method of TaskService; the answer is its response."""

    method: str
    request: Any  # the generated services have no types


@dataclass(frozen=True, slots=True)
class Open:
    """Open a stream of TaskService; the answer is the stream, which has a `cancel()`."""

    method: str
    request: Any
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Next:
    """Take the next message of a stream; the answer is None at its end."""

    stream: Any


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let time pass, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """Hand a value to who iterates over the flow."""

    value: T


Effect: TypeAlias = Call | Open | Next | Sleep
Flow: TypeAlias = Generator[Effect, Any, T]
ItemFlow: TypeAlias = Generator[Effect | Item[T], Any, None]


class BlockingRunner:
    """Carries flows out on the calling thread; any number of threads may use it at once."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub: Any = task_pb2_grpc.TaskServiceStub(self._channel)
        self._closed = False

    def close(self) -> None:
        """Close the channel; calls under way end."""
        self._closed = True
        self._channel.close()

    def run(self, flow: Flow[T]) -> T:
        """Return what the flow returns."""
        try:
            effect = next(flow)
            while True:
                try:
                    answer = self._perform(effect)
                except BaseException as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def iterate(self, flow: ItemFlow[T]) -> Iterator[T]:
        """Yield the flow's items; leaving the iteration closes its stream."""
        try:
            effect = next(flow)
            while True:
                if isinstance(effect, Item):
                    yield effect.value
                    effect = next(flow)
                    continue
                try:
                    answer = self._perform(effect)
                except BaseException as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration:
            return
        finally:
            flow.close()

    def _perform(self, effect: Effect) -> Any:
        if self._closed:
            raise MassClientError("the client is closed")
        match effect:
            case Call(method, request):
                return getattr(self._stub, method)(request, timeout=CALL_SECONDS)
            case Open(method, request, timeout_seconds):
                return getattr(self._stub, method)(request, timeout=timeout_seconds)
            case Next(stream):
                return next(stream, None)
            case Sleep(seconds):
                return time.sleep(seconds)


class AwaitingRunner:
    """Carries flows out on the running event loop; use it from one loop only."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._closed = False

    async def close(self) -> None:
        """Close the channel; calls under way end."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def run(self, flow: Flow[T]) -> T:
        """Return what the flow returns."""
        try:
            effect = next(flow)
            while True:
                try:
                    answer = await self._perform(effect)
                except BaseException as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def iterate(self, flow: ItemFlow[T]) -> AsyncIterator[T]:
        """Yield the flow's items; closing the iterator closes its stream."""
        try:
            effect = next(flow)
            while True:
                if isinstance(effect, Item):
                    yield effect.value
                    effect = next(flow)
                    continue
                try:
                    answer = await self._perform(effect)
                except BaseException as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration:
            return
        finally:
            flow.close()

    async def _perform(self, effect: Effect) -> Any:
        if self._closed:
            raise MassClientError("the client is closed")
        if self._channel is None:
            # Made here and not before: a channel belongs to the loop it is made in.
            self._channel = grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS)
            self._stub = task_pb2_grpc.TaskServiceStub(self._channel)
        match effect:
            case Call(method, request):
                return await getattr(self._stub, method)(request, timeout=CALL_SECONDS)
            case Open(method, request, timeout_seconds):
                return getattr(self._stub, method)(request, timeout=timeout_seconds)
            case Next(stream):
                message = await stream.read()
                return None if message is grpc.aio.EOF else message
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
