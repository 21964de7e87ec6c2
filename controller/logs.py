"""Questions to agents about output files, and their answers. Bounded in number and time."""

from __future__ import annotations

import asyncio

from mass.v1 import agent_pb2

from controller.core.errors import LimitReached, NodeUnavailable
from controller.outbox import Outbox

REQUESTS_MAX = 1_000
ANSWER_S = 5.0


class LogRequests:
    """The questions that are not answered yet."""

    def __init__(self) -> None:
        self._count = 0
        self._open: dict[int, asyncio.Future[agent_pb2.LogChunk]] = {}

    async def ask(self, outbox: Outbox, request: agent_pb2.ReadLog) -> agent_pb2.LogChunk:
        """Ask an agent for a part of a file.

        Raises:
            LimitReached: too many questions are open.
            NodeUnavailable: the agent has not answered within 5 s.
        """
        if len(self._open) >= REQUESTS_MAX:
            raise LimitReached(f"{REQUESTS_MAX} outputs are being read; try again")
        self._count += 1
        request.request_id = number = self._count
        future: asyncio.Future[agent_pb2.LogChunk] = asyncio.get_running_loop().create_future()
        self._open[number] = future
        try:
            outbox.push(agent_pb2.ControllerMessage(read_log=request))
            return await asyncio.wait_for(future, ANSWER_S)
        except TimeoutError as error:
            raise NodeUnavailable(f"the agent has not answered within {ANSWER_S:g} s") from error
        finally:
            del self._open[number]

    def answer(self, chunk: agent_pb2.LogChunk) -> None:
        """Take in an answer; one that nobody waits for any more is dropped."""
        future = self._open.get(chunk.request_id)
        if future is not None and not future.done():
            future.set_result(chunk)
