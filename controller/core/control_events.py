"""Users hold, release, pause and resume tasks, and change their priority."""

from __future__ import annotations

from dataclasses import replace

from controller.core.cluster import Cluster, with_state
from controller.core.commands import Command, Reply, SaveTask, SendFreeze
from controller.core.events import TasksControlled
from controller.core.model import Task, TaskAction, TaskState

Commands = list[Command]

# What each action makes of which state; in the second state it has been done already.
MOVES = {
    TaskAction.HOLD: (TaskState.PENDING, TaskState.HELD),
    TaskAction.RELEASE: (TaskState.HELD, TaskState.PENDING),
    TaskAction.PAUSE: (TaskState.RUNNING, TaskState.PAUSED),
    TaskAction.RESUME: (TaskState.PAUSED, TaskState.RUNNING),
}
REASONS = {
    TaskAction.HOLD: ("HELD", "held by its user"),
    TaskAction.RELEASE: ("", ""),
    TaskAction.PAUSE: ("PAUSED", "paused by its user"),
    # Until its agent has said that it goes on.
    TaskAction.RESUME: ("RESUMED", "resumed by its user"),
}


def on_tasks_controlled(cluster: Cluster, event: TasksControlled) -> Commands:
    """Do what is asked to each task it can be done to; the answer says where it could not."""
    commands: Commands = []
    refused: list[str] = []
    for task_id in event.task_ids:
        task = cluster.tasks.get(task_id)
        if task is None:
            refused.append(f"task {task_id} has ended")
        elif event.action is TaskAction.PRIORITY:
            refused.append("")
            if task.priority != event.priority:
                task = replace(task, priority_set=event.priority)
                cluster.put_task(task)
                commands.append(SaveTask(task))
        else:
            refused.append(_refusal(task, event.action))
            commands += _move(cluster, task, event.action)
    commands.append(Reply(tuple(refused)))
    return commands


def _refusal(task: Task, action: TaskAction) -> str:
    if task.state in MOVES[action]:
        return ""
    needed = MOVES[action][0].value
    return f"task {task.label} is {task.state.value}; only {needed} ones can be {_done(action)}"


def _done(action: TaskAction) -> str:
    return {"hold": "held", "release": "released", "pause": "paused", "resume": "resumed"}[
        action.value
    ]


def _move(cluster: Cluster, task: Task, action: TaskAction) -> Commands:
    before, after = MOVES[action]
    if task.state is not before:
        return []
    task = with_state(task, after, *REASONS[action])
    cluster.put_task(task)
    commands: Commands = [SaveTask(task)]
    if action in (TaskAction.PAUSE, TaskAction.RESUME):
        paused = action is TaskAction.PAUSE
        commands.append(SendFreeze(task.node_id, task.id, task.attempt, paused))
    return commands
