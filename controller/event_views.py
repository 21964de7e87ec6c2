"""What happened as the API shows it: an event with a stable kind, a sentence and its values."""

from __future__ import annotations

from mass.units import size_words
from mass.v1 import event_pb2

from controller.core.explain_memory import step_text
from controller.core.model import (
    ENDED_STATES,
    Alert,
    AlertState,
    GuardStep,
    MemoryReservation,
    NodeState,
    OomCause,
    Scheduling,
    TaskState,
)
from controller.journal import (
    Dropped,
    Entry,
    GuardStepped,
    Happening,
    NodeForgotten,
    NodeStateChanged,
    Reloaded,
    ReservationEnded,
    SchedulingChanged,
    TaskChanged,
)
from controller.wire import timestamp

Shown = tuple[str, str, str, dict[str, object]]  # kind, subject, text, details

TASK_WORDS = {
    TaskState.HELD: "is held",
    TaskState.PENDING: "waits",
    TaskState.ASSIGNED: "goes to",
    TaskState.STARTING: "starts on",
    TaskState.RUNNING: "runs on",
    TaskState.PAUSED: "is paused on",
    TaskState.STOPPING: "is being ended on",
}
NODE_WORDS = {
    NodeState.JOINING: "has connected",
    NodeState.READY: "is ready",
    NodeState.UNREACHABLE: "does not answer",
    NodeState.DOWN: "is down",
}
SCHEDULING_WORDS = {
    Scheduling.ENABLED: "takes new tasks again",
    Scheduling.CORDONED: "is cordoned",
    Scheduling.DRAINING: "is being drained",
    Scheduling.DRAINED: "is drained",
}


def event_view(entry: Entry) -> event_pb2.Event:
    """Return an entry of the journal as an event; a detail that does not apply is left out."""
    kind, subject, text, details = _shown(entry.happening)
    event = event_pb2.Event(sequence=entry.sequence, kind=kind, subject=subject, text=text)
    event.at.CopyFrom(timestamp(entry.at_ns))
    for name, value in details.items():
        if value is not None and value != "":
            event.details[name] = str(value)
    return event


def _shown(happening: Happening) -> Shown:
    match happening:
        case TaskChanged():
            return _task(happening)
        case NodeStateChanged(node_id, state):
            text = f"node {node_id} {NODE_WORDS[state]}"
            return "NODE_STATE", f"node {node_id}", text, {"node_id": node_id, "state": state.value}
        case SchedulingChanged():
            return _scheduling(happening)
        case NodeForgotten(node_id):
            subject = f"node {node_id}"
            return "NODE_FORGOTTEN", subject, f"{subject} is forgotten", {"node_id": node_id}
        case Alert():
            return _alert(happening)
        case MemoryReservation():
            return _reservation(happening)
        case ReservationEnded(number):
            subject = f"reservation {number}"
            details: dict[str, object] = {"reservation_id": number, "state": "ENDED"}
            return "RESERVATION", subject, f"{subject} has ended", details
        case GuardStepped(node_id, step):
            return _guard(node_id, step)
        case Reloaded(taken, text):
            outcome = "RELOADED" if taken else "REFUSED"
            return "CONFIGURATION", "configuration", text, {"state": outcome}
        case Dropped(count):
            text = f"{count} events were dropped: they were not read in time"
            return "DROPPED", "events", text, {"count": count}


def _guard(node_id: str, step: GuardStep) -> Shown:
    details: dict[str, object] = {
        "node_id": node_id,
        "step": step.kind.value,
        "task_id": step.task_id or None,
        "attempt": step.attempt or None,
        "memory_used_bytes": step.used_bytes,
        "memory_limit_bytes": step.limit_bytes,
        "memory_growth_bytes_per_second": f"{step.growth_bytes_per_second:.15g}",
        "seconds_to_full": step.seconds_to_full,
        "psi_full_percent": step.psi_full_percent,
        "task_memory_used_bytes": step.task_used_bytes if step.task_id else None,
        "reason": step.reason,
    }
    return "GUARD", f"node {node_id}", f"guard of node {node_id}: {step_text(step)}", details


def _task(task: TaskChanged) -> Shown:
    subject = f"task {task.label}"
    ended = task.state in ENDED_STATES
    word = f"ended {task.state.value}" if ended else TASK_WORDS[task.state]
    if task.state is TaskState.PENDING and task.reason_code == "REQUEUED":
        word = "is queued again"
    where = f" {'on ' if ended else ''}{task.node_id}" if task.node_id else ""
    why = f": {task.reason}" if task.reason else ""
    ran = ended and task.attempt > 0
    details: dict[str, object] = {
        "task_id": task.id,
        "task": task.label,
        "name": task.name,
        "state": task.state.value,
        "attempt": task.attempt or None,
        "node_id": task.node_id,
        "priority": task.priority or None,
        "reason_code": task.reason_code,
        "reason": task.reason,
        "exit_code": task.exit_code if ended else None,
        "signal": task.signal if ended else None,
        "memory_peak_bytes": task.memory_peak_bytes if ran else None,
        "memory_limit_bytes": task.memory_limit_bytes if task.node_id else None,
        "oom_cause": None if task.oom_cause is OomCause.NONE else task.oom_cause.value,
    }
    return "TASK_STATE", subject, f"{subject} ({task.name}) {word}{where}{why}", details


def _scheduling(change: SchedulingChanged) -> Shown:
    subject = f"node {change.node_id}"
    by = f" by {change.user}" if change.user else ""
    why = f": {change.reason}" if change.reason else ""
    details: dict[str, object] = {
        "node_id": change.node_id,
        "scheduling": change.scheduling.value,
        "reason": change.reason,
        "user": change.user,
    }
    text = f"{subject} {SCHEDULING_WORDS[change.scheduling]}{by}{why}"
    return "NODE_SCHEDULING", subject, text, details


def _alert(alert: Alert) -> Shown:
    on = f"node {alert.node_id}" if alert.node_id else "the cluster"
    if alert.task_id:
        on = f"task {alert.task_id} on {on}"
    resolved = alert.state is AlertState.RESOLVED
    summary = alert.annotations.get("summary", "")
    said = f": {summary}" if summary and not resolved else ""
    details: dict[str, object] = {
        "alert": alert.name,
        "state": "RESOLVED" if resolved else "FIRING",
        "node_id": alert.node_id,
        "task_id": alert.task_id or None,
        "value": f"{alert.value:.15g}",
        "severity": alert.labels.get("severity"),
        "summary": summary,
    }
    word = "is resolved" if resolved else "fires"
    return "ALERT", f"alert {alert.name}", f"alert {alert.name} {word} on {on}{said}", details


def _reservation(reservation: MemoryReservation) -> Shown:
    subject = f"reservation {reservation.id}"
    until = timestamp(reservation.expires_at_ns).ToJsonString()
    details: dict[str, object] = {
        "reservation_id": reservation.id,
        "state": "SET_ASIDE",
        "node_id": reservation.node_id,
        "memory_bytes": reservation.memory_bytes,
        "purpose": reservation.purpose,
        "user": reservation.user,
        "expires_at": until,
    }
    amount = size_words(reservation.memory_bytes)
    text = f"{subject} keeps {amount} of node {reservation.node_id} until {until}"
    return "RESERVATION", subject, text, details
