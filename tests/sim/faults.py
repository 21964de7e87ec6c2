"""Faults planted into the real code, each of a kind that somebody could write.

A simulation that does not notice them proves nothing: the tests hold every one against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from sim.agents import Agent

from agent.lifecycle import Lifecycle
from controller.core import (
    drain_events,
    node_events,
    reservation_events,
    submit_events,
    task_events,
)
from controller.core.cluster import Cluster
from controller.core.commands import Command, SaveNode, SaveSubmission, SendWelcome
from controller.core.events import AttemptEnded, AttemptStarted, Event
from controller.core.limits import Limits
from controller.core.model import PLACED_STATES, Scheduling, Task, TaskState
from controller.core.placement import Quotas
from controller.core.scheduler import Scheduler
from controller.engine import Engine

Fault = tuple[Any, str, Any]  # what is replaced where, and by what

_carry_out = Engine._carry_out
_handle = Scheduler.handle
_send = Engine._send
_release = Cluster.release
_settle = node_events.settle


async def _send_before_save(engine: Engine, commands: list[Command], *more: Any) -> None:
    engine._send(commands)
    with patch.object(engine, "_send"):
        await _carry_out(engine, commands, *more)


def _fence_removed(cluster: Cluster, event: AttemptStarted | AttemptEnded) -> Task | None:
    task = cluster.tasks.get(event.task_id)
    return task if task is not None and task.state in PLACED_STATES else None


def _welcomes_first(engine: Engine, commands: list[Command]) -> None:
    _send(engine, sorted(commands, key=lambda command: not isinstance(command, SendWelcome)))


def _submission_not_saved(scheduler: Scheduler, event: Event) -> tuple[Command, ...]:
    commands = _handle(scheduler, event)
    return tuple(command for command in commands if not isinstance(command, SaveSubmission))


def _sent_to_any_instance(task: Task, instance_id: str) -> bool:
    return task.state is TaskState.ASSIGNED


def _reservation_kept(cluster: Cluster, task_id: int) -> None:
    with patch.object(cluster.ledger, "release"):
        _release(cluster, task_id)


def _all_drained(cluster: Cluster, now_ns: int) -> list[Command]:
    commands: list[Command] = []
    for node_id in sorted(cluster.draining):
        record = cluster.nodes[node_id]
        record.node = replace(record.node, scheduling=Scheduling.DRAINED)
        commands.append(SaveNode(record.node))
    cluster.draining.clear()
    return commands


def _nothing_recovered(lifecycle: Lifecycle, ended: object) -> None:
    """Forget the ends that an earlier agent kept."""


FAULTS: dict[str, Fault] = {
    "words are sent before they are saved": (Engine, "_carry_out", _send_before_save),
    "an old attempt's report passes the fence": (task_events, "_fenced", _fence_removed),
    "the next agent process gets the acknowledgements of the last": (
        Engine,
        "_send",
        _welcomes_first,
    ),
    "an assignment is sent to another agent process": (
        node_events,
        "_never_arrived",
        _sent_to_any_instance,
    ),
    "the answer to a submit is not saved": (Scheduler, "handle", _submission_not_saved),
    "a reservation is not released": (Cluster, "release", _reservation_kept),
    "attempts are given up before their lease": (
        Limits,
        "lost_after_ns",
        property(lambda limits: limits.node_unreachable_ns),
    ),
    "the agent does not watch its lease": (Agent, "_check_lease", lambda _: None),
    "a task starts although what it waits for had failed": (
        submit_events,
        "_end_hopeless",
        lambda *_: [],
    ),
    "a node is called drained while it has tasks": (drain_events, "advance_drains", _all_drained),
    "an expired reservation is kept": (
        reservation_events,
        "expire_reservations",
        lambda *_: [],
    ),
    "an array takes no notice of its bound": (Quotas, "refusal", lambda *_: ""),
    "the agent forgets what it kept for its next life": (Lifecycle, "recover", _nothing_recovered),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Put a fault in place for a while."""
    owner, attribute, instead = FAULTS[name]
    with patch.object(owner, attribute, instead):
        yield


def seed_that_notices(name: str, seeds: Iterable[int], live: Callable[[int], object]) -> int | None:
    """Return the first seed whose story breaks under a fault, or None."""
    with planted(name):
        for seed in seeds:
            try:
                live(seed)
            except AssertionError:
                return seed
    return None
