"""The controller of a simulated world: the real engine, wire and agent service, driven by hand.

Only what needs an event loop is replaced: the loop itself, futures, and the tasks that read and
write streams. A crash may come before the commit, after it, and between any two things told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, cast

import grpc
from mass.v1 import agent_pb2
from sim.network import Link
from sim.timeline import MILLISECOND_NS, SECOND_NS
from support.stores import MemoryStore

from allocator.pool import Pool
from controller import wire
from controller.core.cluster import Cluster
from controller.core.commands import Command, Save
from controller.core.errors import MassError
from controller.core.events import Event, NodeLeft, Tick
from controller.core.expressions import parse
from controller.core.limits import GIB, MIB, Limits
from controller.core.metrics import METRIC_NAMES
from controller.core.model import Alert
from controller.core.nodes import NodeRecord
from controller.core.rules import Rule, RuleSet
from controller.core.scheduler import Scheduler
from controller.engine import ACKNOWLEDGE_S, Engine
from controller.outbox import Outbox
from controller.service.agents import AgentService
from controller.store.base import StoreError

if TYPE_CHECKING:
    from sim.world import World

POOL_BYTES = 8 * MIB
TICK_NS = 2 * SECOND_NS
OPENING = b""  # the call itself, before its first message
LIMITS = Limits(
    nodes_max=8,
    tasks_running_max=12,
    attempt_lease_ns=30 * SECOND_NS,
    node_down_ns=60 * SECOND_NS,
    tasks_open_max=60,
    overtaken_max_ns=10 * SECOND_NS,
    reservations_max=4,
    alerts_resolved_kept_ns=60 * SECOND_NS,
    brief_runs_min=2,
    ahead_per_cpu=2,
)
RULES = RuleSet(
    (
        Rule(
            "NodeFull",
            "sim",
            parse("mem_percent > 85", METRIC_NAMES),
            hold_ns=SECOND_NS,
            blocks_placement=True,
        ),
        Rule(
            "NodeSilent",
            "sim",
            parse("node_silent_seconds > 15", METRIC_NAMES),
            hold_ns=5 * SECOND_NS,
            keep_firing_ns=5 * SECOND_NS,
        ),
    )
)
NODE_MEMORY_BYTES = 4 * GIB


class ControllerCrash(BaseException):
    """The controller's process is gone, at this very point."""


class Answer:
    """What somebody waits for: an engine's future without a loop."""

    def __init__(
        self, world: World, given: Callable[[object], None], failed: Callable[[MassError], None]
    ) -> None:
        self._world = world
        self._given = given
        self._failed = failed
        self._done = False

    def done(self) -> bool:
        """Say whether it was answered."""
        return self._done

    def set_result(self, value: object) -> None:
        """Answer."""
        self._world.crash_point("between two answers")
        self._done = True
        self._given(value)

    def set_exception(self, error: MassError) -> None:
        """Refuse."""
        self._done = True
        self._failed(error)


class CrashingStore(MemoryStore):
    """A store during whose commits the world goes on, and around which the controller dies."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller.world.disk, LIMITS)
        self._controller = controller

    async def commit(self, saves: Sequence[Save]) -> None:
        world = self._controller.world
        world.crash_point("before the commit")
        if world.happens(world.rates.store_fails):
            world.say("the store refuses a commit")
            raise StoreError("the disk is full")
        world.laws.before_commit(saves)
        self._controller.meanwhile()
        await super().commit(saves)
        world.laws.committed(saves)
        self._controller.meanwhile()
        world.crash_point("after the commit")


class TappedOutbox(Outbox):
    """An outbox whose every message is first held against the laws."""

    def __init__(self, stream: ServerStream) -> None:
        super().__init__(LIMITS.outbox_messages_max)
        self._stream = stream

    def push(self, message: agent_pb2.ControllerMessage) -> None:
        world = self._stream.controller.world
        world.crash_point("between two sends")
        world.laws.told(self._stream.node_id, self._stream.instance_id, message)
        super().push(message)
        if world.happens(world.rates.break_at_send):
            world.say(f"the stream of {self._stream.instance_id} breaks under its message")
            self._stream.link.break_silently()
        self._stream.write_soon()

    def close(self, code: grpc.StatusCode, message: str) -> None:
        super().close(code, message)
        self._stream.end_soon()

    def take(self) -> agent_pb2.ControllerMessage | None:
        """Return the next message, if any."""
        return self._messages.popleft() if self._messages else None


class DrivenEngine(Engine):
    """The engine, one turn at a time."""

    def __init__(self, controller: Controller, scheduler: Scheduler, store: MemoryStore) -> None:
        world = controller.world
        super().__init__(scheduler, store, cast(Any, world.timeline), self._told)
        self._world = world
        self._controller = controller
        self.notices = 0

    def take(self, event: Event, answer: Answer | None) -> None:
        """Hand in an event, with whoever waits for its answer."""
        self._waiting.append((event, cast("asyncio.Future[object] | None", answer)))
        self._controller.turn_soon()

    def post(self, event: Event) -> None:
        self.take(event, None)

    def samples_written(self) -> None:
        self._world.timeline.after(
            LIMITS.evaluation_gap_ns, self._controller.if_alive(self._sampled)
        )

    def use_outbox(self, outbox: Outbox) -> int:
        """Open a stream with this outbox."""
        number, _ = self.open_stream()
        self._outboxes[number] = outbox
        return number

    async def turn(self) -> None:
        """Handle what waits, run the cycle, save and tell."""
        await self._turn()

    async def _carry_out(self, commands: list[Command], *more: Any) -> None:
        self._world.trace(commands)
        await super()._carry_out(commands, *more)

    def _acknowledge_soon(self) -> asyncio.TimerHandle:
        self._world.timeline.after(
            int(ACKNOWLEDGE_S * SECOND_NS), self._controller.if_alive(self._controller.acknowledge)
        )
        return cast(asyncio.TimerHandle, self)  # anything but None

    def _sampled(self) -> None:
        self._cycle_due = True
        self._controller.turn_soon()

    def _told(self, alert: Alert) -> None:
        self._world.crash_point("between two notices")
        self.notices += 1


class Controller:
    """One life of the controller."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self._busy = False
        self._turn_due = False
        self._pool = Pool(POOL_BYTES)
        self.cluster = Cluster(world.limits, RULES, self._pool)
        store = CrashingStore(self)
        stored = drive(store.load())
        self.cluster.restore(
            tasks=stored.tasks,
            nodes=stored.nodes,
            alerts=stored.alerts,
            submissions=stored.submissions,
            next_task_id=stored.next_task_id,
            now_ns=world.timeline.now_ns(),
            reservations=stored.reservations,
            next_reservation_id=stored.next_reservation_id,
            cluster_id=stored.cluster_id,
        )
        self.cluster.learn(stored.attempts)
        self.engine = DrivenEngine(self, Scheduler(self.cluster), store)
        self.service = AgentService(self.engine)
        self.streams: list[ServerStream] = []
        self._tick()

    def accept(self, link: Link) -> None:
        """Serve a new stream."""
        stream = ServerStream(self, link)
        link.up.target = stream
        self.streams.append(stream)

    def turn_soon(self) -> None:
        """Let a turn follow soon; what comes until then is in it."""
        if not self._turn_due:
            self._turn_due = True
            slow = self.world.happens(self.world.rates.slow_turn)
            longest_ns = 3 * SECOND_NS if slow else 10 * MILLISECOND_NS
            delay_ns = self.world.chance.randint(0, longest_ns)
            self.world.timeline.after(delay_ns, self.if_alive(self._turn))

    def meanwhile(self) -> None:
        """Let the world go on while the disk works."""
        world = self.world
        if world.happens(world.rates.slow_commit):
            delay_ns = world.chance.randint(0, 100 * MILLISECOND_NS)
            world.timeline.run_until(world.timeline.now_ns() + delay_ns)
            if self.dead:
                raise ControllerCrash("while it saved")

    def die(self) -> None:
        """Be gone: nothing in memory is kept, streams end."""
        self.dead = True
        for stream in self.streams:
            if not stream.closed:
                stream.link.close_from_server()
        if not self._busy:
            self._free()

    def if_alive(self, action: Callable[[], None]) -> Callable[[], None]:
        """Return the action, which does nothing once this controller is dead."""
        return lambda: None if self.dead else action()

    def _tick(self) -> None:
        self.engine.take(Tick(self.world.timeline.now_ns()), None)
        self.world.timeline.after(TICK_NS, self.if_alive(self._tick))

    def _turn(self) -> None:
        self._turn_due = False
        if self._busy:
            self.turn_soon()  # the commit of the turn before is not done
            return
        self._busy = True
        try:
            drive(self.engine.turn())
            self.world.laws.turn_done(self.cluster)
        except ControllerCrash as crash:
            if not self.dead:
                self.world.crash_controller(str(crash))
        except StoreError as error:
            self.world.crash_controller(str(error))
        finally:
            self._busy = False
            if self.dead:
                self._free()

    def acknowledge(self) -> None:
        """Say what was saved lately, between two turns or while a commit is under way."""
        try:
            self.engine._acknowledge()
        except ControllerCrash as crash:
            if self._busy:
                raise
            self.world.crash_controller(str(crash))

    def _free(self) -> None:
        self.cluster.close()
        self._pool.close()


class ServerStream:
    """The service's end of one stream, as `AgentService.Connect` has it."""

    def __init__(self, controller: Controller, link: Link) -> None:
        self.controller = controller
        self.link = link
        self.node_id = ""
        self.instance_id = ""
        self.closed = False
        self._record: NodeRecord | None = None
        self._unread: list[agent_pb2.AgentMessage] = []
        self._outbox = TappedOutbox(self)
        self._number = controller.engine.use_outbox(self._outbox)

    def receive(self, data: bytes) -> None:
        """Take a message of the agent."""
        if self.controller.dead or self.closed:
            return
        message = agent_pb2.AgentMessage.FromString(data)
        if self._record is not None:
            self._read(message)
        elif self.node_id:
            self._unread.append(message)
        else:
            self._greet(message.hello)

    def ended(self) -> None:
        """Learn that the agent's side is gone."""
        if not self.controller.dead:
            self._end("the stream was closed")

    def write_soon(self) -> None:
        """Let the writer take what waits."""
        delay_ns = self.controller.world.chance.randint(0, 2 * MILLISECOND_NS)
        self.controller.world.timeline.after(delay_ns, self.controller.if_alive(self._write))

    def end_soon(self) -> None:
        """End the stream; until then the reader goes on."""
        delay_ns = self.controller.world.chance.randint(0, 5 * MILLISECOND_NS)
        ended = self.controller.if_alive(lambda: self._end("the outbox was closed"))
        self.controller.world.timeline.after(delay_ns, ended)

    def _greet(self, hello: agent_pb2.Hello) -> None:
        engine = self.controller.engine
        self.node_id, self.instance_id = hello.node_id, hello.instance_id
        event = wire.joined(hello, engine.now_ns(), self._number)
        engine.take(event, Answer(self.controller.world, self._welcomed, self._refused))

    def _welcomed(self, _: object) -> None:
        self._record = self.controller.cluster.nodes[self.node_id]
        unread, self._unread = self._unread, []
        for message in unread:
            self._read(message)

    def _refused(self, error: MassError) -> None:
        self.controller.world.say(f"{self.instance_id} is refused: {error.message}")
        self.node_id = ""
        self._end(error.message)

    def _read(self, message: agent_pb2.AgentMessage) -> None:
        if self.closed:
            return
        assert self._record is not None
        service = self.controller.service
        if drive(service._read(_one(message), self._record, self._number)):
            self._end("goodbye", goodbye=True)

    def _write(self) -> None:
        while not self.closed and (message := self._outbox.take()) is not None:
            self.link.send_down(message.SerializeToString())

    def _end(self, reason: str, *, goodbye: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self.link.close_from_server()
        engine = self.controller.engine
        engine.close_stream(self._number)
        self.controller.streams.remove(self)
        if self.node_id:
            engine.post(NodeLeft(engine.now_ns(), self.node_id, self._number, reason, goodbye))


def drive(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that has nothing to wait for, and return its value."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a step waits for something, which nobody here can give")


async def _one(message: agent_pb2.AgentMessage) -> AsyncIterator[agent_pb2.AgentMessage]:
    yield message
