"""One bounded queue of messages for each agent's stream.

A stream that does not take its messages is closed at the bound: the agent then connects again
and both sides compare what they have, so nothing is lost with the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque

import grpc
from mass.v1 import agent_pb2


class OutboxClosed(Exception):
    """The stream must end, with this status and sentence."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Outbox:
    """Messages for one stream, in order."""

    def __init__(self, messages_max: int) -> None:
        self._messages: deque[agent_pb2.ControllerMessage] = deque()
        self._messages_max = messages_max
        self._ready = asyncio.Event()
        self._closed: OutboxClosed | None = None

    def push(self, message: agent_pb2.ControllerMessage) -> None:
        """Add a message; at the bound the stream is closed instead."""
        if self._closed is not None:
            return
        if len(self._messages) >= self._messages_max:
            self.close(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the agent has not taken {self._messages_max} messages; connect again",
            )
            return
        self._messages.append(message)
        self._ready.set()

    def close(self, code: grpc.StatusCode, message: str) -> None:
        """End the stream; messages not yet taken are dropped."""
        if self._closed is None:
            self._closed = OutboxClosed(code, message)
            self._messages.clear()
            self._ready.set()

    async def next(self) -> agent_pb2.ControllerMessage:
        """Return the next message, waiting for one.

        Raises:
            OutboxClosed: the stream must end.
        """
        while True:
            if self._closed is not None:
                raise self._closed
            if self._messages:
                return self._messages.popleft()
            self._ready.clear()
            await self._ready.wait()
