"""Nodes are emptied and forgotten: drained with a deadline, and removed when they are gone."""

from __future__ import annotations

from dataclasses import replace

from controller.core.cluster import Cluster, with_state
from controller.core.commands import (
    Command,
    ForgetNode,
    Notify,
    Reply,
    SaveAlert,
    SaveNode,
    SaveTask,
    SendStop,
)
from controller.core.errors import Conflict, NotFound
from controller.core.events import NodeDrained, NodeForgotten
from controller.core.model import Scheduling, TaskState
from controller.core.nodes import NodeRecord
from controller.core.task_events import NODE_DRAINED

Commands = list[Command]


def on_node_drained(cluster: Cluster, event: NodeDrained) -> Commands:
    """Keep new tasks off a node and wait for those it has, up to the deadline.

    Raises:
        NotFound: there is no such node.
    """
    record = _find(cluster, event.node_id)
    record.node = replace(
        record.node,
        scheduling=Scheduling.DRAINING,
        scheduling_reason=event.reason,
        scheduling_by=event.user,
        scheduling_since_ns=event.at_ns,
        drain_deadline_ns=event.deadline_ns,
    )
    cluster.draining.add(event.node_id)
    cluster.table.refresh_open(record)
    commands: Commands = [SaveNode(record.node)]
    commands += advance_drains(cluster, event.at_ns)
    commands.append(Reply(record.node))
    return commands


def advance_drains(cluster: Cluster, now_ns: int) -> Commands:
    """Call nodes DRAINED that have no task left, and end the tasks of those past their deadline."""
    commands: Commands = []
    for node_id in sorted(cluster.draining):
        record = cluster.nodes[node_id]
        if not record.task_ids:
            cluster.draining.discard(node_id)
            record.node = replace(record.node, scheduling=Scheduling.DRAINED)
            commands.append(SaveNode(record.node))
        elif 0 < record.node.drain_deadline_ns <= now_ns:
            commands += _evict(cluster, record)
    return commands


def _evict(cluster: Cluster, record: NodeRecord) -> Commands:
    commands: Commands = []
    for task_id in sorted(record.task_ids):
        task = cluster.tasks[task_id]
        if task.state is TaskState.STOPPING:
            continue
        reason = f"node {record.node.id} is drained"
        task = with_state(task, TaskState.STOPPING, NODE_DRAINED, reason)
        cluster.put_task(task)
        commands.append(SaveTask(task))
        grace_ns = cluster.limits.cancel_grace_ns
        commands.append(SendStop(record.node.id, task.id, task.attempt, grace_ns))
    return commands


def on_node_forgotten(cluster: Cluster, event: NodeForgotten) -> Commands:
    """Remove a node for good; its agent may come back as a new one.

    Raises:
        NotFound: there is no such node.
        Conflict: it is connected, or still has tasks or reservations.
    """
    record = _find(cluster, event.node_id)
    if record.stream is not None:
        raise Conflict(f"node '{event.node_id}' is connected; stop its agent first")
    if record.task_ids:
        count = len(record.task_ids)
        rest = "task; wait until it is given up, or cancel it"
        if count > 1:
            rest = "tasks; wait until they are given up, or cancel them"
        raise Conflict(f"node '{event.node_id}' still has {count} {rest}")
    if record.reservation_ids:
        numbers = sorted(record.reservation_ids)
        noun = "reservation" if len(numbers) == 1 else "reservations"
        shown = ", ".join(map(str, numbers))
        raise Conflict(f"node '{event.node_id}' still has the {noun} {shown}")
    cluster.remove_node(event.node_id)
    commands: Commands = [ForgetNode(event.node_id)]
    for change in cluster.alerts.forget(record.slot, event.at_ns):
        commands.append(SaveAlert(change.alert))
        if change.notify:
            commands.append(Notify(change.alert))
    commands.append(Reply(event.node_id))
    return commands


def _find(cluster: Cluster, node_id: str) -> NodeRecord:
    record = cluster.nodes.get(node_id)
    if record is None:
        raise NotFound(f"no node is called '{node_id}'", node=node_id)
    return record
