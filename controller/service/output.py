"""A task's output for people: the whole file through its agent, else the tail that was kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from mass.units import size_words
from mass.v1 import agent_pb2, task_pb2, types_pb2

from allocator.tails import TailKey
from controller.core.errors import InvalidRequest, NodeUnavailable
from controller.core.model import PLACED_STATES, OutputStream, Task
from controller.engine import Engine
from controller.wire import STREAMS

FOLLOW_PAUSE_S = 0.1
FROM_TAIL = -1  # the agent's word for "the last 64 KiB"
TAIL_BYTES_MAX = 64 << 10
SHOWN = {
    OutputStream.STDOUT: types_pb2.OUTPUT_STREAM_STDOUT,
    OutputStream.STDERR: types_pb2.OUTPUT_STREAM_STDERR,
}
Part = task_pb2.ReadTaskLogResponse


async def read_log(
    engine: Engine, request: task_pb2.ReadTaskLogRequest, task: Task
) -> AsyncIterator[Part]:
    """Yield a task's output from its first byte (or its last tail_bytes) to its end.

    With follow it goes on until the attempt has ended; without, to the end of what is there.

    Raises:
        InvalidRequest: the attempt is none of the task's, or tail_bytes is out of bounds.
    """
    if not 0 <= request.tail_bytes <= TAIL_BYTES_MAX:
        raise InvalidRequest(
            f"tail_bytes is {request.tail_bytes}; it must be 0 to {TAIL_BYTES_MAX}"
        )
    while task.attempt == 0 and request.follow and not task.ended:
        await asyncio.sleep(FOLLOW_PAUSE_S)
        task = await _fresh(engine, task)
    if task.attempt == 0 and request.attempt == 0:
        return
    attempt = request.attempt or task.attempt
    if not 1 <= attempt <= task.attempt:
        raise InvalidRequest(
            f"attempt is {attempt}; task {task.id} has had {task.attempt} attempts"
        )
    stream = STREAMS.get(request.stream, OutputStream.STDOUT)
    offset = FROM_TAIL if request.tail_bytes else 0
    while True:
        # Looked up before asking: what an ended attempt has written is all there already.
        task = await _fresh(engine, task)
        over = task.attempt != attempt or task.state not in PLACED_STATES
        try:
            chunk = await _ask(engine, task, attempt, stream, offset)
        except NodeUnavailable as error:
            if request.follow and not over:
                # The agent comes back, or the attempt is given up: both end this wait.
                await asyncio.sleep(FOLLOW_PAUSE_S)
                continue
            async for part in _kept(engine, task, attempt, stream, error.message):
                yield part
            return
        data, start = chunk.data, chunk.offset_bytes
        if offset == FROM_TAIL:
            start += max(0, len(data) - request.tail_bytes)
            offset, data = start, data[-request.tail_bytes :]
        if data:
            dropped = size_words(start - offset)
            note = f"{dropped} of older output were dropped" if start > offset else ""
            yield Part(data=data, note=note)
            offset = start + len(data)
        elif over or not request.follow:
            return
        else:
            await asyncio.sleep(FOLLOW_PAUSE_S)


async def _fresh(engine: Engine, task: Task) -> Task:
    """Return the task as it is now."""
    return engine.cluster.tasks.get(task.id) or await engine.store.task(task.id) or task


async def _ask(
    engine: Engine, task: Task, attempt: int, stream: OutputStream, offset: int
) -> agent_pb2.LogChunk:
    """Read a part of the file through the agent that has it.

    Raises:
        NodeUnavailable: the agent is away, or no longer has the file.
    """
    node_id = task.node_id
    if task.attempt != attempt or not node_id:
        attempts = await engine.store.attempts(task.id)
        node_id = next((a.node_id for a in attempts if a.number == attempt), "")
    chunk = await engine.logs.ask(
        engine.outbox_of(node_id),
        agent_pb2.ReadLog(
            task_id=task.id, attempt=attempt, stream=SHOWN[stream], offset_bytes=offset
        ),
    )
    if chunk.error:
        raise NodeUnavailable(chunk.error)
    return chunk


async def _kept(
    engine: Engine, task: Task, attempt: int, stream: OutputStream, why: str
) -> AsyncIterator[Part]:
    """Yield what the controller itself has: the saved tail, or the one of the running attempt."""
    data = await engine.store.output(task.id, attempt, stream)
    if data is None:
        data = engine.cluster.tails.read(TailKey(task.id, attempt, stream.value))
    yield Part(data=data, note=f"only the last {size_words(len(data))} are kept here: {why}")
