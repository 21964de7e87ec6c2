"""AgentService: one stream for each agent. Samples go straight into the history; everything else
is an event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from mass.v1 import agent_pb2, agent_pb2_grpc

from controller import wire
from controller.core.errors import MassError, NodeUnavailable, ProtocolMismatch
from controller.core.events import NodeLeft
from controller.core.nodes import NodeRecord
from controller.engine import Engine
from controller.outbox import Outbox, OutboxClosed
from controller.service.status import abort

log = logging.getLogger("mass.service.agents")

HELLO_S = 10.0
CROWDED_PAUSE_S = 0.01
Context = grpc.aio.ServicerContext[agent_pb2.AgentMessage, agent_pb2.ControllerMessage]


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """Serves agents."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Connect(  # noqa: N802 - named by the proto
        self, request_iterator: AsyncIterator[agent_pb2.AgentMessage], context: Context
    ) -> None:
        """Serve one stream from its hello to its end."""
        number, outbox = self._engine.open_stream()
        node_id = ""
        reason = "the stream was closed"
        goodbye = False
        try:
            hello = await _first_hello(request_iterator)
            event = wire.joined(hello, self._engine.now_ns(), number)
            # Before it is asked for: the stream may break off while that is being answered.
            node_id = event.node_id
            await self._engine.ask(event)
            record = self._engine.cluster.nodes[node_id]
            log.info("agent connected node=%s stream=%d peer=%s", node_id, number, context.peer())
            goodbye = await self._serve(request_iterator, context, record, number, outbox)
        except MassError as error:
            reason = error.message
            log.warning("agent refused node=%s stream=%d reason=%s", node_id, number, reason)
            await abort(context, error)
        except OutboxClosed as closed:
            reason = closed.message
            await context.abort(closed.code, closed.message)
        finally:
            self._engine.close_stream(number)
            if node_id:
                log.info("agent gone node=%s stream=%d reason=%s", node_id, number, reason)
                now_ns = self._engine.now_ns()
                self._engine.post(NodeLeft(now_ns, node_id, number, reason, goodbye))

    async def _serve(
        self,
        messages: AsyncIterator[agent_pb2.AgentMessage],
        context: Context,
        record: NodeRecord,
        number: int,
        outbox: Outbox,
    ) -> bool:
        """Read and write until either side ends; return whether the agent said goodbye."""
        writer = asyncio.create_task(_write(context, outbox))
        reader = asyncio.create_task(self._read(messages, record, number))
        try:
            done, _ = await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return reader in done and reader.result()
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _read(
        self, messages: AsyncIterator[agent_pb2.AgentMessage], record: NodeRecord, number: int
    ) -> bool:
        engine, cluster = self._engine, self._engine.cluster
        async for message in messages:
            if record.stream != number:
                return False  # a later stream has replaced this one, maybe of another process
            now_ns = engine.now_ns()
            kind = message.WhichOneof("body")
            if kind == "samples":
                wire.write_samples(cluster, record, message.samples, now_ns)
                engine.samples_written()
                continue
            cluster.touch(record, now_ns)
            if kind == "reports":
                for report in message.reports.reports:
                    engine.post(wire.report(report, record.node.id, now_ns, number))
                while engine.crowded:
                    await asyncio.sleep(CROWDED_PAUSE_S)
            elif kind == "output":
                wire.write_output(cluster, message.output)
            elif kind == "log":
                engine.logs.answer(message.log)
            elif kind == "guard_steps":
                engine.post(wire.guard_acted(message.guard_steps, record.node.id, now_ns))
            elif kind == "goodbye":
                log.info("agent says goodbye node=%s", record.node.id)
                return True
            else:
                raise ProtocolMismatch(f"a message with body {kind} is not understood here")
        return False


async def _first_hello(messages: AsyncIterator[agent_pb2.AgentMessage]) -> agent_pb2.Hello:
    try:
        first = await asyncio.wait_for(anext(messages), HELLO_S)
    except (TimeoutError, StopAsyncIteration):
        # Not a mismatch: a machine that thrashes, or this process, may only have been slow.
        raise NodeUnavailable(f"no hello came within {HELLO_S:g} s") from None
    if first.WhichOneof("body") != "hello":
        raise ProtocolMismatch(f"the first message is {first.WhichOneof('body')}, it must be hello")
    return first.hello


async def _write(context: Context, outbox: Outbox) -> None:
    write: Any = context.write
    while True:
        await write(await outbox.next())
