"""Values to rows and back, in the order of the tables' columns.

Reading back gives the value that was saved. What cannot be read is StoreDamaged, by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from controller.core.model import (
    Alert,
    AlertState,
    Attempt,
    Dependency,
    DependencyKind,
    MemoryReservation,
    Node,
    OomCause,
    Preference,
    Scheduling,
    Submission,
    Task,
    TaskSpec,
    TaskState,
)
from controller.store.base import StoreDamaged

# A row as the driver gives it: what is in it is the tables' word, not the type checker's.
Row = Sequence[Any]
NewRow = tuple[object, ...]

_UNREADABLE = (ValueError, TypeError, KeyError)


def task_progress_row(task: Task) -> NewRow:
    """Return what changes in a task's life, in the order of TASK_PROGRESS."""
    return (
        task.state.value,
        task.ended,
        task.reason_code,
        task.reason,
        task.attempt,
        task.node_id,
        task.instance_id,
        task.assigned_at_ns,
        task.started_at_ns,
        task.ended_at_ns,
        task.exit_code,
        task.signal,
        task.memory_peak_bytes,
        task.memory_limit_bytes,
        task.oom_cause.value,
        task.failures,
        task.memory_requeues,
        task.cancelled,
        task.not_before_ns,
        " ".join(map(str, task.gpu_indexes)),
        task.priority_set,
        *_memory_row(task),
    )


def _memory_row(task: Task) -> NewRow:
    return (
        task.memory_size_bytes,
        task.memory_expected_peak_bytes,
        task.memory_elastic,
        task.memory_reason,
        task.memory_reached_bytes,
        task.memory_spared,
        task.guard_kills,
    )


def new_task_row(task: Task) -> NewRow:
    """Return a task's whole row."""
    memory = _memory_row(task)
    progress = task_progress_row(task)[: -len(memory)]
    fixed = (task.array_id, task.array_index, task.spec.name)
    return (task.id, task.user, task.submitted_at_ns, *progress, *fixed, *memory)


def spec_text(spec: TaskSpec) -> str:
    """Return a specification as one line of JSON."""
    return json.dumps(
        {
            "command": spec.command,
            "name": spec.name,
            "category": spec.category,
            "memory_request_bytes": spec.memory_request_bytes,
            "memory_limit_bytes": spec.memory_limit_bytes,
            "cpus": spec.cpus,
            "priority": spec.priority,
            "time_limit_ns": spec.time_limit_ns,
            "retries": spec.retries,
            "requeue": spec.requeue,
            "environment": dict(spec.environment),
            "working_directory": spec.working_directory,
            "constraint": spec.constraint,
            "preference": spec.preference.value,
            "gpus": spec.gpus,
            "stdout_path": spec.stdout_path,
            "stderr_path": spec.stderr_path,
            "hold": spec.hold,
            "retry_delay_ns": spec.retry_delay_ns,
            "after": [(wanted.task_id, wanted.kind.value) for wanted in spec.after],
            "array": spec.array,
            "array_running_max": spec.array_running_max,
            "memory_declared": spec.memory_declared,
            "memory_exact": spec.memory_exact,
            "input_bytes": spec.input_bytes,
            "oom_group": spec.oom_group,
        },
        separators=(",", ":"),
    )


def tasks_from(rows: Iterable[Row]) -> list[Task]:
    """Return the tasks of rows of `tasks`, each with its specification as the last column."""
    found: list[Task] = []
    row: Row = ()
    # Elements of an array have one specification, kept as one object.
    specs: dict[str, TaskSpec] = {}
    try:
        for row in rows:
            text = row[-1]
            spec = specs.get(text)
            if spec is None:
                spec = _spec_from(text)
                specs.clear()  # only neighbours are alike; more would be kept for nothing
                specs[text] = spec
            found.append(_task_from(row, spec))
    except _UNREADABLE as error:
        raise _damaged(f"task {row[0]}", error) from error
    return found


def _task_from(row: Row, spec: TaskSpec) -> Task:
    return Task(
        id=row[0],
        user=row[1],
        submitted_at_ns=row[2],
        state=TaskState(row[3]),
        # row[4], ended, follows from the state.
        reason_code=row[5],
        reason=row[6],
        attempt=row[7],
        node_id=row[8],
        instance_id=row[9],
        assigned_at_ns=row[10],
        started_at_ns=row[11],
        ended_at_ns=row[12],
        exit_code=row[13],
        signal=row[14],
        memory_peak_bytes=row[15],
        memory_limit_bytes=row[16],
        oom_cause=OomCause(row[17]),
        failures=row[18],
        memory_requeues=row[19],
        cancelled=bool(row[20]),
        not_before_ns=row[21],
        gpu_indexes=tuple(map(int, row[22].split())),
        priority_set=row[23],
        array_id=row[24],
        array_index=row[25],
        # row[26], the name, is the specification's.
        memory_size_bytes=row[27],
        memory_expected_peak_bytes=row[28],
        memory_elastic=bool(row[29]),
        memory_reason=row[30],
        memory_reached_bytes=row[31],
        memory_spared=row[32],
        guard_kills=row[33],
        spec=spec,
    )


def _spec_from(text: str) -> TaskSpec:
    fields = json.loads(text)
    fields["command"] = tuple(fields["command"])
    # Absent in what older versions wrote.
    if "preference" in fields:
        fields["preference"] = Preference(fields["preference"])
    fields["after"] = tuple(
        Dependency(task_id, DependencyKind(kind)) for task_id, kind in fields.get("after", ())
    )
    return TaskSpec(**fields)


def attempt_row(attempt: Attempt) -> NewRow:
    """Return the row of an ended attempt."""
    return (
        attempt.task_id,
        attempt.number,
        attempt.node_id,
        attempt.outcome.value,
        attempt.assigned_at_ns,
        attempt.started_at_ns,
        attempt.ended_at_ns,
        attempt.exit_code,
        attempt.signal,
        attempt.memory_peak_bytes,
        attempt.memory_limit_bytes,
        attempt.oom_cause.value,
        attempt.reason,
        attempt.category,
        attempt.input_bytes,
        attempt.declared_bytes,
        attempt.memory_size_bytes,
    )


def attempt_from(row: Row) -> Attempt:
    """Return the attempt of a row."""
    with _reading(f"attempt {row[1]} of task {row[0]}"):
        return Attempt(
            task_id=row[0],
            number=row[1],
            node_id=row[2],
            outcome=TaskState(row[3]),
            assigned_at_ns=row[4],
            started_at_ns=row[5],
            ended_at_ns=row[6],
            exit_code=row[7],
            signal=row[8],
            memory_peak_bytes=row[9],
            memory_limit_bytes=row[10],
            oom_cause=OomCause(row[11]),
            reason=row[12],
            category=row[13],
            input_bytes=row[14],
            declared_bytes=row[15],
            memory_size_bytes=row[16],
        )


def node_row(node: Node) -> NewRow:
    """Return the row of a node."""
    return (
        node.id,
        node.machine_id,
        node.boot_id,
        node.instance_id,
        node.agent_version,
        node.memory_total_bytes,
        node.memory_declared_bytes,
        node.cpus,
        node.enforcement,
        node.joined_at_ns,
        node.scheduling.value,
        node.scheduling_reason,
        node.scheduling_by,
        node.scheduling_since_ns,
        _words_text(node.labels) if node.labels else "",
        node.gpus,
        node.drain_deadline_ns,
    )


def node_from(row: Row) -> Node:
    """Return the node of a row."""
    with _reading(f"node {row[0]}"):
        return Node(
            id=row[0],
            machine_id=row[1],
            boot_id=row[2],
            instance_id=row[3],
            agent_version=row[4],
            memory_total_bytes=row[5],
            memory_declared_bytes=row[6],
            cpus=row[7],
            enforcement=row[8],
            joined_at_ns=row[9],
            scheduling=Scheduling(row[10]),
            scheduling_reason=row[11],
            scheduling_by=row[12],
            scheduling_since_ns=row[13],
            labels=json.loads(row[14]) if row[14] else {},
            gpus=row[15],
            drain_deadline_ns=row[16],
        )


def reservation_row(reservation: MemoryReservation) -> NewRow:
    """Return the row of a reservation."""
    return (
        reservation.id,
        reservation.request_id,
        reservation.node_id,
        reservation.memory_bytes,
        reservation.purpose,
        reservation.user,
        reservation.created_at_ns,
        reservation.expires_at_ns,
    )


def reservation_from(row: Row) -> MemoryReservation:
    """Return the reservation of a row."""
    return MemoryReservation(*row)


def submission_row(submission: Submission) -> NewRow:
    """Return the row of a submission."""
    return (
        submission.request_id,
        submission.first_task_id,
        submission.count,
        submission.at_ns,
    )


def submission_from(row: Row) -> Submission:
    """Return the submission of a row."""
    return Submission(request_id=row[0], first_task_id=row[1], count=row[2], at_ns=row[3])


def alert_row(alert: Alert) -> NewRow:
    """Return the row of an alert."""
    return (
        alert.name,
        alert.node_id,
        alert.task_id,
        alert.state.value,
        _words_text(alert.labels),
        _words_text(alert.annotations),
        None if math.isnan(alert.value) else alert.value,
        alert.active_at_ns,
        alert.fired_at_ns,
        alert.resolved_at_ns,
    )


def alert_from(row: Row) -> Alert:
    """Return the alert of a row."""
    with _reading(f"alert {row[0]} of node {row[1]}"):
        return Alert(
            name=row[0],
            node_id=row[1],
            task_id=row[2],
            state=AlertState(row[3]),
            labels=json.loads(row[4]),
            annotations=json.loads(row[5]),
            value=math.nan if row[6] is None else row[6],
            active_at_ns=row[7],
            fired_at_ns=row[8],
            resolved_at_ns=row[9],
        )


def _words_text(words: Mapping[str, str]) -> str:
    return json.dumps(dict(words), separators=(",", ":"))


@contextmanager
def _reading(thing: str) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise _damaged(thing, error) from error


def _damaged(thing: str, error: Exception) -> StoreDamaged:
    return StoreDamaged(f"{thing} in the store cannot be read: {error!r}")
