"""What happened lately, for those who follow it: a bounded ring, filled after each save.

It is made from the commands of a turn that is saved, never from what is not. What is kept is small
and becomes an event only when somebody reads it, so that a busy cluster that nobody follows pays
next to nothing. A follower is a place in the ring: one that is too slow loses the oldest events and
is told how many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from controller.core.cluster import Cluster
from controller.core.commands import (
    Command,
    ForgetNode,
    ForgetReservation,
    NoteGuardStep,
    Notify,
    SaveNode,
    SaveReservation,
    SaveTask,
)
from controller.core.errors import LimitReached, MassError
from controller.core.limits import Limits
from controller.core.model import (
    Alert,
    GuardStep,
    MemoryReservation,
    Node,
    NodeState,
    OomCause,
    Scheduling,
    TaskState,
)

READ_MAX = 500  # entries that a follower is given at once


class TaskChanged(NamedTuple):
    """A task as it was saved, without its command, which may be large."""

    id: int
    label: str
    name: str
    state: TaskState
    attempt: int
    node_id: str
    reason_code: str
    reason: str
    exit_code: int | None
    signal: int | None
    memory_peak_bytes: int
    memory_limit_bytes: int | None
    oom_cause: OomCause
    priority: int


class NodeStateChanged(NamedTuple):
    """A node can be reached, or not any more."""

    node_id: str
    state: NodeState


class SchedulingChanged(NamedTuple):
    """People let tasks onto a node, or keep them off."""

    node_id: str
    scheduling: Scheduling
    reason: str
    user: str


class NodeForgotten(NamedTuple):
    """A node was removed for good."""

    node_id: str


class ReservationEnded(NamedTuple):
    """A reservation of memory was given back, or its time is over."""

    reservation_id: int


class GuardStepped(NamedTuple):
    """A node's guard did something to keep the node from running out of memory."""

    node_id: str
    step: GuardStep


class Reloaded(NamedTuple):
    """Rules and settings were read again; `taken` says whether they are in force."""

    taken: bool
    text: str


class Dropped(NamedTuple):
    """A follower was too slow for so many events."""

    event_count: int


Happening = (
    TaskChanged
    | NodeStateChanged
    | SchedulingChanged
    | NodeForgotten
    | Alert
    | MemoryReservation
    | ReservationEnded
    | GuardStepped
    | Reloaded
    | Dropped
)
# One call in C reads all fields in the order of TaskChanged.
_TASK_FIELDS = attrgetter(
    *("spec.name" if field == "name" else field for field in TaskChanged._fields)
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened; sequences count from 1 since the controller's start."""

    sequence: int
    at_ns: int
    happening: Happening


class JournalClosed(MassError):
    """The controller is shutting down; follow the next one."""

    reason = "JOURNAL_CLOSED"


class Follower:
    """A place in the ring; see `Journal.follow`."""

    def __init__(self, journal: Journal, position: int) -> None:
        self._journal = journal
        self._position = position  # the sequence read last
        self.grown = asyncio.Event()

    async def next(self) -> list[Entry]:
        """Return the next entries, at most READ_MAX, waiting for at least one.

        Where events were dropped, the first entry counts them.

        Raises:
            JournalClosed: the controller is shutting down, and all was read.
        """
        while not (entries := self._journal.read(self._position)):
            self._journal.check_open()
            self.grown.clear()
            await self.grown.wait()
        self._position = entries[-1].sequence
        return entries


class Journal:
    """The latest events_kept_max events."""

    def __init__(self, limits: Limits) -> None:
        self._kept_max = limits.events_kept_max
        self._followers_max = limits.event_followers_max
        # By sequence modulo kept_max, so that any place is found at once.
        self._ring: list[tuple[int, Happening]] = []
        self._count = 0  # the sequence of the latest
        self._followers: set[Follower] = set()
        self._nodes: dict[str, tuple[NodeState | None, Scheduling]] = {}  # as told last
        self._closed = False

    # --- writing ---

    def record(self, commands: Iterable[Command], cluster: Cluster, at_ns: int) -> None:
        """Note what the commands of a saved turn say, and what became of nodes since the last."""
        before = self._count
        for command in commands:
            if isinstance(command, SaveTask):
                # Around 0.5 us: this is on the path of every task.
                self._put(at_ns, TaskChanged(*_TASK_FIELDS(command.task)))
            elif isinstance(command, Notify):
                self._put(at_ns, command.alert)
            elif isinstance(command, NoteGuardStep):
                self._put(at_ns, GuardStepped(command.node_id, command.step))
            elif isinstance(command, SaveNode):
                self._note_scheduling(at_ns, command.node)
            elif isinstance(command, ForgetNode):
                self._nodes.pop(command.node_id, None)
                self._put(at_ns, NodeForgotten(command.node_id))
            elif isinstance(command, SaveReservation):
                self._put(at_ns, command.reservation)
            elif isinstance(command, ForgetReservation):
                self._put(at_ns, ReservationEnded(command.reservation_id))
        for node_id in cluster.table.take_changed():
            record = cluster.nodes.get(node_id)
            if record is not None:
                self._note_state(at_ns, record.node, record.state)
        if self._count != before:
            self._wake()

    def add(self, at_ns: int, happening: Happening) -> None:
        """Note one thing that is no command."""
        self._put(at_ns, happening)
        self._wake()

    def close(self) -> None:
        """End all followers once they have read what is kept."""
        self._closed = True
        self._wake()

    def _put(self, at_ns: int, happening: Happening) -> None:
        if self._count < self._kept_max:
            self._ring.append((at_ns, happening))
        else:
            self._ring[self._count % self._kept_max] = (at_ns, happening)
        self._count += 1

    def _note_scheduling(self, at_ns: int, node: Node) -> None:
        """Tell a changed scheduling; a node is also saved when its agent comes back."""
        state, told = self._nodes.get(node.id, (None, Scheduling.ENABLED))
        self._nodes[node.id] = (state, node.scheduling)
        if told is not node.scheduling:
            self._put(
                at_ns,
                SchedulingChanged(
                    node.id, node.scheduling, node.scheduling_reason, node.scheduling_by
                ),
            )

    def _note_state(self, at_ns: int, node: Node, state: NodeState) -> None:
        told, scheduling = self._nodes.get(node.id, (None, node.scheduling))
        if told is not state:
            self._nodes[node.id] = (state, scheduling)
            self._put(at_ns, NodeStateChanged(node.id, state))

    def _wake(self) -> None:
        for follower in self._followers:
            follower.grown.set()

    # --- reading ---

    @contextmanager
    def follow(self, last: int = 0) -> Iterator[Follower]:
        """Give a follower that begins with the last so many kept events; 0 means with all.

        Raises:
            LimitReached: event_followers_max follow already.
        """
        if len(self._followers) >= self._followers_max:
            raise LimitReached(
                f"{len(self._followers)} follow the events, which is the bound; try again later"
            )
        follower = Follower(self, self._first(last) - 1)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    def read(self, after: int) -> list[Entry]:
        """Return the entries behind a sequence, at most READ_MAX, oldest first.

        Where some of them are not kept any more, the first entry says how many; its sequence is
        that of the last one dropped.
        """
        first = max(after + 1, self._count - len(self._ring) + 1)
        entries = [self._entry(s) for s in range(first, min(self._count, first + READ_MAX - 1) + 1)]
        if first > after + 1:
            dropped = Dropped(first - 1 - after)
            entries.insert(0, Entry(first - 1, entries[0].at_ns, dropped))
        return entries

    def read_last(self, last: int = 0) -> list[Entry]:
        """Return the last so many kept entries, oldest first; 0 means all."""
        return [self._entry(s) for s in range(self._first(last), self._count + 1)]

    def check_open(self) -> None:
        """Return while more may come.

        Raises:
            JournalClosed: the controller is shutting down.
        """
        if self._closed:
            raise JournalClosed("the controller is shutting down")

    def _first(self, last: int) -> int:
        """Return the sequence of the first of the last so many kept entries."""
        kept = len(self._ring)
        return self._count - (min(last, kept) if last else kept) + 1

    def _entry(self, sequence: int) -> Entry:
        at_ns, happening = self._ring[(sequence - 1) % self._kept_max]
        return Entry(sequence, at_ns, happening)
