"""In which order tasks are shown: running ones first, then starting, waiting and ended ones.

The rule: pages of tasks come by id, which never changes, so no task is lost or told twice between
two of them; what state a task is in decides only how those are shown that have come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mass.v1 import types_pb2

from controller.cli.records import ENDED_STATES

if TYPE_CHECKING:
    from controller.cli.client import Client

State = types_pb2.TaskState

RUNNING_STATES = (
    types_pb2.TASK_STATE_RUNNING,
    types_pb2.TASK_STATE_PAUSED,
    types_pb2.TASK_STATE_STOPPING,
)
STARTING_STATES = (types_pb2.TASK_STATE_STARTING, types_pb2.TASK_STATE_ASSIGNED)
WAITING_STATES = (types_pb2.TASK_STATE_PENDING, types_pb2.TASK_STATE_HELD)
OPEN_STATES = (*RUNNING_STATES, *STARTING_STATES, *WAITING_STATES)
GROUPS: tuple[tuple[State, ...], ...] = (
    RUNNING_STATES,
    STARTING_STATES,
    WAITING_STATES,
    tuple(sorted(ENDED_STATES)),
)
_PLACES = {state: place for place, states in enumerate(GROUPS) for state in states}


def in_order(tasks: Iterable[types_pb2.Task]) -> list[types_pb2.Task]:
    """Return tasks with the running ones first, then starting, waiting and ended ones; of each
    group the newest first."""
    return sorted(tasks, key=lambda task: (_place(task.state), newest_first(task)))


def gather(
    client: Client,
    count_max: int,
    states: Sequence[State | str] = (),
    **wanted: Any,
) -> tuple[list[types_pb2.Task], bool]:
    """Return the newest tasks and the newest that run, start and wait, at most count_max of each,
    in order, and whether there are others.

    The first count_max of them are the first of all tasks in that order. One call, where those are
    all; else one more for each group, which a task goes through from the last one to the first, so
    that one which moves meanwhile is found.
    """
    newest, more = client.tasks(count_max, states, **wanted)
    found = {task.id: task for task in newest}
    if more:
        asked = {State.Value(state) if isinstance(state, str) else state for state in states}
        for group in (WAITING_STATES, STARTING_STATES, RUNNING_STATES):
            chosen = [state for state in group if not asked or state in asked]
            if chosen:
                tasks, _ = client.tasks(count_max, chosen, **wanted)
                found.update((task.id, task) for task in tasks)
    return in_order(found.values()), more


def newest_first(task: types_pb2.Task) -> tuple[int, int]:
    """Return what sorts tasks so that the newest comes first."""
    first, _, element = task.id.partition("_")
    return -int(first), -int(element or 0)


def _place(state: State) -> int:
    return _PLACES.get(state, len(GROUPS))
