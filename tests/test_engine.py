"""The engine: what is saved, and only then answered, sent and told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import grpc
import pytest
from mass.v1 import agent_pb2
from support.builders import rule, spec
from support.stores import MemoryStore

from allocator.pool import Pool
from controller.core.cluster import Cluster
from controller.core.commands import Save
from controller.core.errors import LimitReached, NodeUnavailable, NotFound
from controller.core.events import (
    AttemptEnded,
    AttemptStarted,
    NodeCordoned,
    NodeJoined,
    NodeLeft,
    TasksCancelled,
    TasksSubmitted,
)
from controller.core.limits import DEFAULT_LIMITS, GIB, Limits
from controller.core.model import Alert, OomCause, TaskState
from controller.core.rules import RuleSet
from controller.core.scheduler import Scheduler
from controller.engine import ACKNOWLEDGE_S, START_PATIENCE_S, Clock, Engine
from controller.outbox import Outbox, OutboxClosed
from controller.store.base import StoreError, StoreFull
from controller.wire import write_samples

LIMITS = replace(DEFAULT_LIMITS, nodes_max=4, tasks_running_max=16, outbox_messages_max=8)
ANSWER_SECONDS_MAX = 10.0  # so that a test of an engine that has died fails, and does not wait
TURNS = 20  # of the loop: more than any answer needs


class Bench:
    """An engine over a store in memory, and everything it said."""

    def __init__(self, pool: Pool, limits: Limits = LIMITS) -> None:
        self.store = MemoryStore()
        self.told: list[Alert] = []
        rules = RuleSet((rule("Used", "mem_used >= 0"),))
        self.cluster = Cluster(limits, rules, pool)
        self.engine = Engine(Scheduler(self.cluster), self.store, Clock(), self.told.append)
        self.running = asyncio.create_task(self.engine.run())

    async def join(self, node_id: str = "node-1", *, ready: bool = True) -> tuple[int, Outbox]:
        """Let a node join, and take its welcome."""
        number, outbox = self.engine.open_stream()
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await self.engine.ask(hello(self.engine.now_ns(), node_id, number))
        assert (await outbox.next()).WhichOneof("body") == "welcome"
        if ready:
            record = self.cluster.nodes[node_id]
            sample = agent_pb2.Sample(
                taken_at_unix_ns=1, memory_total_bytes=8 * GIB, memory_available_bytes=8 * GIB
            )
            batch = agent_pb2.SampleBatch(samples=[sample])
            write_samples(self.cluster, record, batch, self.engine.now_ns())
        return number, outbox

    async def submit(self, count: int = 1, request_id: str = "") -> object:
        """Submit equal tasks."""
        specs = (spec("64MiB", cpus=0.01),) * count
        event = TasksSubmitted(self.engine.now_ns(), request_id, "ada", specs)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await self.engine.ask(event)

    def started(self, task_id: int, sequence: int) -> AttemptStarted:
        """Return the report that a first attempt runs."""
        now_ns = self.engine.now_ns()
        return AttemptStarted(now_ns, "node-1", sequence, task_id, 1, now_ns)

    def ended(self, task_id: int, sequence: int) -> AttemptEnded:
        """Return the report that a first attempt has succeeded."""
        now_ns = self.engine.now_ns()
        return AttemptEnded(
            now_ns, "node-1", sequence, task_id, 1, 0, None, 1, 0, OomCause.NONE,
            now_ns, now_ns, timed_out=False, stopped=False, start_error="",
        )  # fmt: skip

    async def close(self) -> None:
        """End the loop."""
        self.engine.stop()
        self.store.gate.set()
        with contextlib.suppress(StoreError):
            await self.running
        self.cluster.close()


def hello(now_ns: int, node_id: str, stream: int, instance_id: str = "instance-1") -> NodeJoined:
    """Return a hello of a machine with 8 GiB."""
    return NodeJoined(
        now_ns, node_id, instance_id, f"machine-{node_id}", "boot", "1", 8 * GIB, None,
        4.0, "cgroup1", (), stream,
    )  # fmt: skip


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """An engine that runs."""
    with Pool(16 << 20) as pool:
        bench = Bench(pool)
        yield bench
        await bench.close()


def waiting(outbox: Outbox) -> list[str]:
    """Return what lies in an outbox, by kind."""
    return [str(message.WhichOneof("body")) for message in outbox._messages]


async def settle() -> None:
    """Let everything that can go on do so."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_nothing_is_answered_sent_or_told_before_it_is_saved(bench: Bench) -> None:
    _, outbox = await bench.join()
    bench.store.gate.clear()
    watch = bench.engine.watches.open([1])
    seen = asyncio.create_task(watch.next())
    answer = asyncio.create_task(bench.submit())
    await settle()
    assert bench.cluster.tasks[1].state is TaskState.ASSIGNED
    assert not answer.done()
    assert not seen.done()
    assert waiting(outbox) == []
    assert bench.told == []
    bench.store.gate.set()
    assert await answer == (1,)
    assert waiting(outbox) == ["assignments"]
    assert [task.state for task in await seen] == [TaskState.ASSIGNED]
    assert [alert.name for alert in bench.told] == ["Used"]
    assert bench.store.disk.tasks[1].state is TaskState.ASSIGNED


async def test_store_that_fails_ends_the_engine_and_nothing_was_said(bench: Bench) -> None:
    _, outbox = await bench.join()
    bench.store.failures.append(StoreFull("mass.db cannot be written: the disk is full"))
    with pytest.raises(StoreFull, match="the disk is full"):
        await bench.submit()
    with pytest.raises(StoreFull):
        await bench.running
    assert waiting(outbox) == []
    assert bench.told == []
    assert bench.store.disk.tasks == {}


async def test_what_is_not_saved_yet_cannot_be_read(bench: Bench) -> None:
    await bench.engine.settled()
    bench.store.gate.clear()
    answer = asyncio.create_task(bench.submit())
    await settle()
    reading = asyncio.create_task(bench.engine.settled())
    await settle()
    assert not reading.done()
    bench.store.gate.set()
    await reading
    assert bench.store.disk.tasks.keys() == {1}
    assert await answer == (1,)
    bench.store.failures.append(StoreError("the disk is gone"))
    with pytest.raises(StoreError, match="the disk is gone"):
        await bench.submit()
    with pytest.raises(StoreError, match="the disk is gone"):
        await bench.engine.settled()


async def test_who_waits_for_a_save_never_sees_the_turn_behind_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[int], set[int]]] = []
    commit_at_once = bench.store.commit

    async def commit(saves: Sequence[Save]) -> None:
        await asyncio.sleep(0.001)  # as long as a disk, so that another event comes in meanwhile
        if len(bench.cluster.tasks) < 20:
            event = TasksSubmitted(bench.engine.now_ns(), "", "ada", (spec("64MiB"),))
            bench.engine.post(event)
        await commit_at_once(saves)

    monkeypatch.setattr(bench.store, "commit", commit)

    async def read() -> None:
        while len(bench.store.disk.tasks) < 20:
            await bench.engine.settled()
            seen.append((set(bench.cluster.tasks), set(bench.store.disk.tasks)))
            await asyncio.sleep(0)

    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        await asyncio.gather(read(), bench.submit())
        while len(bench.store.disk.tasks) < 20:
            await asyncio.sleep(0.001)
    assert all(in_memory == on_disk for in_memory, on_disk in seen)


async def test_all_events_of_a_turn_and_its_cycle_are_one_transaction(bench: Bench) -> None:
    _, outbox = await bench.join()
    before = bench.store.commit_count
    answers = await asyncio.gather(*(bench.submit(2) for _ in range(5)))
    assert answers == [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]
    assert bench.store.commit_count == before + 1
    message = await outbox.next()
    assert [a.task_id for a in message.assignments.assignments] == list(range(1, 11))
    for task_id in range(1, 11):
        bench.engine.post(bench.started(task_id, 2 * task_id - 1))
        bench.engine.post(bench.ended(task_id, 2 * task_id))
    acknowledged = await outbox.next()
    assert acknowledged.acknowledgement.sequence == 20
    assert waiting(outbox) == []
    assert bench.store.commit_count == before + 2
    assert {task.state for task in bench.store.disk.tasks.values()} == {TaskState.SUCCEEDED}


async def test_refused_event_changes_nothing_and_does_not_disturb_the_others(
    bench: Bench,
) -> None:
    await bench.join()
    now_ns = bench.engine.now_ns()
    refused, accepted = await asyncio.gather(
        bench.engine.ask(NodeCordoned(now_ns, "nobody", "", "ada")),
        bench.submit(),
        return_exceptions=True,
    )
    assert isinstance(refused, NotFound)
    assert refused.message == "no node is called 'nobody'"
    assert accepted == (1,)
    assert not bench.running.done()


async def test_repeated_submit_gets_the_same_answer_without_a_save(bench: Bench) -> None:
    assert await bench.submit(3, "the-id") == (1, 2, 3)
    before = bench.store.commit_count
    assert await bench.submit(3, "the-id") == (1, 2, 3)
    assert len(bench.store.disk.tasks) == 3
    assert bench.store.commit_count == before


async def test_assignment_reaches_the_agent_before_its_stop(bench: Bench) -> None:
    _, outbox = await bench.join()
    bench.store.gate.clear()
    first = asyncio.create_task(bench.submit())
    await settle()
    # Both wait for the commit that is under way, and are handled in one turn.
    cancel = asyncio.create_task(
        bench.engine.ask(TasksCancelled(bench.engine.now_ns(), (1,), 1_000_000_000))
    )
    second = asyncio.create_task(bench.submit())
    await settle()
    bench.store.gate.set()
    assert (await first, await second) == ((1,), (2,))
    await cancel
    assert waiting(outbox) == ["assignments", "stop", "assignments"]


async def test_acknowledgements_of_some_turns_are_one_message_behind_the_assignments(
    bench: Bench,
) -> None:
    _, outbox = await bench.join()
    await bench.submit(2)
    assert waiting(outbox) == ["assignments"]
    for number in (1, 2):
        bench.engine.post(bench.ended(number, sequence=number))
        await bench.submit()
    await asyncio.sleep(2 * ACKNOWLEDGE_S)
    assert waiting(outbox) == [*["assignments"] * 3, "acknowledgement"]


async def test_start_alone_waits_for_company_and_an_answer_does_not(bench: Bench) -> None:
    await bench.join()
    await bench.submit()
    bench.engine.post(bench.started(1, sequence=1))
    await asyncio.sleep(START_PATIENCE_S / 2)
    states = [bench.store.disk.tasks[1].state]
    await bench.submit()
    states.append(bench.store.disk.tasks[1].state)
    assert states == [TaskState.ASSIGNED, TaskState.RUNNING]


async def test_new_stream_of_a_node_ends_the_one_before(bench: Bench) -> None:
    _, first = await bench.join()
    _, second = await bench.join()
    with pytest.raises(OutboxClosed) as closed:
        await first.next()
    assert closed.value.code is grpc.StatusCode.ABORTED
    assert await bench.submit() == (1,)
    assert waiting(second) == ["assignments"]


async def test_hellos_of_one_turn_are_answered_each_on_its_own_stream(bench: Bench) -> None:
    (first, _), (second, outbox) = bench.engine.open_stream(), bench.engine.open_stream()
    now_ns = bench.engine.now_ns()
    hellos = [hello(now_ns, "node-1", number) for number in (first, second)]
    await asyncio.gather(*(bench.engine.ask(each) for each in hellos))
    assert waiting(outbox) == ["welcome"]


async def test_report_of_an_agent_is_not_acknowledged_to_the_next_one(bench: Bench) -> None:
    first, _ = await bench.join()
    await bench.submit()
    number, outbox = bench.engine.open_stream()
    now_ns = bench.engine.now_ns()
    bench.engine.post(bench.started(1, 7))  # in the turn of the other agent's hello
    bench.engine.post(NodeLeft(now_ns, "node-1", first, "killed"))
    await bench.engine.ask(hello(now_ns, "node-1", number, "instance-2"))
    assert waiting(outbox) == ["welcome"]


async def test_second_agent_of_a_name_is_refused_while_the_first_is_heard_of(bench: Bench) -> None:
    await bench.join()
    number, _ = bench.engine.open_stream()
    with pytest.raises(NodeUnavailable, match="connected from another agent on this machine"):
        await bench.engine.ask(hello(bench.engine.now_ns(), "node-1", number, "instance-2"))


async def test_agent_that_takes_no_messages_loses_its_stream(bench: Bench) -> None:
    _, outbox = await bench.join()
    for _ in range(LIMITS.outbox_messages_max + 1):
        await bench.submit()
    with pytest.raises(OutboxClosed) as closed:
        await outbox.next()
    assert closed.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert closed.value.message == "the agent has not taken 8 messages; connect again"
    # The next stream gets what was in the queue: nothing is lost with it.
    number, again = bench.engine.open_stream()
    await bench.engine.ask(hello(bench.engine.now_ns(), "node-1", number))
    assert (await again.next()).WhichOneof("body") == "welcome"
    resent = await again.next()
    assert len(resent.assignments.assignments) == LIMITS.outbox_messages_max + 1


async def test_events_beyond_the_bound_are_refused(bench: Bench) -> None:
    small = replace(LIMITS, events_queued_max=2)
    bench.cluster.limits = small
    bench.store.gate.clear()
    held = asyncio.create_task(bench.submit())
    await settle()
    queued = [asyncio.create_task(bench.submit()) for _ in range(2)]
    await settle()
    assert bench.engine.crowded
    with pytest.raises(LimitReached, match="2 events are waiting; try again"):
        await bench.submit()
    bench.store.gate.set()
    assert [await answer for answer in (held, *queued)] == [(1,), (2,), (3,)]


async def test_stopped_engine_tells_its_streams_and_ends(bench: Bench) -> None:
    _, outbox = await bench.join()
    bench.engine.stop()
    await bench.running
    with pytest.raises(OutboxClosed) as closed:
        await outbox.next()
    assert closed.value.code is grpc.StatusCode.UNAVAILABLE


async def test_samples_ask_for_at_most_one_cycle_in_their_gap(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycles: list[int] = []
    run_cycle: Callable[[int], tuple[object, ...]] = bench.engine.scheduler.run_cycle

    def counted(now_ns: int) -> tuple[object, ...]:
        cycles.append(now_ns)
        return run_cycle(now_ns)

    monkeypatch.setattr(bench.engine.scheduler, "run_cycle", counted)
    await bench.submit()
    before = len(cycles)
    for _ in range(50):
        bench.engine.samples_written()
        await asyncio.sleep(0.01)
    gaps = [later - earlier for earlier, later in pairwise(cycles)]
    assert len(cycles) - before in (2, 3)
    assert min(gaps) >= LIMITS.evaluation_gap_ns * 0.95


async def test_node_without_a_stream_cannot_be_asked_for_output(bench: Bench) -> None:
    with pytest.raises(NodeUnavailable, match="node 'node-1' is not connected"):
        bench.engine.outbox_of("node-1")
    number, outbox = await bench.join()
    assert bench.engine.outbox_of("node-1") is outbox
    bench.engine.close_stream(number)
    with pytest.raises(NodeUnavailable):
        bench.engine.outbox_of("node-1")
    # An answer that nobody waits for is nobody's.
    bench.engine.logs.answer(agent_pb2.LogChunk(request_id=7))
