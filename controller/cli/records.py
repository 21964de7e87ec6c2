"""Turns messages of mass.v1 into what people and programs read.

The rule: a record's keys are stable and snake_case, states are the plain words, memory is in bytes
as integers, instants are RFC 3339 in UTC, durations are seconds, and what does not apply is null.
"""

from __future__ import annotations

import time
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mass.v1 import event_pb2, memory_pb2, rule_pb2, task_pb2, types_pb2

from controller.core.errors import InvalidRequest

# The values are JSON's: text, numbers, booleans, lists and objects of them.
Record = dict[str, Any]

ENDED_STATES = frozenset(
    {
        types_pb2.TASK_STATE_SUCCEEDED,
        types_pb2.TASK_STATE_FAILED,
        types_pb2.TASK_STATE_OUT_OF_MEMORY,
        types_pb2.TASK_STATE_TIMED_OUT,
        types_pb2.TASK_STATE_CANCELLED,
        types_pb2.TASK_STATE_LOST,
    }
)


def task_state(task: types_pb2.Task) -> str:
    """Return the word for a task's state, for example RUNNING."""
    return _word(types_pb2.TaskState, "TASK_STATE_", task.state)


def node_state(node: types_pb2.Node) -> str:
    """Return the word for a node's state, for example READY."""
    return _word(types_pb2.NodeState, "NODE_STATE_", node.state)


def node_scheduling(node: types_pb2.Node) -> str:
    """Return the word for a node's scheduling, for example CORDONED."""
    return _word(types_pb2.Scheduling, "SCHEDULING_", node.scheduling)


def node_pressure(node: types_pb2.Node) -> str:
    """Return the word for a node's pressure, for example HIGH."""
    return _word(types_pb2.Pressure, "PRESSURE_", node.pressure)


def alert_state(alert: types_pb2.Alert) -> str:
    """Return the word for an alert's state, for example FIRING."""
    return _word(types_pb2.AlertState, "ALERT_STATE_", alert.state)


def task_states_of(words: list[str]) -> list[str]:
    """Return the wire's names of the states with these words, in any case.

    Raises:
        InvalidRequest: not a state; the message names the word and lists all states.
    """
    names = {
        value.name.removeprefix("TASK_STATE_"): value.name
        for value in types_pb2.TaskState.DESCRIPTOR.values
        if value.number != types_pb2.TASK_STATE_UNSPECIFIED
    }
    for word in words:
        if word.upper() not in names:
            raise InvalidRequest(f"state '{word}' is none of {', '.join(names)}")
    return [names[word.upper()] for word in words]


def task_record(task: types_pb2.Task) -> Record:
    """Return a task as JSON shows it."""
    spec = task.spec
    return {
        "id": task.id,
        "name": spec.name,
        "category": spec.category,
        "command": list(spec.command),
        "state": task_state(task),
        "reason_code": task.reason_code or None,
        "reason": task.reason or None,
        "user": task.user or None,
        "attempt": task.attempt,
        "node_id": task.node_id or None,
        "priority": spec.priority,
        "cpus": spec.cpus,
        "memory_request_bytes": spec.memory_request_bytes,
        "memory_auto": task.memory_auto,
        "memory_exact": spec.memory_exact,
        "memory_size_bytes": task.memory_size_bytes,
        "memory_expected_peak_bytes": task.memory_expected_peak_bytes or None,
        "memory_elastic": task.memory_elastic,
        "memory_reason": task.memory_reason or None,
        "input_bytes": spec.input_bytes or None,
        "oom_group": spec.oom_group,
        "memory_limit_asked_bytes": spec.memory_limit_bytes or None,
        "memory_limit_bytes": task.memory_limit_bytes or None,
        "memory_reserved_bytes": task.memory_reserved_bytes,
        "memory_used_bytes": task.memory_used_bytes,
        "memory_peak_bytes": task.memory_peak_bytes,
        "time_limit_seconds": _seconds(spec.time_limit) if spec.HasField("time_limit") else None,
        "retries": spec.retries,
        "no_requeue": spec.no_requeue,
        "failures": task.failures,
        "memory_requeues": task.memory_requeues,
        "memory_spared": task.memory_spared,
        "environment": dict(sorted(spec.environment.items())),
        "working_directory": spec.working_directory or None,
        "constraint": spec.constraint or None,
        "gpus": spec.gpus,
        "gpu_indexes": list(task.gpu_indexes),
        "stdout_path": spec.stdout_path or None,
        "stderr_path": spec.stderr_path or None,
        "after": [f"{wanted.task_id}:{_dependency_kind(wanted)}" for wanted in spec.after],
        "array_id": task.array_id or None,
        "array_index": task.array_index if task.array_id else None,
        "not_before": _instant(task, "not_before"),
        "submitted_at": _instant(task, "submitted_at"),
        "started_at": _instant(task, "started_at"),
        "ended_at": _instant(task, "ended_at"),
        "exit_code": task.exit_code if task.HasField("exit_code") else None,
        "signal": task.signal if task.HasField("signal") else None,
        "oom_cause": _word(types_pb2.OomCause, "OOM_CAUSE_", task.oom_cause)
        if task.oom_cause
        else None,
    }


def category_record(category: memory_pb2.Category) -> Record:
    """Return what was learned of a category as JSON shows it."""
    return {
        "name": category.name,
        "succeeded": category.succeeded,
        "failed": category.failed,
        "out_of_memory": category.out_of_memory,
        "spared": category.spared,
        "tasks_placed": category.tasks_placed,
        "memory_peak_median_bytes": category.memory_peak_median_bytes or None,
        "memory_peak_p95_bytes": category.memory_peak_p95_bytes or None,
        "memory_peak_max_bytes": category.memory_peak_max_bytes or None,
        "runtime_median_seconds": _seconds(category.runtime_median)
        if category.HasField("runtime_median")
        else None,
        "memory_declared_bytes": category.memory_declared_bytes or None,
        "over_declared": category.over_declared or None,
        "memory_size_bytes": category.memory_size_bytes,
        "memory_expected_peak_bytes": category.memory_expected_peak_bytes or None,
        "memory_reason": category.memory_reason,
    }


def refusal_record(refusal: task_pb2.NodeRefusal) -> Record:
    """Return why a node cannot take a task as JSON shows it."""
    return {
        "node_id": refusal.node_id,
        "reason_code": refusal.reason_code,
        "reason": refusal.reason,
        "requested_bytes": refusal.requested_bytes,
        "promise_bytes": refusal.promise_bytes,
        "foreign_used_bytes": refusal.foreign_used_bytes,
        "reserved_bytes": refusal.reserved_bytes,
    }


def node_record(node: types_pb2.Node) -> Record:
    """Return a node as JSON shows it."""
    return {
        "id": node.id,
        "state": node_state(node),
        "state_reason": node.state_reason or None,
        "scheduling": node_scheduling(node),
        "scheduling_reason": node.scheduling_reason or None,
        "scheduling_by": node.scheduling_by or None,
        "scheduling_since": _instant(node, "scheduling_since"),
        "pressure": node_pressure(node),
        "memory_total_bytes": node.memory_total_bytes,
        "memory_capacity_bytes": node.memory_capacity_bytes,
        "memory_used_bytes": node.memory_used_bytes,
        "memory_available_bytes": node.memory_available_bytes,
        "memory_reserved_bytes": node.memory_reserved_bytes,
        "memory_tasks_used_bytes": node.memory_tasks_used_bytes,
        "memory_foreign_bytes": node.memory_foreign_bytes,
        "memory_promise_bytes": node.memory_promise_bytes,
        "cpus": node.cpus,
        "cpus_used": node.cpus_used,
        "cpu_percent": node.cpu_percent,
        "tasks_running": node.tasks_running,
        "last_seen_at": _instant(node, "last_seen_at"),
        "machine_id": node.machine_id or None,
        "agent_version": node.agent_version or None,
        "enforcement": node.enforcement or None,
        "capabilities": list(node.capabilities),
        "labels": dict(sorted(node.labels.items())),
        "gpus": node.gpus,
        "gpus_used": node.gpus_used,
        "drain_deadline": _instant(node, "drain_deadline"),
        "intake_stopped": node.intake_stopped,
        "guard_steps": list(node.guard_steps),
        "metrics": dict(sorted(node.metrics.items())),
    }


def alert_subject(alert: types_pb2.Alert) -> str:
    """Return what an alert is about: `n1`, `task 12 on n1` or `the cluster`."""
    if not alert.node_id:
        return "the cluster"
    task = alert.labels.get("task", "")
    return f"task {task} on {alert.node_id}" if task else alert.node_id


def alert_record(alert: types_pb2.Alert) -> Record:
    """Return an alert as JSON shows it."""
    return {
        "name": alert.name,
        "node_id": alert.node_id,
        "state": alert_state(alert),
        "value": alert.value,
        "labels": dict(sorted(alert.labels.items())),
        "annotations": dict(sorted(alert.annotations.items())),
        "active_at": _instant(alert, "active_at"),
        "fired_at": _instant(alert, "fired_at"),
        "resolved_at": _instant(alert, "resolved_at"),
    }


def rule_record(rule: rule_pb2.Rule) -> Record:
    """Return a rule in force as JSON shows it."""
    return {
        "name": rule.name,
        "group": rule.group,
        "expression": rule.expression,
        "hold_seconds": _seconds(rule.hold),
        "labels": dict(sorted(rule.labels.items())),
        "annotations": dict(sorted(rule.annotations.items())),
        "blocks_placement": rule.blocks_placement,
        "holding_nodes": rule.holding_nodes,
        "known_nodes": rule.known_nodes,
        "scope": rule.scope,
        "keep_firing_seconds": _seconds(rule.keep_firing),
    }


def event_record(event: event_pb2.Event) -> Record:
    """Return an event as JSON shows it; the values of details are text."""
    return {
        "sequence": event.sequence,
        "at": _instant(event, "at"),
        "kind": event.kind,
        "subject": event.subject,
        "text": event.text,
        "details": dict(sorted(event.details.items())),
    }


def pool_record(pool: memory_pb2.Pool) -> Record:
    """Return the controller's pool as JSON shows it."""
    return {field.name: getattr(pool, field.name) for field in pool.DESCRIPTOR.fields}


def reservation_record(reservation: memory_pb2.Reservation) -> Record:
    """Return a reservation of memory as JSON shows it."""
    return {
        "id": reservation.id,
        "node_id": reservation.node_id,
        "memory_bytes": reservation.memory_bytes,
        "purpose": reservation.purpose or None,
        "user": reservation.user or None,
        "created_at": _instant(reservation, "created_at"),
        "expires_at": _instant(reservation, "expires_at"),
    }


def task_label(task: types_pb2.Task) -> str:
    """Return a task's id as people read it: 12, or 12_3 for an element of an array."""
    return f"{task.array_id}_{task.array_index}" if task.array_id else task.id


def runtime_seconds(task: types_pb2.Task) -> float | None:
    """Return how long the latest attempt has run, or None before it has started."""
    if not task.HasField("started_at"):
        return None
    ended = task.HasField("ended_at")
    end_ns = task.ended_at.ToNanoseconds() if ended else time.time_ns()
    return max(0, end_ns - task.started_at.ToNanoseconds()) / 1e9


# The enum wrappers of protobuf have a type of their own for each enum.
def _word(enum: Any, prefix: str, value: int) -> str:
    try:
        return str(enum.Name(value)).removeprefix(prefix)
    except ValueError:
        # A newer controller may know more states than this client.
        return f"UNKNOWN_{value}"


def _dependency_kind(wanted: types_pb2.Dependency) -> str:
    return _word(types_pb2.DependencyKind, "DEPENDENCY_KIND_", wanted.kind).lower()


def _instant(message: Any, field: str) -> str | None:
    if not message.HasField(field):
        return None
    instant: Timestamp = getattr(message, field)
    return instant.ToJsonString()


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
