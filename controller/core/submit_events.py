"""New tasks come in: single ones, arrays, and whole graphs of tasks that wait for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from controller.core.arrays import array_indexes
from controller.core.cluster import Cluster
from controller.core.commands import Command, Reply, SaveSubmission, SaveTask
from controller.core.control_events import REASONS
from controller.core.dependencies import fulfils
from controller.core.errors import LimitReached, OutcomeUnknown
from controller.core.events import TasksSubmitted
from controller.core.limits import Limits
from controller.core.model import Dependency, Submission, Task, TaskAction, TaskSpec, TaskState
from controller.core.task_events import end

Commands = list[Command]


@dataclass(frozen=True, slots=True)
class _Place:
    """What ids a specification of a call gets: its own, and those of its elements behind it."""

    id: int
    indexes: tuple[int, ...]  # empty for a single task

    @property
    def id_count(self) -> int:
        return 1 + len(self.indexes)


def on_tasks_submitted(cluster: Cluster, event: TasksSubmitted) -> Commands:
    """Accept all tasks of a call, or none. The same request id gets the same answer again.

    Raises:
        LimitReached: the tasks would pass the bound of open tasks.
        OutcomeUnknown: a task that another waits for has ended, and the event does not say how, or
            not of all elements.
    """
    limits = cluster.limits
    known = cluster.submissions.get(event.request_id) if event.request_id else None
    if known is not None:
        return [Reply(_answer(event.specs, known, limits))]
    places = _places(event.specs, cluster.next_task_id, limits)
    count = sum(len(place.indexes) or 1 for place in places)
    if len(cluster.tasks) + count > limits.tasks_open_max:
        raise LimitReached(
            f"{count} more tasks would make {len(cluster.tasks) + count}"
            f" open tasks; the bound is {limits.tasks_open_max}",
            open_tasks=len(cluster.tasks),
            tasks_open_max=limits.tasks_open_max,
        )
    specs = [_numbered(spec, places) for spec in event.specs]
    of_this_call = {place.id for place in places}
    event = _up_to_now(cluster, event)
    _must_know_outcomes(cluster, event, specs, of_this_call)
    first = cluster.next_task_id
    cluster.next_task_id += sum(place.id_count for place in places)
    tasks = [
        task
        for spec, place in zip(specs, places, strict=True)
        for task in _tasks(spec, place, event)
    ]
    commands: Commands = []
    for task in tasks:
        if task.spec.after:
            cluster.dependencies.add(task.id, _unmet(cluster, task, of_this_call))
        cluster.put_task(task)
        commands.append(SaveTask(task))
    for task in tasks:
        commands += _end_hopeless(cluster, task, event)
    if event.request_id:
        submission = Submission(event.request_id, first, cluster.next_task_id - first, event.at_ns)
        cluster.submissions[event.request_id] = submission
        if len(cluster.submissions) > limits.submissions_kept:
            cluster.submissions.popitem(last=False)
        commands.append(SaveSubmission(submission))
    commands.append(Reply(tuple(place.id for place in places)))
    return commands


def _places(specs: Sequence[TaskSpec], first: int, limits: Limits) -> list[_Place]:
    """Return the ids that specifications get, one behind the other."""
    places = []
    for spec in specs:
        indexes = array_indexes(spec.array, limits.array_elements_max) if spec.array else ()
        places.append(_Place(first, indexes))
        first += places[-1].id_count
    return places


def _answer(specs: Sequence[TaskSpec], known: Submission, limits: Limits) -> tuple[int, ...]:
    """Return the ids that an earlier call with the same request id got."""
    places = _places(specs, known.first_task_id, limits)
    if sum(place.id_count for place in places) == known.count:
        return tuple(place.id for place in places)
    # Not the call that it says it is: it gets all that the first one made.
    return tuple(range(known.first_task_id, known.first_task_id + known.count))


def _numbered(spec: TaskSpec, places: Sequence[_Place]) -> TaskSpec:
    """Return the specification with the call's own tasks in `after` by their new ids."""
    if not any(wanted.task_id < 0 for wanted in spec.after):
        return spec
    after = (
        replace(wanted, task_id=places[-wanted.task_id - 1].id) if wanted.task_id < 0 else wanted
        for wanted in spec.after
    )
    return replace(spec, after=tuple(dict.fromkeys(after)))


def _tasks(spec: TaskSpec, place: _Place, event: TasksSubmitted) -> list[Task]:
    state, code, reason = TaskState.PENDING, "", ""
    if spec.hold:
        state, (code, reason) = TaskState.HELD, REASONS[TaskAction.HOLD]
    if not place.indexes:
        return [Task(place.id, spec, event.user, state, event.at_ns, code, reason)]
    return [
        Task(
            place.id + offset,
            spec,  # one object for all elements
            event.user,
            state,
            event.at_ns,
            code,
            reason,
            array_id=place.id,
            array_index=index,
        )
        for offset, index in enumerate(place.indexes, start=1)
    ]


def _up_to_now(cluster: Cluster, event: TasksSubmitted) -> TasksSubmitted:
    """Return the event with what has ended since its outcomes were looked up, as far as kept."""
    since = None if event.ends_seen is None else cluster.ends.since(event.ends_seen)
    if not since or not event.unfinished:
        return event
    ended = event.unfinished & since.keys()
    now = {one: event.outcomes.get(one, frozenset()) | since[one] for one in ended}
    return replace(event, outcomes={**event.outcomes, **now}, unfinished=event.unfinished - ended)


def _must_know_outcomes(
    cluster: Cluster, event: TasksSubmitted, specs: Sequence[TaskSpec], of_this_call: set[int]
) -> None:
    for spec in specs:
        for wanted in spec.after:
            thing_id = wanted.task_id
            if thing_id in of_this_call or cluster.is_open(thing_id):
                continue
            if thing_id not in event.outcomes or thing_id in event.unfinished:
                raise OutcomeUnknown(f"task {thing_id} has ended meanwhile", task=thing_id)


def _unmet(cluster: Cluster, task: Task, of_this_call: set[int]) -> list[Dependency]:
    return [
        wanted
        for wanted in task.spec.after
        if wanted.task_id in of_this_call or cluster.is_open(wanted.task_id)
    ]


def _end_hopeless(cluster: Cluster, task: Task, event: TasksSubmitted) -> Commands:
    """End a new task for which something has ended already in a way that it does not hope for."""
    for wanted in task.spec.after:
        states = event.outcomes.get(wanted.task_id, frozenset())
        states |= cluster.arrays.ended_states(wanted.task_id)
        bad = sorted(state.value for state in states if not fulfils(wanted.kind, state))
        if bad and task.id in cluster.tasks:
            reason = f"waited for {wanted.task_id} to end {wanted.kind.value}: it is {bad[0]}"
            return end(
                cluster, task, TaskState.CANCELLED, "DEPENDENCY_NEVER_MET", reason, event.at_ns
            )
    return []
