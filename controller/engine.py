"""The loop and the only clock: take in what happened, think, **save, then** reply, send, notify.

All events that wait are handled in one turn, the cycle runs once behind them, and everything to be
saved goes into one transaction. Nothing is told to anyone before it is saved; a store that cannot
save ends the controller, which loses nothing: the next one begins from what is saved.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from controller import wire
from controller.core.commands import (
    Command,
    Notify,
    Reply,
    Save,
    SaveTask,
    SendAcknowledgement,
    SendAssignment,
    SendFreeze,
    SendSampling,
    SendStop,
    SendWelcome,
)
from controller.core.errors import LimitReached, MassError, NodeUnavailable
from controller.core.events import AttemptEnded, AttemptStarted, Event, Tick
from controller.core.limits import SECOND_NS
from controller.core.model import Alert, Task
from controller.core.scheduler import Scheduler
from controller.journal import Journal
from controller.logs import LogRequests
from controller.outbox import Outbox
from controller.store.base import Store, StoreError
from controller.watch import Watches

log = logging.getLogger("mass.engine")

EVENTS_PER_TURN = 5_000  # keeps one turn short when thousands of agents report at once
TICK_S = 1.0
# A turn costs much the same for one event as for many, so what nobody waits for may wait for
# company: a start, which places nothing, and an end while turns follow each other anyway.
START_PATIENCE_S = 0.030
END_PATIENCE_S = 0.003
# Of an end on a node that has the next task already: half of what 12 tasks for each CPU of a few
# milliseconds last, so that the node does not run dry.
HELD_PATIENCE_S = 0.030
BUSY_S = 0.020
# Nobody waits for an acknowledgement either; it lets the agent forget.
ACKNOWLEDGE_S = 0.050
PRUNE_S = 600.0
Waiting = tuple[Event, "asyncio.Future[object] | None"]


class Clock:
    """The time since the epoch in nanoseconds, which never goes back while the process lives."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Return the time."""
        return self._offset_ns + time.monotonic_ns()


class Engine:
    """Owns the scheduler; whoever wants something changed asks here."""

    def __init__(
        self,
        scheduler: Scheduler,
        store: Store,
        clock: Clock,
        notify: Callable[[Alert], None],
    ) -> None:
        self.scheduler = scheduler
        self.cluster = scheduler.cluster
        self.store = store
        self.now_ns = clock.now_ns
        self.watches = Watches()
        self.journal = Journal(self.cluster.limits)
        self.logs = LogRequests()
        self._notify = notify
        self._waiting: list[Waiting] = []
        self._wake = asyncio.Event()
        self._outboxes: dict[int, Outbox] = {}  # by the number of the stream
        self._streams: dict[str, int] = {}  # the welcomed stream of each node
        self._stream_count = 0
        self._cycle_due = False
        self._cycle_timer: asyncio.TimerHandle | None = None
        self._last_cycle_ns = 0
        self._turned_at_s = 0.0  # when the last turn ended
        self._waking: asyncio.TimerHandle | None = None
        self._acknowledged: dict[str, int] = {}  # saved reports the agents have not been told of
        self._acknowledging: asyncio.TimerHandle | None = None
        self._stopping = False
        self._saved = asyncio.Event()  # cleared while a turn is handled and not saved yet
        self._saved.set()
        self._failure: StoreError | None = None
        self._pruning: asyncio.Task[None] | None = None

    # --- what others call ---

    async def ask(self, event: Event) -> object:
        """Hand in an event and return its answer, once everything it caused is saved.

        Raises:
            LimitReached: too many events are waiting.
            MassError: what handling the event raises; nothing has changed then.
        """
        if len(self._waiting) >= self.cluster.limits.events_queued_max:
            raise LimitReached(f"{len(self._waiting)} events are waiting; try again")
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, future))
        self._wake.set()
        return await future

    def post(self, event: Event) -> None:
        """Hand in an event that nobody waits for. The caller keeps to `crowded`."""
        self._waiting.append((event, None))
        loop = asyncio.get_running_loop()
        if isinstance(event, AttemptStarted):
            self._wake_in(loop, START_PATIENCE_S)
        elif isinstance(event, AttemptEnded) and self._holds_ahead(event.node_id):
            self._wake_in(loop, HELD_PATIENCE_S)
        elif isinstance(event, AttemptEnded) and loop.time() - self._turned_at_s < BUSY_S:
            self._wake_in(loop, END_PATIENCE_S)
        else:
            self._wake.set()

    def _holds_ahead(self, node_id: str) -> bool:
        """Say whether a node holds tasks that were sent ahead: an end there leaves no CPU idle."""
        record = self.cluster.nodes.get(node_id)
        return record is not None and self.cluster.table.held[record.slot] > 0

    def _wake_in(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        """Begin a turn after the delay, or earlier if one is due earlier."""
        if self._waking is not None:
            if self._waking.when() <= loop.time() + delay_s:
                return
            self._waking.cancel()
        self._waking = loop.call_later(delay_s, self._wake_now)

    def _wake_now(self) -> None:
        self._waking = None
        self._wake.set()

    async def settled(self) -> None:
        """Return once everything handled so far is saved: what is read then, before the next
        await, may be told.

        Raises:
            StoreError: it could not be saved.
        """
        while not self._saved.is_set():  # the next turn may have begun before this one wakes up
            await self._saved.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def crowded(self) -> bool:
        """Say whether senders of events should wait before the next one."""
        return len(self._waiting) >= self.cluster.limits.events_queued_max // 2

    def samples_written(self) -> None:
        """Ask for a cycle, at most one each evaluation_gap_ns for samples alone."""
        if self._cycle_due or self._cycle_timer is not None:
            return
        since_ns = self.now_ns() - self._last_cycle_ns
        wait_ns = max(0, self.cluster.limits.evaluation_gap_ns - since_ns)
        loop = asyncio.get_running_loop()
        self._cycle_timer = loop.call_later(wait_ns / SECOND_NS, self._request_cycle)

    def open_stream(self) -> tuple[int, Outbox]:
        """Return the number and the outbox of a new stream."""
        self._stream_count += 1
        outbox = Outbox(self.cluster.limits.outbox_messages_max)
        self._outboxes[self._stream_count] = outbox
        return self._stream_count, outbox

    def close_stream(self, number: int) -> None:
        """Forget a stream's outbox."""
        self._outboxes.pop(number, None)

    def outbox_of(self, node_id: str) -> Outbox:
        """Return the outbox of a node's stream.

        Raises:
            NodeUnavailable: the node is not connected.
        """
        outbox = self._outboxes.get(self._streams.get(node_id, 0))
        if outbox is None:
            raise NodeUnavailable(f"node '{node_id}' is not connected")
        return outbox

    # --- the loop ---

    async def run(self) -> None:
        """Work until `stop`. Raises StoreError when the store cannot save."""
        ticking = asyncio.create_task(self._tick())
        try:
            await self._run_turns()
        finally:
            ticking.cancel()

    async def _tick(self) -> None:
        """Hand in a tick each second, whatever else happens."""
        while True:
            await asyncio.sleep(TICK_S)
            if self.crowded:  # a turn that hangs must not gather ticks without bound
                continue
            self._waiting.append((Tick(self.now_ns()), None))
            self._wake.set()

    async def _run_turns(self) -> None:
        loop = asyncio.get_running_loop()
        next_prune_s = loop.time() + PRUNE_S
        while not self._stopping:
            # Not by wait_for, whose own task would stand between an event and its turn.
            await self._wake.wait()
            self._wake.clear()
            await self._turn()
            self._turned_at_s = loop.time()
            await asyncio.sleep(0)  # whoever waited for the save reads before the next turn
            if loop.time() >= next_prune_s:
                next_prune_s = loop.time() + PRUNE_S
                self._start_pruning()

    def stop(self) -> None:
        """End the loop after the present turn and close all streams."""
        self._stopping = True
        self.journal.close()
        if self._pruning is not None:
            self._pruning.cancel()
        self._wake.set()
        for outbox in self._outboxes.values():
            outbox.close(grpc.StatusCode.UNAVAILABLE, "the controller is shutting down")

    def _request_cycle(self) -> None:
        self._cycle_timer = None
        self._cycle_due = True
        self._wake.set()

    async def _turn(self) -> None:
        """Handle what waits, run the cycle if it is due, and carry out the commands."""
        if self._waking is not None:  # whatever it was for is handled now
            self._waking.cancel()
            self._waking = None
        waiting = self._waiting[:EVENTS_PER_TURN]
        del self._waiting[:EVENTS_PER_TURN]
        if self._waiting:
            self._wake.set()
        commands: list[Command] = []
        answers: list[tuple[asyncio.Future[object], object]] = []
        for event, future in waiting:
            try:
                caused = self.scheduler.handle(event)
            except MassError as error:
                self._refuse(event, future, error)
                continue
            commands += caused
            if future is not None:
                answers.append((future, _answer(caused)))
        now_ns = self.now_ns()
        late = now_ns - self._last_cycle_ns >= self.cluster.limits.interval_ns
        if self.scheduler.cycle_wanted or self._cycle_due or late:
            self._cycle_due = False
            self._last_cycle_ns = now_ns
            commands += self.scheduler.run_cycle(now_ns)
        try:
            await self._carry_out(commands, now_ns)
        except StoreError as error:
            # Whoever asked may ask again: a submit has its request id.
            for future, _ in answers:
                if not future.done():
                    future.set_exception(error)
            raise
        for future, value in answers:
            if not future.done():  # the caller may have gone
                future.set_result(value)

    def _refuse(
        self, event: Event, future: asyncio.Future[object] | None, error: MassError
    ) -> None:
        if future is None:
            log.warning("event refused kind=%s reason=%s", type(event).__name__, error)
        elif not future.done():
            future.set_exception(error)

    async def _carry_out(self, commands: list[Command], now_ns: int) -> None:
        saves = [command for command in commands if isinstance(command, Save)]
        if saves:
            self._saved.clear()
            try:
                await self.store.commit(saves)
            except StoreError as error:
                self._failure = error
                raise
            finally:
                self._saved.set()
        self._send(commands)
        self.journal.record(commands, self.cluster, now_ns)
        for command in commands:
            if isinstance(command, SaveTask):
                self.watches.changed(command.task)
            elif isinstance(command, Notify):
                self._notify(command.alert)

    def _send(self, commands: Iterable[Command]) -> None:
        """Put all sends of a turn into the outboxes: a welcome first, assignments in one message.
        Acknowledgements are gathered over some turns, for the last one says it all."""
        assigned: dict[str, list[Task]] = {}
        acknowledged = self._acknowledged
        limits = self.cluster.limits
        for command in commands:
            match command:
                case SendWelcome():
                    # What came before was for the stream that this one replaces, maybe of another
                    # agent process, whose reports have other sequences.
                    assigned.pop(command.node_id, None)
                    acknowledged.pop(command.node_id, None)
                    self._welcome(command)
                case SendAssignment():
                    assigned.setdefault(command.node_id, []).append(command.task)
                case SendStop():
                    # An assignment of this turn must arrive before the stop of it.
                    self._flush_assigned(command.node_id, assigned)
                    self._push(command.node_id, wire.stop(command))
                case SendFreeze():
                    self._push(command.node_id, wire.freeze(command))
                case SendSampling():
                    self._push(command.node_id, wire.sampling(limits))
                case SendAcknowledgement():
                    acknowledged[command.node_id] = command.sequence
        for node_id in tuple(assigned):
            self._flush_assigned(node_id, assigned)
        if acknowledged and self._acknowledging is None:
            self._acknowledging = self._acknowledge_soon()

    def _acknowledge_soon(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(ACKNOWLEDGE_S, self._acknowledge)

    def _acknowledge(self) -> None:
        self._acknowledging = None
        acknowledged, self._acknowledged = self._acknowledged, {}
        for node_id, sequence in acknowledged.items():
            self._push(node_id, wire.acknowledgement(sequence))

    def _flush_assigned(self, node_id: str, assigned: dict[str, list[Task]]) -> None:
        for message in wire.assignments(assigned.pop(node_id, ()), self.cluster.limits):
            self._push(node_id, message)

    def _welcome(self, command: SendWelcome) -> None:
        before = self._streams.get(command.node_id)
        if before is not None and before != command.stream and before in self._outboxes:
            self._outboxes[before].close(
                grpc.StatusCode.ABORTED, "the node has opened another stream"
            )
        self._streams[command.node_id] = command.stream
        message = wire.welcome(command, self.cluster.limits, self.cluster.cluster_id)
        self._push(command.node_id, message)

    def _push(self, node_id: str, message: Any) -> None:
        """Send to a node; without a stream it is told when it connects again."""
        outbox = self._outboxes.get(self._streams.get(node_id, 0))
        if outbox is not None:
            outbox.push(message)

    def _start_pruning(self) -> None:
        """Forget old history beside the turns, which may take a minute; one at a time."""
        if self._pruning is None or self._pruning.done():
            self._pruning = asyncio.create_task(self._prune())

    async def _prune(self) -> None:
        limits = self.cluster.limits
        try:
            pruned = await self.store.prune(
                self.now_ns() - limits.history_age_ns, limits.history_tasks_max
            )
        except StoreError as error:  # what could not be pruned stays until the next time
            log.warning("history not pruned reason=%s", error)
            return
        if pruned:
            log.info("history pruned tasks=%d", pruned)


def _answer(commands: Iterable[Command]) -> object:
    """Return the value of the Reply among an event's commands, if any."""
    for command in commands:
        if isinstance(command, Reply):
            return command.value
    return None
