"""Tells what happens in the demonstration as it happens, and remembers it.

The rule: everything comes from the controller's events, nothing is told that was not seen.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from controller.cli.children import Child, StopSignals
from controller.cli.output import printable
from controller.core.errors import MassError

if TYPE_CHECKING:
    from mass.v1.event_pb2 import Event

    from controller.cli.client import Client

RUNNING = "RUNNING"
ENDED = frozenset({"SUCCEEDED", "FAILED", "OUT_OF_MEMORY", "TIMED_OUT", "CANCELLED", "LOST"})


class NotAsTold(MassError):
    """Something that belongs to the story did not happen in time."""

    reason = "NOT_AS_TOLD"


@dataclass(slots=True)
class Life:
    """What was seen of one task; instants in nanoseconds, 0 for not yet."""

    name: str
    started_at_ns: int = 0
    ended_at_ns: int = 0
    end: str = ""
    reason: str = ""


@dataclass(slots=True)
class Seen:
    """What was seen of everything."""

    tasks: dict[str, Life] = field(default_factory=dict)  # by the id that people read
    running_max: dict[str, int] = field(default_factory=dict)  # tasks of a name at once
    nodes: dict[str, str] = field(default_factory=dict)  # the state of each
    alerts: dict[str, list[str]] = field(default_factory=dict)  # states by name, in order
    reloads: list[str] = field(default_factory=list)

    def named(self, name: str) -> list[Life]:
        """Return what was seen of all tasks of a name."""
        return [life for life in self.tasks.values() if life.name == name]

    def take(self, event: Event) -> str:
        """Remember an event and return it as a sentence; empty for what is not worth one."""
        details = event.details
        match event.kind:
            case "TASK_STATE":
                return self._take_task(event)
            case "NODE_STATE":
                self.nodes[details["node_id"]] = details["state"]
                return event.text if details["state"] != "JOINING" else ""
            case "ALERT":
                self.alerts.setdefault(details["alert"], []).append(details["state"])
                return event.text
            case "CONFIGURATION":
                self.reloads.append(details["state"])
                return f"the controller has read its rules again: {event.text}"
        return event.text

    def _take_task(self, event: Event) -> str:
        details, at_ns = event.details, event.at.ToNanoseconds()
        label, name, state = details["task"], details["name"], details["state"]
        life = self.tasks.setdefault(label, Life(name))
        if state == RUNNING and not life.started_at_ns:
            life.started_at_ns = at_ns
            running = sum(1 for one in self.named(name) if one.started_at_ns and not one.end)
            self.running_max[name] = max(self.running_max.get(name, 0), running)
            return event.text
        if state in ENDED:
            life.ended_at_ns, life.end, life.reason = at_ns, state, details["reason"]
            return event.text
        return ""


class Story:
    """Follows the controller's events in a thread and tells them in the caller's."""

    def __init__(
        self,
        client: Client,
        tell: Callable[[str], None],
        children: Sequence[Child],
        stop: StopSignals,
    ) -> None:
        self.seen = Seen()
        self._tell = tell
        self._children = children
        self._stop = stop
        # Bounded by what a demonstration does: some hundred events.
        self._events: queue.SimpleQueue[Event | MassError] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, args=(client,), daemon=True)
        self._thread.start()

    def say(self, sentence: str, at: datetime | None = None) -> None:
        """Tell a sentence with its time, now where none is given."""
        self._tell(f"{at or datetime.now():%H:%M:%S}  {printable(sentence)}")

    def until(self, condition: Callable[[], bool], what: str, seconds_max: float = 20.0) -> None:
        """Tell what happens until the condition holds.

        Raises:
            NotAsTold: it does not hold in time.
            ChildDied: a process has ended.
            KeyboardInterrupt: the user asked to stop.
        """
        give_up_at = time.monotonic() + seconds_max
        while True:
            self._take_waiting()
            if condition():
                return
            for child in self._children:
                child.check()
            if time.monotonic() > give_up_at:
                raise NotAsTold(f"within {seconds_max:.0f} s this did not happen: {what}")
            if self._stop.wait(0.05):
                raise KeyboardInterrupt

    def watch(self, seconds: float) -> None:
        """Tell what happens for so long. Raises what `until` raises but NotAsTold."""
        end_at = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end_at, "time passes", seconds + 1.0)

    def _take_waiting(self) -> None:
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if isinstance(event, MassError):
                raise event
            sentence = self.seen.take(event)
            if sentence:
                self.say(sentence, datetime.fromtimestamp(event.at.ToNanoseconds() / 1e9))

    def _follow(self, client: Client) -> None:
        try:
            for event in client.events(follow=True):
                self._events.put(event)
        except MassError as error:  # told by the next `until`; at the end nobody waits any more
            self._events.put(error)
