"""The journal: what is kept and told of what happened, to whom, and how much of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.builders import spec

from controller.core.commands import (
    Command,
    ForgetNode,
    ForgetReservation,
    Notify,
    SaveAlert,
    SaveNode,
    SaveReservation,
    SaveTask,
    SendAcknowledgement,
)
from controller.core.errors import LimitReached
from controller.core.limits import DEFAULT_LIMITS, GIB, MIB
from controller.core.model import (
    Alert,
    AlertState,
    MemoryReservation,
    Node,
    NodeState,
    OomCause,
    Scheduling,
    Task,
    TaskState,
)
from controller.event_views import event_view
from controller.journal import Dropped, Entry, Happening, Journal, JournalClosed, Reloaded

SMALL = replace(DEFAULT_LIMITS, events_kept_max=5, event_followers_max=2)
NODE = Node("n1", "machine", "boot", "instance", "1", 8 * GIB, None, 4.0, "cgroup1", 1)
TASK = Task(12, spec("64MiB"), "ada", TaskState.PENDING, 1)
ALERT = Alert(
    "Full", "n1", AlertState.FIRING, {"severity": "warning"}, {"summary": "n1 is full"}, 95.5, 1, 2
)


class Cluster:
    """As much of a cluster as the journal reads: nodes, and which of them have changed."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}
        self.table = self
        self.changed: list[str] = []

    def take_changed(self) -> list[str]:
        changed, self.changed = self.changed, []
        return changed

    def set_state(self, state: NodeState, node: Node = NODE) -> None:
        self.nodes[node.id] = SimpleNamespace(node=node, state=state)
        self.changed.append(node.id)


class Bench:
    """A journal and the cluster it is told of."""

    def __init__(self) -> None:
        self.journal = Journal(SMALL)
        self.cluster = Cluster()
        self.at_ns = 0

    def record(self, *commands: Command) -> None:
        self.at_ns += 1
        cluster: Any = self.cluster
        self.journal.record(commands, cluster, self.at_ns)

    def texts(self, last: int = 0) -> list[str]:
        return [event_view(entry).text for entry in self.journal.read_last(last)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def numbered(count: int) -> list[Command]:
    return [SaveTask(replace(TASK, id=number)) for number in range(1, count + 1)]


def sequences(entries: list[Entry]) -> list[int]:
    return [entry.sequence for entry in entries]


def test_only_the_newest_are_kept_and_sequences_go_on(bench: Bench) -> None:
    bench.record(*numbered(3))
    assert sequences(bench.journal.read_last()) == [1, 2, 3]
    bench.record(*numbered(4))
    assert sequences(bench.journal.read_last()) == [3, 4, 5, 6, 7]
    assert [entry.at_ns for entry in bench.journal.read_last()] == [1, 2, 2, 2, 2]
    assert sequences(bench.journal.read_last(2)) == [6, 7]
    assert sequences(bench.journal.read_last(50)) == [3, 4, 5, 6, 7]
    assert bench.texts(1) == ["task 4 (work) waits"]


def test_what_is_no_event_is_not_kept(bench: Bench) -> None:
    quiet = replace(ALERT, state=AlertState.PENDING)
    bench.record(SendAcknowledgement("n1", 1), SaveAlert(quiet), SaveNode(NODE))
    assert bench.journal.read_last() == []


async def test_follower_gets_the_kept_ones_and_then_each_new_one(bench: Bench) -> None:
    bench.record(*numbered(3))
    with bench.journal.follow(last=2) as follower:
        assert sequences(await follower.next()) == [2, 3]
        waiting = asyncio.create_task(follower.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        bench.record(*numbered(1))
        assert sequences(await waiting) == [4]


async def test_slow_follower_loses_the_oldest_and_is_told_how_many(bench: Bench) -> None:
    with bench.journal.follow() as follower:
        bench.record(*numbered(2))
        assert sequences(await follower.next()) == [1, 2]
        bench.record(*numbered(9))
        first, *rest = await follower.next()
        assert first == Entry(6, 2, Dropped(4))
        assert sequences(rest) == [7, 8, 9, 10, 11]
        assert event_view(first).text == "4 events were dropped: they were not read in time"


async def test_followers_are_bounded_and_leave_their_place(bench: Bench) -> None:
    with (
        bench.journal.follow(),
        bench.journal.follow(),
        pytest.raises(LimitReached, match="2 follow the events, which is the bound"),
        bench.journal.follow(),
    ):
        pass
    with bench.journal.follow():
        pass


async def test_closed_journal_ends_followers_once_they_have_read_all(bench: Bench) -> None:
    bench.record(*numbered(2))
    with bench.journal.follow() as follower:
        bench.journal.close()
        assert sequences(await follower.next()) == [1, 2]
        with pytest.raises(JournalClosed, match="the controller is shutting down"):
            await follower.next()


def test_state_of_a_node_is_told_when_it_is_another(bench: Bench) -> None:
    bench.cluster.set_state(NodeState.JOINING)
    bench.record(SaveNode(NODE))
    for state in (NodeState.READY, NodeState.READY, NodeState.UNREACHABLE, NodeState.DOWN):
        bench.cluster.set_state(state)
        bench.record()
    assert bench.texts() == [
        "node n1 has connected",
        "node n1 is ready",
        "node n1 does not answer",
        "node n1 is down",
    ]
    bench.cluster.changed.append("gone")
    bench.record()
    assert len(bench.texts()) == 4


def test_scheduling_is_told_when_it_changes_not_when_an_agent_comes_back(bench: Bench) -> None:
    closed = replace(
        NODE, scheduling=Scheduling.CORDONED, scheduling_reason="disk", scheduling_by="ada"
    )
    bench.record(SaveNode(NODE), SaveNode(closed), SaveNode(closed), SaveNode(NODE))
    assert bench.texts() == ["node n1 is cordoned by ada: disk", "node n1 takes new tasks again"]
    bench.record(ForgetNode("n1"))
    assert bench.texts(1) == ["node n1 is forgotten"]
    assert bench.journal._nodes == {}


SHOWN: list[tuple[Happening | Command, str, str, str, dict[str, str]]] = [
    (
        SaveTask(TASK),
        "TASK_STATE",
        "task 12",
        "task 12 (work) waits",
        {"task_id": "12", "task": "12", "name": "work", "state": "PENDING"},
    ),
    (
        SaveTask(replace(TASK, state=TaskState.RUNNING, attempt=1, node_id="n1", array_id=11,
                         array_index=3, priority_set=7, memory_limit_bytes=MIB)),
        "TASK_STATE",
        "task 11_3",
        "task 11_3 (work) runs on n1",
        {"task_id": "12", "task": "11_3", "name": "work", "state": "RUNNING", "attempt": "1",
         "node_id": "n1", "priority": "7", "memory_limit_bytes": "1048576"},
    ),
    (
        SaveTask(replace(TASK, state=TaskState.OUT_OF_MEMORY, attempt=2, node_id="n1", signal=9,
                         oom_cause=OomCause.OWN_LIMIT, memory_peak_bytes=MIB, reason="outgrew it",
                         reason_code="OOM_OWN_LIMIT", memory_limit_bytes=MIB)),
        "TASK_STATE",
        "task 12",
        "task 12 (work) ended OUT_OF_MEMORY on n1: outgrew it",
        {"task_id": "12", "task": "12", "name": "work", "state": "OUT_OF_MEMORY", "attempt": "2",
         "node_id": "n1", "signal": "9", "oom_cause": "OWN_LIMIT", "memory_peak_bytes": "1048576",
         "memory_limit_bytes": "1048576", "reason": "outgrew it", "reason_code": "OOM_OWN_LIMIT"},
    ),
    (
        SaveTask(replace(TASK, attempt=1, reason_code="REQUEUED", reason="node n1 was lost")),
        "TASK_STATE",
        "task 12",
        "task 12 (work) is queued again: node n1 was lost",
        {"task_id": "12", "task": "12", "name": "work", "state": "PENDING", "attempt": "1",
         "reason": "node n1 was lost", "reason_code": "REQUEUED"},
    ),
    (
        SaveTask(replace(TASK, state=TaskState.CANCELLED, reason="cancelled by its user")),
        "TASK_STATE",
        "task 12",
        "task 12 (work) ended CANCELLED: cancelled by its user",
        {"task_id": "12", "task": "12", "name": "work", "state": "CANCELLED",
         "reason": "cancelled by its user"},
    ),
    (
        Notify(ALERT),
        "ALERT",
        "alert Full",
        "alert Full fires on node n1: n1 is full",
        {"alert": "Full", "state": "FIRING", "node_id": "n1", "value": "95.5",
         "severity": "warning", "summary": "n1 is full"},
    ),
    (
        Notify(replace(ALERT, state=AlertState.RESOLVED, task_id=12, resolved_at_ns=3)),
        "ALERT",
        "alert Full",
        "alert Full is resolved on task 12 on node n1",
        {"alert": "Full", "state": "RESOLVED", "node_id": "n1", "task_id": "12", "value": "95.5",
         "severity": "warning", "summary": "n1 is full"},
    ),
    (
        Notify(replace(ALERT, node_id="", annotations={})),
        "ALERT",
        "alert Full",
        "alert Full fires on the cluster",
        {"alert": "Full", "state": "FIRING", "value": "95.5", "severity": "warning"},
    ),
    (
        SaveReservation(MemoryReservation(3, "id", "n1", 2 * GIB, "cache", "ada", 1, 60 * 10**9)),
        "RESERVATION",
        "reservation 3",
        "reservation 3 keeps 2 GiB of node n1 until 1970-01-01T00:01:00Z",
        {"reservation_id": "3", "state": "SET_ASIDE", "node_id": "n1",
         "memory_bytes": "2147483648", "purpose": "cache", "user": "ada",
         "expires_at": "1970-01-01T00:01:00Z"},
    ),
    (
        ForgetReservation(3),
        "RESERVATION",
        "reservation 3",
        "reservation 3 has ended",
        {"reservation_id": "3", "state": "ENDED"},
    ),
    (
        Reloaded(False, "reload refused: a reason"),
        "CONFIGURATION",
        "configuration",
        "reload refused: a reason",
        {"state": "REFUSED"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("happening", "kind", "subject", "text", "details"), SHOWN, ids=[row[3] for row in SHOWN]
)
def test_event_has_kind_subject_sentence_and_values(
    bench: Bench,
    happening: Happening | Command,
    kind: str,
    subject: str,
    text: str,
    details: dict[str, str],
) -> None:
    if isinstance(happening, Reloaded):
        bench.journal.add(1, happening)
    else:
        command: Any = happening
        bench.record(command)
    (event,) = [event_view(entry) for entry in bench.journal.read_last()]
    assert (event.sequence, event.at.ToNanoseconds()) == (1, 1)
    assert (event.kind, event.subject, event.text) == (kind, subject, text)
    assert dict(event.details) == details
