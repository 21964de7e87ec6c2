"""Commands in the words of a story."""

from __future__ import annotations

from controller.core.commands import (
    Command,
    Notify,
    Reply,
    SaveAlert,
    SaveAttempt,
    SaveNode,
    SaveOutput,
    SaveSubmission,
    SaveTask,
    SendAcknowledgement,
    SendAssignment,
    SendFreeze,
    SendStop,
    SendWelcome,
)


def told(command: Command) -> str:
    """Return one command as a line."""
    match command:
        case SaveTask(task):
            where = f" on {task.node_id}" if task.node_id else ""
            why = f": {task.reason}" if task.reason else ""
            return f"save task {task.id} {task.state.value} attempt {task.attempt}{where}{why}"
        case SaveAttempt(attempt):
            outcome = attempt.outcome.value
            return f"save attempt {attempt.number} of task {attempt.task_id} {outcome}"
        case SaveOutput(task_id, number, stream, _):
            return f"save {stream.value} of task {task_id} attempt {number}"
        case SaveNode(node):
            return f"save {node.id} of {node.instance_id} {node.scheduling.value}"
        case SaveSubmission(submission):
            return f"save {submission.request_id}"
        case SaveAlert(alert) | Notify(alert):
            word = "save" if isinstance(command, SaveAlert) else "notify"
            return f"{word} {alert.name} on {alert.node_id} {alert.state.value}"
        case SendWelcome():
            return (
                f"send {command.node_id} welcome on stream {command.stream}, acknowledged"
                f" {command.acknowledged_sequence}, forget {command.forget}"
            )
        case SendAssignment(node_id, task):
            return f"send {node_id} task {task.id} attempt {task.attempt}"
        case SendStop(node_id, task_id, number, grace_ns):
            return f"send {node_id} stop of task {task_id} attempt {number}, {grace_ns / 1e9:g} s"
        case SendFreeze(node_id, task_id, number, paused):
            word = "pause" if paused else "resume"
            return f"send {node_id} {word} of task {task_id} attempt {number}"
        case SendAcknowledgement(node_id, sequence):
            return f"send {node_id} acknowledgement {sequence}"
        case Reply(value):
            return f"reply {value if isinstance(value, tuple) else type(value).__name__}"
    return repr(command)
